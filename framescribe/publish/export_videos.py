"""Cuts clips out of their videos, and takes the frames that the model saw, at their own shape."""

from __future__ import annotations

import io
import shutil
from collections.abc import Collection, Iterator, Sequence
from enum import Enum
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
from av.container import InputContainer, OutputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from framescribe.decoding.config import SamplingConfig, TimeWindow, UndecodableClip
from framescribe.decoding.decode import read_video_timeline
from framescribe.decoding.demux import open_container, pick_video_stream
from framescribe.decoding.resize import AS_STORED, orientation_of
from framescribe.decoding.timeline import Timeline

# Codecs whose packets an mp4 file takes as they are, and that players and trainers read from it.
_COPIED_CODECS = frozenset({"h264", "hevc", "mpeg4", "av1", "libdav1d", "libaom-av1", "vp9", "libvpx-vp9"})
_X264 = {"crf": "18", "preset": "medium"}  # hard to tell from the source
_THREADS = 4  # a fixed number: x264 writes other bytes with another
_JPEG_QUALITY = 90
_MAX_PIXELS = SamplingConfig().max_pixels
_ERRORS = (av.error.FFmpegError, ValueError)


class Cut(str, Enum):
    """How the video of a clip was made."""

    WHOLE = "whole"  # the file as it is
    COPIED = "cut without loss"
    ENCODED = "cut and encoded again"


def write_clip_video(video: Path, window: TimeWindow, target: Path) -> tuple[Path, Cut]:
    """Writes the clip beside `target`, with the extension that its container has, and says how.

    A whole video is copied. A window is copied packet by packet, without loss, where its first frame is a key frame
    and no frame outside of it is needed; else it is encoded again as H.264. Windows are written without sound.

    Raises:
        UndecodableClip: no video, no frame in the window, or the frames of the window do not decode.
    """
    timeline = read_video_timeline(str(video), _MAX_PIXELS)
    low, high = timeline.frames_in(window)
    if low == high:
        raise UndecodableClip(
            "window outside of the video", f"no frame between {window.start_s} s and {window.end_s} s"
        )
    if (low, high) == (0, len(timeline.times_s)):
        path = target.with_suffix(video.suffix or _extension_of(timeline))
        shutil.copyfile(video, path)
        return path, Cut.WHOLE
    path = target.with_suffix(".mp4")
    if _may_copy(timeline, low) and _copy_packets(video, timeline, low, high, path):
        return path, Cut.COPIED
    _encode_frames(video, timeline, low, high, path)
    return path, Cut.ENCODED


def read_frames(video: Path, indices: Collection[int], max_side_px: int) -> list[bytes]:
    """Returns frames of a video as JPEG, in order, each once, upright; none is enlarged.

    Args:
        indices: of the frames, counted from the start of the video; those that do not decode are left out.
        max_side_px: a frame with a longer side is made smaller.

    Raises:
        UndecodableClip: none of them decodes.
    """
    timeline = read_video_timeline(str(video), _MAX_PIXELS)
    wanted = {index for index in indices if index < len(timeline.pts)}
    frames = _iterate_frames(video, timeline, min(wanted), max(wanted) + 1) if wanted else ()
    taken = [_to_jpeg(frame, max_side_px) for index, frame in frames if index in wanted]
    if not taken:
        raise UndecodableClip("no frames", "none of the frames that the model saw decodes any more")
    return taken


def take_evenly(indices: Sequence[int], max_frames: int | None) -> list[int]:
    """Returns the distinct indices, increasing, at most `max_frames` of them, the first and the last among them."""
    distinct = sorted(set(indices))
    if max_frames is None or len(distinct) <= max_frames:
        return distinct
    return [distinct[i] for i in np.linspace(0, len(distinct) - 1, max_frames, dtype=int)]


def _extension_of(timeline: Timeline) -> str:
    names = timeline.container.split(",")
    return next((f".{name}" for name in ("mp4", "avi", "mpegts", "flv", "ogg", "gif") if name in names), ".mkv")


def _may_copy(timeline: Timeline, low: int) -> bool:
    first = timeline.pts[low]
    return (
        timeline.codec in _COPIED_CODECS
        and timeline.is_sound
        and not timeline.has_discarded
        and bool(np.isin(first, timeline.key_pts))
    )


