"""One decode of a video from its start, keeping the pictures of the frames that are wanted."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import dropwhile

import av.container
import av.error
import numpy as np
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from decoding.config import SamplingConfig
from decoding.containers import check_dimensions, open_container, pick_video_stream
from decoding.ffmpeg_log import ffmpeg_log
from decoding.pictures import FrameResizer, Pictures, upright_size
from decoding.stretches import Stretch

# Codecs whose frames that no other frame refers to are left out by FFmpeg without touching the rest.
_SKIPPABLE_CODECS = ("h264", "hevc")
_BEFORE_ALL = -(1 << 63)
# ValueError is what PyAV 19 raises once a decoder could not be opened, over bad headers for instance.
_DECODE_ERRORS = (av.error.FFmpegError, ValueError)


@dataclass(frozen=True, slots=True)
class Census:
    """What a decode of every frame gave.

    Attributes:
        good: (place in the decoder's output, presentation timestamp) of each faithful frame, in output order.
        num_bad: packets that did not decode, frames the decoder calls corrupt, and frames predicted from those.
    """

    good: list[tuple[int, int | None]] = field(default_factory=list)
    num_bad: int = 0


def decode_announced(path: str, stretches: Sequence[Stretch], config: SamplingConfig) -> Pictures | None:
    """Decodes the frames that are wanted of some stretches of a video, kept by their index in it.

    Returns:
        None at the first sign that the file does not keep to its timeline: an error, a corrupt frame, a frame that
        never comes, a key frame that is none.
    """
    keep = _Keeper(config)
    container, stream = _open(path, config)
    with container, ffmpeg_log():
        try:
            if stretches[0].key_pts is not None:
                container.seek(stretches[0].key_pts, stream=stream)
            packets = container.demux(stream)
            is_complete = all(_decode_stretch(packets, stream, stretch, keep) for stretch in stretches)
        except _DECODE_ERRORS:
            return None
    return keep.pictures() if is_complete else None


def _decode_stretch(packets: Iterator[av.Packet], stream: VideoStream, stretch: Stretch, keep: _Keeper) -> bool:
    """Whether all of its frames came as announced; the next stretch goes on with the packets that are left."""
    num_missing = len(stretch.wanted)
    for frame in _decode_from(packets, stream, stretch):
        if frame is None or frame.is_corrupt:
            return False
        if frame.pts is not None and frame.pts in stretch.wanted:
            keep.add(stretch.wanted[frame.pts], frame)
            num_missing -= 1
        if not num_missing:
            return True
    return False


def decode_all(path: str, wanted: Collection[int], config: SamplingConfig) -> tuple[Census, Pictures]:
    """Decodes every frame, over errors, and keeps those whose place in the decoder's output is wanted.

    After a loss, the frames up to the next key frame are predicted from a picture that is not there: the decoder shows
    something for them, but not what was filmed. They count as bad.
    """
    keep = _Keeper(config)
    good: list[tuple[int, int | None]] = []
    losses = _Losses()
    num_bad = ordinal = 0
    container, stream = _open(path, config)
    with container, ffmpeg_log():
        for packet, frames in _decode_over_errors(container, stream):
            if frames is None:
                num_bad += 1
                losses.add(None if packet is None else packet.pts)
            for frame in frames or ():
                if losses.spare(frame):
                    good.append((ordinal, frame.pts))
                    if ordinal in wanted:
                        keep.add(ordinal, frame)
                else:
                    num_bad += 1
                ordinal += 1
    return Census(good, num_bad), keep.pictures()


class _Losses:
    """Follows which frames are predicted from one that was lost."""

    def __init__(self) -> None:
        self._last_pts: int | None = None  # of the last frame lost, until a key frame makes up for it

    def add(self, pts: int | None) -> None:
        """Notes a lost frame; without a timestamp, any key frame that follows makes up for it."""
        self._last_pts = max(self._last_pts or _BEFORE_ALL, _BEFORE_ALL if pts is None else pts)

    def spare(self, frame: VideoFrame) -> bool:
        """Whether a frame, next in the decoder's output, shows what was filmed."""
        if frame.is_corrupt:
            # Seldom does another frame refer to a damaged B-frame: what follows it is as sound as before.
            if frame.pict_type != PictureType.B:
                self.add(frame.pts)
            return False
        # The decoder holds frames back: a key frame from before the loss may come out after it.
        if frame.key_frame and self._last_pts is not None and (frame.pts is None or frame.pts > self._last_pts):
            self._last_pts = None
        return self._last_pts is None or bool(frame.key_frame)


class _Keeper:
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

    def pictures(self) -> Pictures:
        """Returns what was kept."""
        return Pictures(self.by_key, *self._size_px)


def _open(path: str, config: SamplingConfig) -> tuple[av.container.InputContainer, VideoStream]:
    container = open_container(path)
    return container, pick_video_stream(container, path, config.max_pixels)


def _decode_from(packets: Iterator[av.Packet], stream: VideoStream, stretch: Stretch) -> Iterator[VideoFrame | None]:
    """Decodes in order from a key frame on; None where there is no key frame after all."""
    key_pts = stretch.key_pts
    if key_pts is None:
        yield from _decode_skipping(packets, stream, stretch.wanted)
        return
    stream.codec_context.flush_buffers()  # of the stretch before: as after a seek
    frames = _decode_skipping(dropwhile(lambda packet: packet.pts != key_pts, packets), stream, stretch.wanted)
    # Frames of an open GOP that are shown before its key frame refer to the GOP before it: they come out damaged.
    shown = dropwhile(lambda frame: frame.pts is None or frame.pts < key_pts, frames)
    first = next(shown, None)
    if first is None or first.pts != key_pts or not first.key_frame:
        yield None
        return
    yield first
    yield from shown


def _decode_skipping(packets: Iterable[av.Packet], stream: VideoStream, wanted: Container[int]) -> Iterator[VideoFrame]:
    """Decodes in order; frames that are neither wanted nor referred to by others are left out where FFmpeg can."""
    context = stream.codec_context
    can_skip = context.name in _SKIPPABLE_CODECS
    for packet in packets:
        if can_skip:
            context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in wanted else "NONREF"
        yield from packet.decode()


def _decode_over_errors(
    container: av.container.InputContainer, stream: VideoStream
) -> Iterator[tuple[av.Packet | None, list[VideoFrame] | None]]:
    """Yields each packet and the frames that come out with it, or None for frames if it does not decode."""
    for packet in _packets_to_first_error(container, stream):
        try:
            yield packet, stream.decode(packet)
        except av.error.EOFError:
            return
        except _DECODE_ERRORS:
            yield packet, None


def _packets_to_first_error(container: av.container.InputContainer, stream: VideoStream) -> Iterator[av.Packet | None]:
    """Yields the packets that can be read whole, then None, which makes the decoder hand out what it holds back."""
    with suppress(av.error.FFmpegError):  # the timeline knows the error already
        yield from (packet for packet in container.demux(stream) if packet.size and not packet.is_corrupt)
    yield None
