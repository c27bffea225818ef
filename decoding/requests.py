"""Puts a clip to a decoder process and makes a record of what comes back, whatever it is."""

from __future__ import annotations

import dataclasses
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from decoding import shared_memory
from decoding.child_process import ChildFailed
from decoding.config import SamplingConfig
from decoding.errors import UndecodableClip
from decoding.seat import Seat
from decoding.wire import Json
from schemas.records import Clip, FailedClip, SampledClip, Sampling, Stage


def sample_clip(seat: Seat, clip: Clip, config: SamplingConfig) -> SampledClip | FailedClip:
    """Samples one clip; a video that cannot be decoded, or harms its decoder, becomes a FailedClip."""
    try:
        return _sample(seat, clip, config)
    except (ChildFailed, UndecodableClip) as error:
        return FailedClip(clip.ref, Stage.DECODE, error.reason, error.message)


def probe_duration_s(seat: Seat, video: bytes | Path, config: SamplingConfig) -> float:
    """Returns the seconds from a video's first frame to the end of its last.

    Raises:
        UndecodableClip: that cannot be told.
    """
    try:
        with _lend(video) as (path, descriptors):
            return float(_ask(seat, {"task": "probe", "path": path}, descriptors, config)["duration_s"])
    except ChildFailed as error:
        raise UndecodableClip(error.reason, error.message) from error


def _sample(seat: Seat, clip: Clip, config: SamplingConfig) -> SampledClip:
    with ExitStack() as stack:
        frames_memory = shared_memory.allocate(config.frames_bytes)
        stack.callback(os.close, frames_memory)
        path, descriptors = stack.enter_context(_lend(clip.video))
        request: dict[str, Json] = {"task": "sample", "path": path}
        request |= {"start_s": clip.ref.start_s, "end_s": clip.ref.end_s}
        reply = _ask(seat, request, [frames_memory, *descriptors], config)
        sampling = _read_sampling(reply)
        shape = (len(sampling.frame_indices), config.image_size, config.image_size, 3)
        return SampledClip(clip.ref, sampling, shared_memory.map_frames(frames_memory, shape))


def _ask(
    seat: Seat, request: dict[str, Json], descriptors: list[int], config: SamplingConfig
) -> dict[str, Any]:  # Any: JSON
    reply = seat.ask(request | {"config": dataclasses.asdict(config)}, descriptors)
    if "reason" in reply:
        raise UndecodableClip(str(reply["reason"]), str(reply["message"]))
    return reply


@contextmanager
def _lend(video: bytes | Path) -> Iterator[tuple[str | None, list[int]]]:
    """Yields the path of a video file, or None and the descriptor of memory that holds the video."""
    if isinstance(video, Path):
        yield _check_file(video), []
        return
    if not shared_memory.HAS_MEMORY_FILES:
        with tempfile.NamedTemporaryFile(suffix=".video") as file:
            file.write(video)
            file.flush()
            yield file.name, []
        return
    descriptor = shared_memory.store(video)
    try:
        yield None, [descriptor]
    finally:
        os.close(descriptor)


def _check_file(path: Path) -> str:
    """Pipes and devices never end, and opening one may block: only regular files are read."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UndecodableClip("file cannot be read", f"{path.name}: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise UndecodableClip("not a regular file", f"{path.name} is a pipe, a device or a folder")
    return str(path.resolve())


def _read_sampling(reply: Mapping[str, Any]) -> Sampling:  # Any: JSON from `decoding.child`
    try:
        return _to_sampling(reply)
    except (KeyError, TypeError) as error:
        raise ChildFailed("decoder crashed", f"its reply makes no sense: {reply!r:.200}") from error


def _to_sampling(reply: Mapping[str, Any]) -> Sampling:  # Any: as above
    return Sampling(
        frame_indices=tuple(reply["frame_indices"]),
        timestamps_s=tuple(reply["timestamps_s"]),
        duration_s=reply["duration_s"],
        frames_digest=reply["frames_digest"],
        decoder=reply["decoder"],
        width_px=reply["width_px"],
        height_px=reply["height_px"],
        decoded_share=reply["decoded_share"],
    )
