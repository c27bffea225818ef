"""Replays decoding steps as CUDA graphs, one for each shape that comes often; other devices just run them."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import prod
from typing import Any

import torch

from framescribe.llava_video.attention.kv_cache import PrefixKV
from framescribe.llava_video.attention.static_decode import (
    Chosen,
    StaticDecoder,
    StepRow,
    StepShape,
    sizes_of,
    view_numbers,
)

_log = logging.getLogger(__name__)

CAPTURE_AFTER = 8
_capturing = threading.Lock()
"""PyTorch captures one graph at a time in a process."""


class _Step:
    """The buffers of one shape, on the host and on the device, and its graph once it has one."""

    def __init__(self, shape: StepShape, device: torch.device) -> None:
        self.shape = shape
        is_pinned = device.type == "cuda"
        self.host = torch.zeros(sum(map(prod, sizes_of(shape))), dtype=torch.long, pin_memory=is_pinned)
        self.host_penalties = torch.ones(shape.rows, pin_memory=is_pinned)
        self._buffer, self.penalties = self.host.to(device), self.host_penalties.to(device)
        self.numbers = view_numbers(self._buffer, shape)
        self.num_runs = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.may_be_captured = True
        self.chosen: Chosen | None = None

    def upload(self) -> None:
        """Copies the host's numbers; every step ends by reading its ids, so no copy is still under way."""
        self._buffer.copy_(self.host, non_blocking=True)
        self.penalties.copy_(self.host_penalties, non_blocking=True)


class GraphedDecoder:
    """Runs the static decoder's steps, captured where that pays.

    Attributes:
        decoder: what runs the steps.
        captures: whether steps are captured at all; given up after several that could not be.
        num_steps, num_replays: steps, and those of them that replayed a graph.
        num_captures, capture_s: graphs that were made, and the seconds they took.
    """

    def __init__(
        self,
        decoder: StaticDecoder,
        device: torch.device,
        *,
        capture_after: int = CAPTURE_AFTER,
        most_shapes: int = 64,
        most_failures: int = 8,
    ) -> None:
        """Captures nothing yet.

        Args:
            capture_after: steps of one shape before it is captured: shapes that pass by, as while clips join, are not
                worth a graph.
            most_shapes: that are remembered, with their graphs: those used last.
            most_failures: shapes in a row that could not be captured before no more are tried: it is not the shape.
        """
        self.decoder, self._device = decoder, device
        self._capture_after, self._most_shapes, self._most_failures = capture_after, most_shapes, most_failures
        self._steps: OrderedDict[StepShape, _Step] = OrderedDict()
        self.captures = device.type == "cuda"
        self._memory: tuple[int, int] | None = None
        self._stream: torch.cuda.Stream | None = None
        self._num_failed = 0
        self.num_steps = self.num_replays = self.num_captures = 0
        self.capture_s = 0.0

    def hold_text(self, prefix: PrefixKV) -> None:
        """Takes the prefix of questions without a video."""
        self.decoder.text = prefix

    def forget_graphs(self) -> None:
        """Drops all graphs: what they read is about to move."""
        self._steps.clear()

    def decode(self, rows: Sequence[StepRow]) -> Chosen:
        """Feeds each row its last id and returns the next ones, with what pads the shape after them.

        Args:
            rows: those of one clip side by side.
        """
        shape = self.decoder.shape_of(rows)
        step = self._find_step(shape)
        self.decoder.write_numbers(rows, shape, step.host.numpy())
        step.host_penalties[: len(rows)] = torch.tensor([row.penalty for row in rows])
        step.upload()
        return self._run(step)

    def _find_step(self, shape: StepShape) -> _Step:
        step = self._steps.pop(shape, None) or _Step(shape, self._device)
        self._steps[shape] = step
        if len(self._steps) > self._most_shapes:
            self._steps.popitem(last=False)
        return step

    def _run(self, step: _Step) -> Chosen:
        step.num_runs += 1
        self.num_steps += 1
        is_due = step.num_runs > self._capture_after
        if self.captures and is_due and step.graph is None and step.may_be_captured:
            self._capture(step)
        if step.graph is None or step.chosen is None:
            return self.decoder.run(step.numbers, step.penalties, step.shape)
        self.num_replays += 1
        step.graph.replay()
        return step.chosen

    def _capture(self, step: _Step) -> None:
        """Records a step without running it. Whatever goes wrong, it still runs one kernel after the other."""
        if all(other.graph is None for other in self._steps.values()):
            self._memory = torch.cuda.graph_pool_handle()  # the last one went with the last graph in it
        # One of its own: PyTorch's default for captures lies on the GPU that captured first.
        self._stream = self._stream or torch.cuda.Stream(self._device)
        graph, started = torch.cuda.CUDAGraph(), time.perf_counter()
        try:
            step.chosen = _record(
                graph, self._memory, self._stream, lambda: self.decoder.run(step.numbers, step.penalties, step.shape)
            )
            step.graph, self._num_failed = graph, 0
            self.num_captures += 1
            self.capture_s += time.perf_counter() - started
        except RuntimeError as error:
            step.chosen, step.may_be_captured = None, False
            self._num_failed += 1
            self.captures = self._num_failed < self._most_failures
            _log.warning("no CUDA graph for %s, such steps run kernel by kernel: %s", step.shape, error)


def _record(graph: torch.cuda.CUDAGraph, memory: Any, stream: torch.cuda.Stream, run: Callable[[], Chosen]) -> Chosen:
    """Captures what `run` launches and returns its result, which replaying fills.

    Not by `torch.cuda.graph`: that empties the allocator's caches first, so that the next prefill takes all its memory
    from the driver again, and it leaves a capture that broke half open.
    """
    torch.cuda.synchronize(stream.device)
    with _capturing, torch.cuda.stream(stream):
        try:
            # Thread-local: other threads may pin memory or load clips meanwhile.
            graph.capture_begin(pool=memory, capture_error_mode="thread_local")
            result = run()
            graph.capture_end()
        except RuntimeError:
            _leave_capture(graph, memory, stream)
            raise
    return result


def _leave_capture(graph: torch.cuda.CUDAGraph, memory: Any, stream: torch.cuda.Stream) -> None:
    """Ends a capture that broke: `capture_end` raises before it tells the allocator, which then frees nothing more."""
    with suppress(RuntimeError):
        graph.capture_end()
    with suppress(RuntimeError):  # where it was told
        torch._C._cuda_endAllocateToPool(stream.device.index, memory)
        torch._C._cuda_releasePool(stream.device.index, memory)