def _copy_packets(video: Path, timeline: Timeline, low: int, high: int, path: Path) -> bool:
    """Copies the packets of the frames; returns False, and leaves no file, where others lie between them."""
    wanted = {int(pts) for pts in timeline.pts[low:high]}
    with open_container(str(video)) as source, av.open(str(path), "w") as target:
        is_whole = _copy_into(target, source, str(video), int(timeline.pts[low]), wanted)
    if not is_whole:
        path.unlink()
    return is_whole


def _copy_into(target: OutputContainer, source: InputContainer, name: str, first: int, wanted: set[int]) -> bool:
    stream = pick_video_stream(source, name, _MAX_PIXELS)
    track = target.add_stream_from_template(stream)
    source.seek(first, stream=stream)
    has_begun = False
    try:
        for packet in source.demux(stream):
            has_begun = has_begun or packet.pts == first
            if not has_begun:
                continue
            if packet.pts not in wanted or packet.dts is None:
                return False
            wanted.remove(packet.pts)
            packet.pts, packet.dts, packet.stream = packet.pts - first, packet.dts - first, track
            target.mux(packet)
            if not wanted:
                return True
    except _ERRORS:  # the muxer does not take what the demuxer found
        return False
    return False


def _encode_frames(video: Path, timeline: Timeline, low: int, high: int, path: Path) -> None:
    rate = timeline.average_rate or timeline.rate or Fraction(25)
    start_s = float(timeline.times_s[low])
    time_base = Fraction(1, 90_000)
    with av.open(str(path), "w") as target:
        track: VideoStream | None = None
        for index, frame in _iterate_frames(video, timeline, low, high):
            pixels = _upright(frame)
            if track is None:
                track = target.add_stream("libx264", rate=rate, options=_X264)
                track.height, track.width = pixels.shape[:2]
                track.pix_fmt = "yuv444p" if pixels.shape[0] % 2 or pixels.shape[1] % 2 else "yuv420p"
                track.codec_context.thread_count = _THREADS
                track.codec_context.time_base = time_base
            shown = VideoFrame.from_ndarray(pixels, "rgb24")
            shown.pts = round((float(timeline.times_s[index]) - start_s) / time_base)
            shown.time_base = time_base
            target.mux(track.encode(shown))
        if track is None:
            raise UndecodableClip("no frames", "none of the frames of the window decodes")
        target.mux(track.encode())


def _iterate_frames(video: Path, timeline: Timeline, low: int, high: int) -> Iterator[tuple[int, VideoFrame]]:
    """Yields index and frame of the frames [low, high) that decode, in the order in which they are shown."""
    by_pts = {int(timeline.pts[index]): index for index in range(low, high)} if timeline.is_sound else None
    with open_container(str(video)) as container:
        stream = pick_video_stream(container, str(video), _MAX_PIXELS)
        key_pts = timeline.key_before(int(timeline.pts[low])) if by_pts is not None else None
        try:
            if key_pts is not None:
                container.seek(key_pts, stream=stream)
            for number, frame in enumerate(container.decode(stream)):
                index = number if by_pts is None or frame.pts is None else by_pts.get(frame.pts)
                if index is not None and low <= index < high:
                    yield index, frame
                if index is not None and index >= high - 1:
                    return
        except _ERRORS as error:
            raise UndecodableClip("damaged", f"a frame of the clip does not decode: {error}") from None


def _upright(frame: VideoFrame) -> np.ndarray:
    """uint8 [H, W, 3] RGB as it is to be shown."""
    pixels, orientation = frame.to_ndarray(format="rgb24"), orientation_of(frame)
    if orientation == AS_STORED:
        return pixels
    columns, rows = -1 if orientation.mirrors_columns else 1, -1 if orientation.mirrors_rows else 1
    turned = pixels[::rows, ::columns]
    return np.ascontiguousarray(turned.transpose(1, 0, 2) if orientation.is_transposed else turned)


def _to_jpeg(frame: VideoFrame, max_side_px: int) -> bytes:
    picture = Image.fromarray(_upright(frame))
    picture.thumbnail((max_side_px, max_side_px), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=_JPEG_QUALITY)
    return stream.getvalue()
