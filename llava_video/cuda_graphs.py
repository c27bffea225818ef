"""Replays decoding steps as CUDA graphs, one for each shape that comes often; other devices just run them."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from llava_video.kv_cache import PrefixKV
from llava_video.static_decode import StaticDecoder, StepShape, sizes_of, view_numbers
from llava_video.tasks import QuestionTask

_log = logging.getLogger(__name__)

_CAPTURE_AFTER = 8
"""Steps of one shape before it is captured: shapes that pass by, as while clips join, are not worth a graph."""

_MOST_SHAPES = 64
"""Shapes that are remembered, with their graphs: those used last."""

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
        self.chosen: Tensor | None = None

    def upload(self) -> None:
        """Copies the host's numbers; every step ends by reading its ids, so no copy is still under way."""
        self._buffer.copy_(self.host, non_blocking=True)
        self.penalties.copy_(self.host_penalties, non_blocking=True)


class GraphedDecoder:
    """Runs the static decoder's steps, captured where that pays."""

    def __init__(self, decoder: StaticDecoder, device: torch.device) -> None:
        self._decoder, self._device = decoder, device
        self._steps: OrderedDict[StepShape, _Step] = OrderedDict()
        self._captures = device.type == "cuda"
        self._memory: tuple[int, int] | None = None
        self._stream: torch.cuda.Stream | None = None
        self._failed_graph: torch.cuda.CUDAGraph | None = None  # the allocator may still refer to it

    def hold_text(self, prefix: PrefixKV) -> None:
        """Takes the prefix of questions without a video."""
        self._decoder.text = prefix

    def forget_graphs(self) -> None:
        """Drops all graphs: what they read is about to move."""
        self._steps.clear()

    def decode(self, questions: Sequence[QuestionTask]) -> list[int]:
        """Feeds each row its last id and returns the next one of each; `questions` are sorted by video."""
        shape = self._decoder.shape_of(questions)
        step = self._find_step(shape)
        self._decoder.write_numbers(questions, shape, step.host.numpy())
        step.host_penalties[: len(questions)] = torch.tensor([question.repetition_penalty for question in questions])
        step.upload()
        return self._run(step)[: len(questions)].tolist()

    def _find_step(self, shape: StepShape) -> _Step:
        step = self._steps.pop(shape, None) or _Step(shape, self._device)
        self._steps[shape] = step
        if len(self._steps) > _MOST_SHAPES:
            self._steps.popitem(last=False)
        return step

    def _run(self, step: _Step) -> Tensor:
        step.num_runs += 1
        if step.graph is None and step.num_runs > _CAPTURE_AFTER and self._captures:
            self._capture(step)
        if step.graph is None or step.chosen is None:
            return self._decoder.run(step.numbers, step.penalties, step.shape.has_text)
        step.graph.replay()
        return step.chosen

    def _capture(self, step: _Step) -> None:
        """Records a step without running it. Whatever goes wrong, steps still run one kernel after the other."""
        if all(other.graph is None for other in self._steps.values()):
            self._memory = torch.cuda.graph_pool_handle()  # the last one went with the last graph in it
        # One of its own: PyTorch's default for captures lies on the GPU that captured first.
        self._stream = self._stream or torch.cuda.Stream(self._device)
        graph, usual = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        try:
            # Thread-local: other threads may pin memory or load clips meanwhile.
            with (
                _capturing,
                torch.cuda.graph(graph, self._memory, self._stream, capture_error_mode="thread_local"),
            ):
                step.chosen = self._decoder.run(step.numbers, step.penalties, step.shape.has_text)
            step.graph = graph
        except RuntimeError as error:
            step.chosen, self._failed_graph, self._captures = None, graph, False
            torch.cuda.set_stream(usual)  # a capture that cannot be ended leaves its own as the current one
            _log.warning("no more CUDA graphs, further shapes of steps run kernel by kernel: %s", error)
