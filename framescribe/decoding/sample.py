"""Samples one video with the decoder that is asked for."""

from __future__ import annotations

import os
import tempfile
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import av
from threadpoolctl import threadpool_limits

from framescribe.decoding.config import SamplingConfig, TimeWindow, VideoHeader
from framescribe.decoding.decode import decode_with_pyav, is_mirrored, read_video_timeline
from framescribe.decoding.decord_decoder import decode_with_decord, doubt_about_decord
from framescribe.decoding.demux import open_container, pick_video_stream
from framescribe.decoding.sampling import SampledFrames
from framescribe.decoding.timeline import Timeline

_LONGEST_TOLD_S = 86_400.0  # a header that tells more may lie
PYAV = f"pyav {av.__version__}"


def sample_frames(
    video: str | os.PathLike[str] | bytes, config: SamplingConfig | None = None, window: TimeWindow | None = None
) -> SampledFrames:
    """Samples the frames of one video in this process.

    Args:
        video: the path of a local file, or its bytes.
        config: which frames; None takes 64, evenly spread.
        window: the part of the video to sample; None is the whole.

    Raises:
        FileNotFoundError: there is no such file.
        UndecodableClip: no faithful frames can be had.
    """
    if isinstance(video, bytes):
        with tempfile.NamedTemporaryFile(suffix=".video") as file:
            file.write(video)
            file.flush()
            return sample_frames(file.name, config, window)
    path = Path(video).expanduser()
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no video"
        raise FileNotFoundError(f"{found} at {os.fspath(video)!r}: wanted the path of a local file, or its bytes")
    # One thread, as in decoder processes: the resize's many small products only get slower with more, and 8K frames
    # take four times the CPU time.
    with threadpool_limits(1, user_api="blas"):
        return sample_video(str(path), window or TimeWindow(), config or SamplingConfig())[0]


def sample_video(path: str, window: TimeWindow, config: SamplingConfig) -> tuple[SampledFrames, str]:
    """Returns the sampled frames of a window of a video and the decoder that gave them, with a warning where due.

    Raises:
        UndecodableClip: no faithful frames can be had.
    """
    timeline = _recall_timeline(path, _identity(path), config.max_pixels)
    if config.decoder != "decord":
        return decode_with_pyav(path, timeline, window, config), PYAV
    doubt = doubt_about_decord(timeline) or ("decord does not mirror" if is_mirrored(path, config) else None)
    try:
        sampled = decode_with_decord(path, timeline, window, config, must_agree=doubt is None)
    except ImportError:
        return decode_with_pyav(path, timeline, window, config), f"{PYAV}; decord is not installed"
    return sampled, f"decord {version('decord')}" + (f"; {doubt}" if doubt else "")


def probe_duration_s(path: str, config: SamplingConfig) -> float:
    """Returns the seconds from a video's first frame to the end of its last.

    Raises:
        UndecodableClip: it has no video stream, or no frames.
    """
    return read_video_timeline(path, config.max_pixels).end_s


def read_header(path: str, config: SamplingConfig) -> VideoHeader:
    """Returns what the headers of a local video say; its packets are read only where they do not tell its length.

    Raises:
        UndecodableClip: it cannot be opened, or holds no video that may be decoded.
    """
    with open_container(path) as container:
        stream = pick_video_stream(container, path, config.max_pixels)
        told = stream.duration and stream.time_base and float(stream.duration * stream.time_base)
        duration_s = told or (container.duration or 0) / av.time_base
        rate, codec = float(stream.average_rate or 0), stream.codec_context
        width_px, height_px, name = codec.width, codec.height, codec.name
    is_credible = 0 < duration_s < _LONGEST_TOLD_S
    return VideoHeader(duration_s if is_credible else probe_duration_s(path, config), width_px, height_px, name, rate)


@lru_cache(maxsize=2)
def _recall_timeline(path: str, identity: tuple[int, ...], max_pixels: int) -> Timeline:  # noqa: ARG001  # cache key
    """Reads the packets of a long video once, and not again for each of its windows."""
    return read_video_timeline(path, max_pixels)


def _identity(path: str) -> tuple[int, ...]:
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
