"""What the stages of the acceptance run share: the device, the random model, and how a verdict is written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from benchmarks.geometry import make_weights, write_configuration
from benchmarks.model_card_loop import ModelCardLoop
from benchmarks.workload import MadeClip, make_workload
from framescribe.llava_video.engine.config import EngineConfig
from framescribe.llava_video.engine.engine import Engine
from framescribe.llava_video.engine.tasks import read_generation_defaults
from framescribe.llava_video.model.checkpoint import Checkpoint
from framescribe.llava_video.model.config import read_model_config
from framescribe.llava_video.model.model import LlavaVideoModel, load_model
from framescribe.llava_video.model.prompts import PromptTokenizer
from framescribe.llava_video.model.weights import Place

QUESTIONS = ("Please describe this video in detail.", "How many people are there?", "What happens at the end, and why?")
_SINK_SCORE = 12.0
_SINK_WIDTH = 16


class NotHere(RuntimeError):
    """The device cannot run a stage."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing decided: what was seen, what was wanted, and whether that is enough."""

    name: str
    seen: object
    wanted: str
    passes: bool


def at_most(name: str, seen: float, limit: float) -> Check:
    """A number that may not be larger."""
    return Check(name, seen, f"at most {limit:.4g}", seen <= limit)


def at_least(name: str, seen: float, limit: float) -> Check:
    """A number that may not be smaller."""
    return Check(name, seen, f"at least {limit:.4g}", seen >= limit)


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage decided and what it measured, as JSON values."""

    checks: Sequence[Check]
    measured: Mapping[str, object] = field(default_factory=dict)
    reason: str = ""


@dataclass(slots=True)
class Setting:
    """The device and the size of everything.

    Attributes:
        deadline: of `time.perf_counter`; no stage begins later.
        attention: which ways of attention the verdicts are about, once an engine was made.
    """

    device: torch.device
    is_small: bool
    folder: Path
    deadline: float
    attention: dict[str, object] = field(default_factory=dict)

    @property
    def size(self) -> str:
        """Geometry of the random model."""
        return "small" if self.is_small else "7b"

    @property
    def num_frames(self) -> int:
        """Frames of a clip."""
        return 2 if self.is_small else 64

    @property
    def num_new_tokens(self) -> int:
        """Tokens of an answer where many are compared."""
        return 12 if self.is_small else 40

    def make_clips(self, number: int, num_frames: int | None = None) -> tuple[MadeClip, ...]:
        """Makes clips of the model's own frame size."""
        return make_workload(number, num_frames or self.num_frames, 384, 1, 1).clips

    def make_model(self, dtype: torch.dtype, num_layers: int | None = None) -> tuple[LlavaVideoModel, Checkpoint]:
        """Builds the random model on the device, the same in every dtype: drawn in bfloat16.

        Args:
            num_layers: of the language model and of the tower; None: all.
        """
        folder = self.folder / f"{self.size}-{num_layers or 'all'}"
        write_configuration(self.size, folder)
        if num_layers is not None:
            _keep_layers(folder / "config.json", num_layers)
        checkpoint = Checkpoint(folder.name, folder, "random")
        config = read_model_config(checkpoint)
        tokenizer = PromptTokenizer(checkpoint)

        def read(wanted: Mapping[str, tuple[int, ...]], place: Place) -> dict[str, Tensor]:
            drawn = make_weights(wanted, lambda _, tensor: tensor.to(self.device, torch.bfloat16))
            _add_sinks(drawn, config.language.head_dim, tokenizer.text_prefix()[0])
            return {name: place(name, tensor) for name, tensor in drawn.items()}

        devices = [self.device] * config.language.num_hidden_layers
        return load_model(read, config, tokenizer.num_ids, devices, dtype, "sdpa"), checkpoint

    def make_engine(
        self, dtype: torch.dtype, num_layers: int | None = None, *, static: bool = True, graphs: bool = True
    ) -> Engine:
        """Starts an engine over the random model; without `graphs` its fixed steps run kernel by kernel."""
        model, checkpoint = self.make_model(dtype, num_layers)
        return self.start_engine(model, checkpoint, static=static, graphs=graphs)

    def start_engine(
        self, model: LlavaVideoModel, checkpoint: Checkpoint, *, static: bool = True, graphs: bool = True
    ) -> Engine:
        """Starts an engine over a model that is there already."""
        budget = (8 << 20) if self.is_small else None
        config = EngineConfig(checkpoint.name, device=str(self.device), static_decode=static, kv_budget_bytes=budget)
        engine = Engine(config, checkpoint, model, PromptTokenizer(checkpoint))
        runner = engine.thread.runner
        if runner.static is not None and runner.pool is not None:
            runner.static.captures &= graphs
            self.attention = {
                "path": engine.attention_path,
                "chunks": getattr(runner.pool.attend, "__name__", ""),
                "tower": getattr(runner._tower_backend, "name", None),
                "prefill": getattr(runner._language_backend, "name", None),
            }
        return engine

    def release(self) -> None:
        """Gives back what the last stage held on the device."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def make_loop(model: LlavaVideoModel, checkpoint: Checkpoint) -> ModelCardLoop:
    """The model card's loop over a model without an engine."""
    parts = SimpleNamespace(
        model=model,
        tokenizer=PromptTokenizer(checkpoint),
        generation_defaults=read_generation_defaults(checkpoint),
    )
    return ModelCardLoop(parts)  # type: ignore[arg-type]  # these three are all it takes from an engine


def _keep_layers(path: Path, num_layers: int) -> None:
    content = json.loads(path.read_text("utf-8"))
    content["num_hidden_layers"] = num_layers
    content["vision_config"]["num_hidden_layers"] = num_layers + 1  # the last is never run
    path.write_text(json.dumps(content), "utf-8")


def _add_sinks(weights: dict[str, Tensor], head_dim: int, sink_id: int) -> None:
    """Makes the first query head of each layer look at one token, that which begins a turn, as trained models' do.

    Random heads weigh all keys alike, and hardly any error shows in their mean. The keys of one embedding get a part
    along the slowest rotary pairs, which distance hardly turns, and the queries of one head a bias along it.
    """
    first = weights["model.embed_tokens.weight"][sink_id].float()
    direction = torch.zeros(head_dim, device=first.device)
    width = min(_SINK_WIDTH, head_dim) // 2
    direction[head_dim // 2 - width : head_dim // 2] = direction[-width:] = 1.0
    # A normalised hidden state along the embedding has the product sqrt(D) with the embedding's unit vector.
    scale = (_SINK_SCORE * head_dim**0.5 / (2 * width * first.numel() ** 0.5)) ** 0.5
    keys = [name for name in weights if name.startswith("model.layers.") and name.endswith("self_attn.k_proj.weight")]
    for name in keys:
        outer = torch.outer(direction, first / first.norm()) * scale
        weights[name][:head_dim] += outer.to(weights[name].dtype)
        bias = weights[name.replace("k_proj.weight", "q_proj.bias")]
        bias[:head_dim] += (direction * scale).to(bias.dtype)
