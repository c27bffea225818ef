"""Samples one video with the decoder that is right for it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

import av

from decoding.config import SamplingConfig
from decoding.decord_decoder import decode_with_decord, doubt_about_decord
from decoding.errors import UndecodableClip
from decoding.pyav_decoder import decode_with_pyav, read_video_timeline
from decoding.sampled import SampledFrames
from decoding.timeline import Span

PYAV = f"pyav {av.__version__}"


def sample_video(
    path: str, span: Span, config: SamplingConfig, announce: Callable[[str], None]
) -> tuple[SampledFrames, str]:
    """Returns the sampled frames of a span of a video and the decoder that gave them, with a warning where due.

    Args:
        announce: told the name of a decoder before it starts, for the case that it never comes back.

    Raises:
        UndecodableClip: no faithful frames can be had.
    """
    timeline = read_video_timeline(path, config.max_pixels)
    doubt = doubt_about_decord(timeline)
    if config.decoder == "pyav" or (config.decoder == "auto" and doubt):
        return decode_with_pyav(path, timeline, span, config), PYAV
    announce("decord")
    try:
        sampled = decode_with_decord(path, timeline, span, config, must_agree=doubt is None)
    except ImportError:
        return decode_with_pyav(path, timeline, span, config), f"{PYAV}; decord is not installed"
    except UndecodableClip as error:
        if config.decoder == "decord":
            raise
        announce("pyav")
        return decode_with_pyav(path, timeline, span, config), f"{PYAV}; {error.reason}"
    return sampled, f"decord {version('decord')}" + (f"; {doubt}" if doubt else "")


def probe_duration_s(path: str, config: SamplingConfig) -> float:
    """Returns the seconds from a video's first frame to the end of its last.

    Raises:
        UndecodableClip: it has no video stream, or no frames.
    """
    return read_video_timeline(path, config.max_pixels).end_s
