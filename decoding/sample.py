"""Samples one video with the decoder that is right for it."""

from __future__ import annotations

from collections.abc import Callable

import av

from decoding.config import SamplingConfig
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
    announce("pyav")
    return decode_with_pyav(path, timeline, span, config), PYAV


def probe_duration_s(path: str, config: SamplingConfig) -> float:
    """Returns the seconds from a video's first frame to the end of its last.

    Raises:
        UndecodableClip: it has no video stream, or no frames.
    """
    return read_video_timeline(path, config.max_pixels).end_s
