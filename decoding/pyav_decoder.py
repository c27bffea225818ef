"""Decodes with PyAV, in order from the start: right on every container and codec FFmpeg knows."""

from __future__ import annotations

from dataclasses import replace

from decoding.config import SamplingConfig
from decoding.containers import open_container, pick_video_stream
from decoding.damaged import settle
from decoding.decode_pass import decode_all, decode_announced
from decoding.ffmpeg_log import LogLine
from decoding.sampled import SampledFrames, assemble, choose_from
from decoding.stretches import Stretch, plan_stretches
from decoding.timeline import Span, Timeline, read_timeline


def read_video_timeline(path: str, max_pixels: int) -> Timeline:
    """Returns when each frame of the video is shown, see `read_timeline`."""
    said: list[LogLine] = []
    with open_container(path, said) as container:
        return read_timeline(container, pick_video_stream(container, path, max_pixels), path, said)


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
    frame_indices = tuple(low + i for i in choice.indices)
    stretches = plan_stretches(timeline, frame_indices)
    whole = Stretch(None, {int(timeline.pts[index]): index for index in frame_indices})
    pictures = decode_announced(path, stretches, config)
    if pictures is None and stretches != [whole]:  # the file may lie about its key frames alone
        pictures = decode_announced(path, [whole], config)
    return None if pictures is None else assemble(choice, frame_indices, pictures, 1.0)


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
    frame_indices = tuple(settled.indices[low + i] for i in choice.indices)
    return assemble(choice, frame_indices, replace(pictures, by_key=by_index), settled.decoded_share)
