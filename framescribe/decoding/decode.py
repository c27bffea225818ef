"""Decodes the frames that are wanted of a video with PyAV, which is right on every container and codec FFmpeg knows.

A video that keeps to its timeline is decoded from the key frames before wanted frames; any other is decoded whole, over
its errors, and its damage is judged (`framescribe.decoding.damage`).
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, dropwhile, islice

import av.container
import av.error
import numpy as np
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from framescribe.decoding.config import SamplingConfig, TimeWindow
from framescribe.decoding.damage import DecodeTally, match_decoded_frames
from framescribe.decoding.demux import (
    LogLine,
    check_dimensions,
    ffmpeg_log,
    has_error,
    open_container,
    pick_video_stream,
)
from framescribe.decoding.resize import DecodedFrames, FrameResizer, orientation_of, upright_size
from framescribe.decoding.sampling import SampledFrames, SeekRange, assemble, choose_from, plan_seek_ranges
from framescribe.decoding.timeline import Timeline, read_timeline

# Codecs whose frames that no other frame refers to are left out by FFmpeg without touching the rest.
_SKIPPABLE_CODECS = ("h264", "hevc")
# ValueError is what PyAV 19 raises once a decoder could not be opened, over bad headers for instance.
_DECODE_ERRORS = (av.error.FFmpegError, ValueError)


def decode_with_pyav(path: str, timeline: Timeline, window: TimeWindow, config: SamplingConfig) -> SampledFrames:
    """Samples the frames of a window of a video.

    Raises:
        UndecodableClip: too few of its frames decode, or there are none.
    """
    sampled = _sample_announced(path, timeline, window, config) if timeline.is_sound else None
    return sampled or _sample_counted(path, timeline, window, config)


def _sample_announced(
    path: str, timeline: Timeline, window: TimeWindow, config: SamplingConfig
) -> SampledFrames | None:
    """Decodes the frames the timeline announces; None when the file does not keep to it."""
    low, choice = choose_from(timeline, window, config)
    frame_indices = tuple(low + i for i in choice.indices)
    seek_ranges = plan_seek_ranges(timeline, frame_indices)
    whole = SeekRange(None, {int(timeline.pts[index]): index for index in frame_indices})
    frames = _decode_ranges(path, seek_ranges, config)
    if frames is None and seek_ranges != [whole]:  # the file may lie about its key frames alone
        frames = _decode_ranges(path, [whole], config)
    return None if frames is None else assemble(choice, frame_indices, frames, 1.0)


def _sample_counted(path: str, timeline: Timeline, window: TimeWindow, config: SamplingConfig) -> SampledFrames:
    """Decodes every frame, keeps to those that really come, and checks that enough of them do."""
    low, expected = choose_from(timeline, window, config)
    # Where every frame comes, as in a sound AVI file, this first pass finds the right ones already.
    tally, frames = _decode_all(path, {low + i for i in expected.indices}, config)
    decoded = match_decoded_frames(timeline, tally, window, config.min_decoded_fraction)
    low, choice = choose_from(decoded.timeline, window, config)
    ordinal_of = {decoded.indices[low + i]: int(decoded.timeline.pts[low + i]) for i in choice.indices}
    if not frames.by_key.keys() >= set(ordinal_of.values()):
        _, frames = _decode_all(path, set(ordinal_of.values()), config)
    by_index = {index: frames.by_key[ordinal] for index, ordinal in ordinal_of.items()}
    frame_indices = tuple(decoded.indices[low + i] for i in choice.indices)
    return assemble(choice, frame_indices, replace(frames, by_key=by_index), decoded.decoded_fraction)


def read_video_timeline(path: str, max_pixels: int) -> Timeline:
    """Returns when each frame of the video is shown, see `read_timeline`."""
    log: list[LogLine] = []
    with open_container(path, log) as container:
        return read_timeline(container, pick_video_stream(container, path, max_pixels), path, log)


def is_mirrored(path: str, config: SamplingConfig) -> bool:
    """Whether the first frame is to be shown as in a mirror, which no rotation comes to."""
    container, stream = _open(path, config)
    with container, suppress(*_DECODE_ERRORS):
        return any(orientation_of(frame).is_mirrored for frame in islice(container.decode(stream), 1))
    return False


def _decode_ranges(path: str, seek_ranges: Sequence[SeekRange], config: SamplingConfig) -> DecodedFrames | None:
    """Decodes the wanted frames of some ranges of a video, kept by their index in it.

    Returns:
        None at the first sign that the file does not keep to its timeline: an error, even one that the decoder only
        logs, a corrupt frame, a frame that never comes, a wrongly marked key frame.
    """
    keep = _FrameCollector(config)
    container, stream = _open(path, config)
    with container, ffmpeg_log() as log:
        try:
            if seek_ranges[0].key_pts is not None:
                container.seek(seek_ranges[0].key_pts, stream=stream)
            packets = container.demux(stream)
            is_complete = all(_decode_seek_range(packets, stream, seek_range, keep, log) for seek_range in seek_ranges)
        except _DECODE_ERRORS:
            return None
    return keep.frames() if is_complete else None


def _decode_seek_range(
    packets: Iterator[av.Packet],
    stream: VideoStream,
    seek_range: SeekRange,
    keep: _FrameCollector,
    log: list[LogLine],
) -> bool:
    """Whether all of its frames came as announced; the next range goes on with the packets that are left."""
    num_missing = len(seek_range.wanted)
    for frame in _decode_from(packets, stream, seek_range, log):
        if frame is None or frame.is_corrupt:
            return False
        if frame.pts is not None and frame.pts in seek_range.wanted:
            keep.add(seek_range.wanted[frame.pts], frame)
            num_missing -= 1
        if not num_missing:
            return True
    return False


def _decode_from(
    packets: Iterator[av.Packet], stream: VideoStream, seek_range: SeekRange, log: list[LogLine]
) -> Iterator[VideoFrame | None]:
    """Decodes in order from a key frame on; None where there is no key frame after all, and at an error."""
    key_pts = seek_range.key_pts
    if key_pts is None:
        start = next(packets)
        if not start.is_keyframe:
            yield None
        yield from _decode_skipping(chain([start], packets), stream, seek_range.wanted, log)
        return
    stream.codec_context.flush_buffers()  # of the range before: as after a seek
    frames = _decode_skipping(dropwhile(lambda packet: packet.pts != key_pts, packets), stream, seek_range.wanted, log)
    # Frames of an open GOP that are shown before its key frame refer to the GOP before it: they come out damaged.
    shown = dropwhile(lambda frame: frame is not None and (frame.pts is None or frame.pts < key_pts), frames)
    first = next(shown, None)
    if first is None or first.pts != key_pts or not first.key_frame:
        yield None
        return
    yield first
    yield from shown


def _decode_skipping(
    packets: Iterable[av.Packet], stream: VideoStream, wanted: Container[int], log: list[LogLine]
) -> Iterator[VideoFrame | None]:
    """Decodes in order, None at an error; FFmpeg leaves out what is neither wanted nor referred to, where it can."""
    context = stream.codec_context
    can_skip = context.name in _SKIPPABLE_CODECS
    for packet in packets:
        if can_skip:
            context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in wanted else "NONREF"
        log.clear()
        frames = packet.decode()
        yield from [None] if has_error(log) else frames


def _decode_all(path: str, wanted: Collection[int], config: SamplingConfig) -> tuple[DecodeTally, DecodedFrames]:
    """Decodes every frame, over errors, and keeps those whose place in the decoder's output is wanted.

    A damaged frame spoils those up to the next key frame, which refer to it: the decoder shows something for them, but
    not what was filmed.
    """
    keep = _FrameCollector(config)
    steps: list[_Step] = []
    shown: list[tuple[_Step, int | None]] = []
    container, stream = _open(path, config)
    stream.codec_context.copy_opaque = True  # each frame then tells which packet it came in
    with container, ffmpeg_log() as log:
        for packet in _packets_to_first_error(container, stream):
            if packet is not None:
                steps.append(_Step(packet.pts, bool(packet.is_keyframe)))
                packet.opaque = steps[-1]  # PyAV keys it by its identity: no small number, which others use too
            log.clear()
            frames = _decode_over_errors(stream, packet)
            if steps and (frames is None or has_error(log)):
                steps[-1].is_bad = True
            for frame in frames or ():
                if len(shown) in wanted:
                    keep.add(len(shown), frame)
                shown.append((_note_frame(steps, frame), frame.pts))
    begins_late = any(step.is_key for step in steps) and not (steps[0].is_key_packet or steps[0].is_key)
    _mark_dependent_frames(steps, begins_late)
    good = [(ordinal, pts) for ordinal, (step, pts) in enumerate(shown) if not step.is_bad]
    bad = [step.pts for step in steps if step.is_bad]
    return DecodeTally(good, frozenset(bad), len(bad), begins_late), keep.frames()


@dataclass(slots=True)
class _Step:
    """A packet in decoding order: whether its frame can start a group of pictures, and whether it is not faithful."""

    pts: int | None
    is_key_packet: bool
    is_key: bool = False
    is_bad: bool = False


def _note_frame(steps: list[_Step], frame: VideoFrame) -> _Step:
    step = frame.opaque if isinstance(frame.opaque, _Step) else steps[-1]
    step.is_key = step.is_key or bool(frame.key_frame)
    step.is_bad = step.is_bad or frame.is_corrupt
    return step


def _mark_dependent_frames(steps: Sequence[_Step], is_lost: bool) -> None:
    """Marks what refers to a bad frame, or to what came before the file begins, up to the next sound key frame."""
    was_lost, key_pts = False, None  # of the group of pictures before
    for step in steps:
        if step.is_key and not step.is_bad:
            was_lost, is_lost, key_pts = is_lost, False, step.pts
        elif key_pts is not None and step.pts is not None and step.pts < key_pts:
            # Shown before the key frame that it follows: it may refer to the group before, and no later one to it.
            step.is_bad = was_lost = step.is_bad or was_lost
        else:
            step.is_bad = is_lost = step.is_bad or is_lost


def _packets_to_first_error(container: av.container.InputContainer, stream: VideoStream) -> Iterator[av.Packet | None]:
    """Yields the packets that can be read whole, then None, which makes the decoder hand out what it holds back."""
    with suppress(av.error.FFmpegError):  # the timeline knows the error already
        yield from (packet for packet in container.demux(stream) if packet.size and not packet.is_corrupt)
    yield None


def _decode_over_errors(stream: VideoStream, packet: av.Packet | None) -> list[VideoFrame] | None:
    """Returns the frames that come out with a packet, or None if it does not decode."""
    try:
        return stream.decode(packet)
    except av.error.EOFError:
        return []
    except _DECODE_ERRORS:
        return None


class _FrameCollector:
    """Resizes each wanted frame at once: 64 full frames side by side would take several hundred megabytes."""

    def __init__(self, config: SamplingConfig) -> None:
        self._max_pixels = config.max_pixels
        self._resizer = FrameResizer(config.image_size)
        self._size_px = (0, 0)
        self.by_key: dict[int, np.ndarray] = {}

    def add(self, key: int, frame: VideoFrame) -> None:
        """Resizes and keeps a frame.

        Raises:
            UndecodableClip: it has more pixels than allowed.
        """
        check_dimensions(frame.width, frame.height, self._max_pixels)
        if not self.by_key:
            self._size_px = upright_size(frame)
        self.by_key[key] = self._resizer.resize(frame)

    def frames(self) -> DecodedFrames:
        """Returns what was kept."""
        return DecodedFrames(self.by_key, *self._size_px)


def _open(path: str, config: SamplingConfig) -> tuple[av.container.InputContainer, VideoStream]:
    container = open_container(path)
    return container, pick_video_stream(container, path, config.max_pixels)
