"""Decodes with decord, the model card's decoder: exact on ordinary files, wrong or stuck on some others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from framescribe.decoding.config import SamplingConfig, TimeWindow, UndecodableClip
from framescribe.decoding.resize import DecodedFrames, resize_frame
from framescribe.decoding.sampling import SampledFrames, assemble, choose_from
from framescribe.decoding.timeline import Timeline

# Where decord 0.6 was seen to give the frames that a plain decode gives. Left out for cause: HEVC (wrong frames after a
# seek into an open GOP), MPEG-TS (hangs for ever), AVI (now and then another frame, since it states no presentation
# times), AV1 and GIF (cannot open), H.263 and MPEG-2 (garbage after seeks), and frames that its FFmpeg 4.1 converts
# to other RGB values than today's: more than 8 bits, odd sizes.
_EXACT_CONTAINERS = {"mov", "matroska", "webm", "flv"}
_EXACT_CODECS = {"h264", "vp8", "vp9", "mpeg4", "mjpeg"}
_EXACT_PIX_FMTS = {"yuv420p", "yuvj420p"}
_HANGS = {"mpegts", "mpeg"}
_BATCH_BYTES = 64 << 20  # full frames that decord hands over at once
_SAME_TIME_S = 2e-3  # decord keeps times as float32


def doubt_about_decord(timeline: Timeline) -> str | None:
    """Returns why decord would be wrong about this video, or None where it is known to be exact."""
    containers = set(timeline.container.split(","))
    if not containers & _EXACT_CONTAINERS or timeline.codec not in _EXACT_CODECS:
        return f"decord is not exact for {timeline.codec} in {timeline.container.split(',')[0]}"
    if timeline.has_discarded:
        return "decord shows frames that the edit list hides"
    if timeline.has_leading_pictures:
        return "decord takes wrong frames from an open GOP"
    if timeline.num_video_streams > 1:
        return "decord may take another of the video streams"
    if timeline.problem or timeline.num_missing:
        return "decord gives nothing of a damaged video"
    if not timeline.is_reliable:
        return "the video's timestamps name no frames"
    if timeline.pix_fmt not in _EXACT_PIX_FMTS or any(side_px % 2 for side_px in timeline.coded_size):
        return "decord converts such frames to other colours"
    return None


def decode_with_decord(
    path: str, timeline: Timeline, window: TimeWindow, config: SamplingConfig, *, must_agree: bool
) -> SampledFrames:
    """Samples the frames of a window.

    Args:
        must_agree: take the timeline's times, and nothing if decord counts or times the frames otherwise; without it
            decord's own count and times are taken.

    Raises:
        UndecodableClip: decord cannot open or decode the video, disagrees, or would hang.
        ImportError: decord is not installed.
    """
    import decord  # here, because it has no wheels for ARM and macOS
    from decord._ffi.base import DECORDError

    if set(timeline.container.split(",")) & _HANGS:
        raise UndecodableClip("decord cannot read this container", f"decord hangs on {timeline.container}")
    try:
        reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
        own = _own_timeline(reader, timeline)
        if must_agree:
            _check_agreement(own, timeline)
        low, choice = choose_from(timeline if must_agree else own, window, config)
        frame_indices = tuple(low + i for i in choice.indices)
        return assemble(choice, frame_indices, _read_frames(reader, frame_indices, timeline, config), 1.0)
    except (DECORDError, RuntimeError, IndexError) as error:
        raise UndecodableClip("decord cannot decode it", str(error).strip().partition("\n")[0][:300]) from error


def _own_timeline(reader: Any, timeline: Timeline) -> Timeline:  # Any: decord has no types
    shown_s = reader.get_frame_timestamp(np.arange(len(reader))).astype(np.float64)  # [N, 2], from and to
    return replace(timeline, times_s=shown_s[:, 0] - shown_s[0, 0], end_s=float(shown_s[-1, 1] - shown_s[0, 0]))


def _check_agreement(own: Timeline, timeline: Timeline) -> None:
    if len(own.times_s) != len(timeline.times_s):
        raise UndecodableClip(
            "decord miscounts the frames", f"it counts {len(own.times_s)}, the packets are {len(timeline.times_s)}"
        )
    if np.abs(own.times_s - timeline.times_s).max() > _SAME_TIME_S:
        raise UndecodableClip("decord mistimes the frames", "its times are not those of the packets")


def _read_frames(
    reader: Any, frame_indices: tuple[int, ...], timeline: Timeline, config: SamplingConfig
) -> DecodedFrames:  # Any: no types
    wanted = sorted(set(frame_indices))
    step = max(1, _BATCH_BYTES // (timeline.coded_size[0] * timeline.coded_size[1] * 3))
    by_key: dict[int, np.ndarray] = {}
    for start in range(0, len(wanted), step):
        batch = reader.get_batch(wanted[start : start + step]).asnumpy()  # uint8 [step, H, W, 3]
        for index, frame in zip(wanted[start : start + step], batch, strict=True):
            by_key[index] = resize_frame(frame, config.image_size)
    return DecodedFrames(by_key, batch.shape[2], batch.shape[1])
