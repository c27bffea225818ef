"""Decodes with PyAV, in order from the start: right on every container and codec FFmpeg knows."""

from __future__ import annotations

from decoding.config import SamplingConfig
from decoding.containers import open_container, pick_video_stream
from decoding.damaged import settle
from decoding.decode_pass import Pictures, decode_all, decode_announced
from decoding.errors import UndecodableClip
from decoding.ffmpeg_log import LogLine
from decoding.indices import FrameChoice, choose_frames
from decoding.sampled import SampledFrames
from decoding.timeline import Span, Timeline, read_timeline


def read_video_timeline(path: str, max_pixels: int) -> Timeline:
    """Returns when each frame of the video is shown, see `read_timeline`."""
    said: list[LogLine] = []
    with open_container(path, said) as container:
        return read_timeline(container, pick_video_stream(container, path, max_pixels), path, said)


def choose_from(timeline: Timeline, span: Span, config: SamplingConfig) -> tuple[int, FrameChoice]:
    """Returns the index of a span's first frame, and the frames to sample, counted from it.

    Raises:
        UndecodableClip: no frame is shown in the span.
    """
    low, high = timeline.window(span)
    if low == high:
        if timeline.problem or timeline.num_missing:
            raise UndecodableClip(f"truncated after {timeline.end_s:.1f} s", "the file ends before the window starts")
        raise UndecodableClip(
            "window outside of the video",
            f"no frame between {span.start_s} s and {span.end_s} s of a video of {timeline.end_s:.3f} s",
        )
    end_s = timeline.times_s[high] if high < len(timeline.times_s) else timeline.end_s
    times_s = timeline.times_s[low:high] - timeline.times_s[low]
    return low, choose_frames(times_s, end_s - timeline.times_s[low], timeline.average_rate, config)


def decode_with_pyav(path: str, timeline: Timeline, span: Span, config: SamplingConfig) -> SampledFrames:
    """Samples the frames of a span of a video.

    Raises:
        UndecodableClip: too few of its frames decode, or there are none.
    """
    sampled = _decode_announced(path, timeline, span, config) if timeline.is_sound else None
    return sampled or _decode_counted(path, timeline, span, config)


def _decode_announced(path: str, timeline: Timeline, span: Span, config: SamplingConfig) -> SampledFrames | None:
    """Decodes the frames the timeline announces; None when the file does not keep to it."""
    low, choice = choose_from(timeline, span, config)
    wanted = {int(timeline.pts[low + i]): low + i for i in choice.indices}
    pictures = decode_announced(path, wanted, config)
    return pictures and _assemble(choice, tuple(low + i for i in choice.indices), pictures, 1.0)


def _decode_counted(path: str, timeline: Timeline, span: Span, config: SamplingConfig) -> SampledFrames:
    """Decodes every frame, keeps to those that really come, and judges their share."""
    low, expected = choose_from(timeline, span, config)
    # Where every frame comes, as in a sound AVI file, this first pass finds the right ones already.
    census, pictures = decode_all(path, {low + i for i in expected.indices}, config)
    settled = settle(timeline, census, span, config.min_decoded_share)
    low, choice = choose_from(settled.timeline, span, config)
    ordinal_of = {settled.indices[low + i]: int(settled.timeline.pts[low + i]) for i in choice.indices}
    if not pictures.by_key.keys() >= set(ordinal_of.values()):
        _, pictures = decode_all(path, set(ordinal_of.values()), config)
    by_index = {index: pictures.by_key[ordinal] for index, ordinal in ordinal_of.items()}
    return _assemble(
        choice,
        tuple(settled.indices[low + i] for i in choice.indices),
        Pictures(by_index, pictures.width_px, pictures.height_px),
        settled.decoded_share,
    )


def _assemble(choice: FrameChoice, frame_indices: tuple[int, ...], pictures: Pictures, share: float) -> SampledFrames:
    return SampledFrames(
        frame_indices,
        choice.timestamps_s,
        choice.duration_s,
        pictures.by_key,
        pictures.width_px,
        pictures.height_px,
        share,
    )
