"""The decoder process: takes one clip after another and can be killed at any moment.

Run by `framescribe.decoding.pool` alone.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from framescribe.decoding import sample
from framescribe.decoding.child_process import (
    ConnectionClosed,
    Json,
    path_of,
    receive_message,
    send_message,
    write_frames,
)
from framescribe.decoding.config import SamplingConfig, TimeWindow, UndecodableClip
from framescribe.decoding.sampling import SampledFrames
from framescribe.digests import digest_frames

SampleVideo = Callable[[str, TimeWindow, SamplingConfig], tuple[SampledFrames, str]]
# Libraries and thread stacks reserve addresses they never touch; the parent watches what is really resident.
_ADDRESS_SPACE_MARGIN_BYTES = 2 << 30
_MAX_LOG_BYTES = 1 << 20
_SOUND_VIDEO = Path(__file__).with_name("self_check.mp4")  # three grey frames of H.264, made with PyAV
_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves requests until the parent closes the connection."""
    parser = argparse.ArgumentParser(prog="python -m framescribe.decoding.child", description=__doc__)
    parser.add_argument("--connection", type=int, required=True, help="descriptor of the socket to the parent")
    parser.add_argument("--parent", type=int, required=True, help="process id of the parent")
    parser.add_argument("--memory-limit-bytes", type=int, required=True)
    parser.add_argument(
        "--sample-with", default="framescribe.decoding.sample:sample_video", help="module:function; tests use it"
    )
    options = parser.parse_args(arguments)
    _die_with_parent(options.parent)
    _limit_resources(options.memory_limit_bytes)
    module, function = options.sample_with.split(":")
    sample_video: SampleVideo = getattr(importlib.import_module(module), function)
    # Whatever breaks all decoding here, such as a PyAV of another interface, must not be taken for bad clips.
    sample.sample_video(str(_SOUND_VIDEO), TimeWindow(), SamplingConfig())
    with socket.socket(fileno=options.connection) as connection:
        _serve(connection, sample_video)
    return 0


def _serve(connection: socket.socket, sample_video: SampleVideo) -> None:
    send_message(connection, {"ready": True})
    while True:
        try:
            request, descriptors = receive_message(connection)
        except ConnectionClosed:
            return
        try:
            reply = _answer(request, descriptors, sample_video)
        except UndecodableClip as error:
            reply = {"reason": error.reason, "message": error.message}
        except MemoryError as error:
            reply = {"reason": "out of memory", "message": f"the decoder met its memory limit: {error}"}
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        send_message(connection, reply)


def _answer(request: dict[str, Json], descriptors: list[int], sample_video: SampleVideo) -> dict[str, Json]:
    config = SamplingConfig(**request["config"])  # type: ignore[arg-type]  # the parent's own asdict(SamplingConfig)
    path = path_of(descriptors[-1]) if request["path"] is None else str(request["path"])
    if request["task"] == "probe":
        return {"duration_s": sample.probe_duration_s(path, config)}
    if request["task"] == "header":
        return asdict(sample.read_header(path, config))
    window = TimeWindow(request["start_s"], request["end_s"])  # type: ignore[arg-type]  # numbers or None, from the parent
    sampled, decoder = sample_video(path, window, config)
    return _hand_over(sampled, decoder, descriptors[0])


def _hand_over(sampled: SampledFrames, decoder: str, descriptor: int) -> dict[str, Json]:
    """Lays the frames into shared memory, repeats included, and describes them."""
    frames = [sampled.frames[index] for index in sampled.frame_indices]
    _limit_file_size(None)
    write_frames(descriptor, frames)
    _limit_file_size(_MAX_LOG_BYTES)
    return {
        "frame_indices": list(sampled.frame_indices),
        "timestamps_s": list(sampled.timestamps_s),
        "duration_s": sampled.duration_s,
        "frames_digest": digest_frames(frames),
        "decoder": decoder,
        "width_px": sampled.width_px,
        "height_px": sampled.height_px,
        "decoded_fraction": sampled.decoded_fraction,
    }


def _die_with_parent(parent: int) -> None:
    """Has Linux kill this process with its parent; elsewhere the closed connection ends it between two clips."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        raise SystemExit("the parent is gone")


def _limit_resources(memory_limit_bytes: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # While it decodes, its log is all it may write; frames it hands over are never more than its memory.
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_LOG_BYTES, max(memory_limit_bytes, _MAX_LOG_BYTES)))
    if sys.platform == "linux":
        limit = memory_limit_bytes + _ADDRESS_SPACE_MARGIN_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _limit_file_size(num_bytes: int | None) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most if num_bytes is None else num_bytes, most))


if __name__ == "__main__":
    sys.exit(main())
