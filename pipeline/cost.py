"""Predicts what a run takes: tokens, GPU hours, wall time and cost, from shapes and rates or from an earlier run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from framescribe.decoding.config import SamplingConfig
from framescribe.llava_video.model.config import LanguageConfig, ModelConfig, TowerConfig
from framescribe.llava_video.model.prompts import PromptTokenizer
from framescribe.llava_video.model.roofline import ClipLoad, ClipWork, count_clip_work, model_seconds
from framescribe.recipes.recipe import Recipe
from pipeline.expected import ExpectedAsks, expect_asks
from pipeline.machines import Machine
from pipeline.survey import Survey, count_frames

# Of lmms-lab/LLaVA-Video-7B-Qwen2, for a `plan` without --model.
RELEASED_7B = ModelConfig(
    tower=TowerConfig(),
    language=LanguageConfig(3584, 18944, 28, 28, 4, 152_064, 1e6, 1e-6, 32_768, tie_word_embeddings=False),
    pool_mode="bilinear",
    newline_position="grid",
    patch_merge_type="spatial_unpad",
    max_length=32_768,
    adds_im_patch_token=False,
    add_faster_video=False,
    faster_token_stride=10,
)
USUAL_LENGTH_S = 30.0  # of a clip whose headers nobody read
# Tokens of the text around the video, and of each frame's time, in the model card's layout.
_TEXT_TOKENS, _TIME_TOKENS = 45, 5.5
DECODE_S_PER_PIXEL = 3e-9  # processor time per decoded pixel of H.264 of one core, resize included: 720p and 1080p
_OUTPUT_BYTES_PER_CLIP, _OUTPUT_BYTES_PER_TOKEN = 4_000, 14  # parts and tables, compressed


@dataclass(frozen=True, slots=True)
class Measured:
    """What a run took, as its counters say; stands in run.json and calibrates later predictions.

    Attributes:
        num_clips: that the model saw; 0 where all answers were taken from another run.
        seconds: wall time from the first unit to the last part, loading the model included.
        busy_s: of the engine's thread, waiting not counted, and `answer_s` of them for writing answers token by token;
            decode_s: of all decoder processes together.
        num_decoders: decoder processes at once.
        device: as the parts have it; empty where it is not known.
        fingerprint: of the settings.
    """

    num_clips: int
    num_frames: int
    num_prompts: int
    prefix_tokens: int
    question_tokens: int
    answer_tokens: int
    seconds: float
    busy_s: float
    answer_s: float
    decode_s: float
    num_decoders: int
    bytes_read: int
    device: str = ""
    fingerprint: str = ""

    @property
    def num_tokens(self) -> int:
        """All tokens that passed the language model."""
        return self.prefix_tokens + self.question_tokens + self.answer_tokens

    @property
    def load(self) -> ClipLoad:
        """What a clip had in the mean."""
        return ClipLoad(
            num_frames=self.num_frames / self.num_clips,
            num_prefix_tokens=self.prefix_tokens / self.num_clips,
            num_prompts=self.num_prompts / self.num_clips,
            num_question_tokens=self.question_tokens / self.num_clips,
            num_answer_tokens=self.answer_tokens / self.num_clips,
            longest_tokens=self.answer_tokens / max(1, self.num_prompts),  # at least; `count_tier` knows better
        )

    def without(self, load: ClipLoad, num_clips: int) -> Measured | None:
        """Returns it without what was asked about other clips than the input's; None where nothing is left."""
        if self.num_clips <= num_clips:
            return None
        return replace(
            self,
            num_clips=self.num_clips - num_clips,
            num_frames=max(0, self.num_frames - round(load.num_frames)),
            num_prompts=max(0, self.num_prompts - round(load.num_prompts)),
            prefix_tokens=max(0, self.prefix_tokens - round(load.num_prefix_tokens)),
            question_tokens=max(0, self.question_tokens - round(load.num_question_tokens)),
            answer_tokens=max(0, self.answer_tokens - round(load.num_answer_tokens)),
        )

    def start_s(self, num_ahead: int) -> float:
        """Returns the seconds in which nothing was annotated: workers and model started, first clips were decoded."""
        return max(0.0, self.seconds - self._work_s(self.num_clips, num_ahead))

    def predict_s(self, num_clips: float, num_ahead: int) -> float:
        """Returns the wall time of another run on the same machines, with as many clips at once in the model."""
        work_s = self._work_s(self.num_clips, num_ahead)
        # Of several workers the sums are more than the wall time: then all of that goes with the clips.
        scale = min(1.0, self.seconds / work_s) if work_s else 0.0
        return self.start_s(num_ahead) + scale * self._work_s(num_clips, num_ahead)

    def _work_s(self, num_clips: float, num_ahead: int) -> float:
        """Seconds of the model or of decoding, whichever takes longer; answers are written for all clips at once."""
        share = num_clips / self.num_clips
        rounds = max(1.0, num_clips / num_ahead) / max(1.0, self.num_clips / num_ahead)
        model_s = (self.busy_s - self.answer_s) * share + self.answer_s * rounds
        return max(model_s, self.decode_s * share / max(1, self.num_decoders))


def measure(
    counters: Mapping[str, int], seconds: float, num_decoders: int, device: str, fingerprint: str
) -> Measured | None:
    """Returns what a run took by its counters; None where the model saw no clip or the runner counts nothing."""
    engine = {name.removeprefix("engine."): value for name, value in counters.items() if name.startswith("engine.")}
    if not engine.get("encoded_clips"):
        return None
    busy = ("encode_milliseconds", "prefill_milliseconds", "question_milliseconds", "decode_milliseconds")
    return Measured(
        num_clips=engine["encoded_clips"],
        num_frames=engine.get("encoded_frames", 0),
        num_prompts=engine.get("questions", 0),
        prefix_tokens=engine.get("prefilled_tokens", 0),
        question_tokens=engine.get("question_tokens", 0),
        answer_tokens=engine.get("generated_tokens", 0),
        seconds=round(seconds, 3),
        busy_s=round(sum(engine.get(name, 0) for name in busy) / 1000, 3),
        answer_s=engine.get("decode_milliseconds", 0) / 1000,
        decode_s=counters.get("framescribe.decode_milliseconds", 0) / 1000,
        num_decoders=num_decoders,
        bytes_read=counters.get("framescribe.bytes_read", 0),
        device=device,
        fingerprint=fingerprint,
    )


def read_measured(content: Mapping[str, Any]) -> Measured | None:  # Any: JSON of run.json
    """Returns what run.json says that a run took; None where it says nothing, or something else."""
    try:
        measured = Measured(**content)
    except TypeError:
        return None
    return measured if measured.num_clips > 0 else None


@dataclass(frozen=True, slots=True)
class Tier:
    """What a recipe asks of the clips.

    Attributes:
        load: of a clip in the mean.
        work: of such a clip for the model.
    """

    recipe: str
    load: ClipLoad
    work: ClipWork

    @property
    def tokens_per_clip(self) -> float:
        """Tokens that pass the language model."""
        return self.load.num_prefix_tokens + self.load.num_question_tokens + self.load.num_answer_tokens


@dataclass(frozen=True, slots=True)
class Basis:
    """What tiers are counted from.

    Attributes:
        tokenizer: None where no model was read; then tokens of texts are guessed from their length.
        measured: a run of the same settings; its recipe is `measured_recipe`.
    """

    model: ModelConfig
    sampling: SamplingConfig
    tokenizer: PromptTokenizer | None = None
    survey: Survey | None = None
    measured: Measured | None = None
    measured_recipe: Recipe | None = None

    @property
    def length_s(self) -> float:
        """Seconds of a clip in the mean."""
        lengths = [length_s for clip in self.survey.sound for length_s in clip.windows_s] if self.survey else []
        return sum(lengths) / len(lengths) if lengths else USUAL_LENGTH_S

    @property
    def cpu_s_per_clip(self) -> float:
        """Processor seconds of decoding per clip: measured, or modelled from the pixels of a whole clip."""
        if self.measured is not None and self.measured.decode_s:
            return self.measured.decode_s / self.measured.num_clips
        pixels = [
            clip.header.width_px * clip.header.height_px * (clip.header.frames_per_s or 25) * length_s
            for clip in (self.survey.sound if self.survey else ())
            if clip.header is not None
            for length_s in clip.windows_s
        ]
        return DECODE_S_PER_PIXEL * sum(pixels) / len(pixels) if pixels else 1.0


def count_tier(basis: Basis, recipe: Recipe) -> Tier:
    """Counts what a recipe asks; a run of another recipe still says what a clip is, and how long answers are."""
    load = _expected_load(basis, recipe)
    if basis.measured is not None and basis.measured_recipe is not None:
        seen, expected = basis.measured.load, _expected_load(basis, basis.measured_recipe)
        ratios = {
            name: getattr(seen, name) / getattr(expected, name) if getattr(expected, name) else 1.0
            for name in ("num_prompts", "num_question_tokens", "num_answer_tokens")
        }
        scaled = {name: getattr(load, name) * ratio for name, ratio in ratios.items()}
        scaled["longest_tokens"] = load.longest_tokens * ratios["num_answer_tokens"]
        load = replace(load, **scaled, num_frames=seen.num_frames, num_prefix_tokens=seen.num_prefix_tokens)
    num_ids = basis.model.language.vocab_size
    work = count_clip_work(basis.model, round(load.num_frames), round(load.num_prefix_tokens), num_ids)
    return Tier(recipe.name, load, work)


def _expected_load(basis: Basis, recipe: Recipe) -> ClipLoad:
    asks = _expected_asks(basis, recipe)
    frames = [count_frames(*one, basis.sampling) for one in _list_lengths(basis.survey)]
    prefixes = [_count_prefix(basis, num_frames, times_s, times_s[-1]) for num_frames, _, times_s in frames]
    return ClipLoad(
        num_frames=sum(unique for _, unique, _ in frames) / len(frames),
        num_prefix_tokens=sum(prefixes) / len(prefixes),
        num_prompts=asks.num_prompts,
        num_question_tokens=asks.num_question_tokens,
        num_answer_tokens=asks.num_answer_tokens,
        longest_tokens=asks.longest_tokens,
    )


def _expected_asks(basis: Basis, recipe: Recipe) -> ExpectedAsks:
    count = None if basis.tokenizer is None else partial(_count_question, basis.tokenizer)
    return expect_asks(recipe, basis.length_s, count)


def _count_question(tokenizer: PromptTokenizer, question: str) -> int:
    return len(tokenizer.video_question(question))


def _list_lengths(survey: Survey | None) -> list[tuple[float, float]]:
    """Returns length in seconds and frame rate of every clip that was looked at."""
    clips = survey.sound if survey else ()
    listed = [
        (length_s, clip.header.frames_per_s) for clip in clips if clip.header is not None for length_s in clip.windows_s
    ]
    return listed or [(USUAL_LENGTH_S, 25.0)]


def _count_prefix(basis: Basis, num_frames: int, times_s: tuple[float, ...], duration_s: float) -> float:
    num_video = basis.model.num_video_tokens(num_frames)
    if basis.tokenizer is None:
        return num_video + _TEXT_TOKENS + _TIME_TOKENS * num_frames
    prefix = basis.tokenizer.video_prefix(times_s, duration_s)
    return num_video + len(prefix.before_video) + len(prefix.after_video)


@dataclass(frozen=True, slots=True)
class MachineCost:
    """What a run takes on one machine.

    Attributes:
        clips_per_s: of the whole machine.
        cores_per_gpu: that decoding needs to keep a GPU busy.
        limit: `model`, `decoding` or `network`; `memory` where the model does not fit one GPU, and nothing is told.
        is_measured: whether it follows a run on such a GPU, and not the model of one.
    """

    machine: Machine
    limit: str
    clips_per_s: float = 0.0
    gpu_hours: float = 0.0
    wall_s: float = 0.0
    cost: float = 0.0
    cores_per_gpu: float = 0.0
    network_gbit_per_s: float = 0.0
    is_measured: bool = False


def price(
    basis: Basis, tier: Tier, machine: Machine, num_clips: float, bytes_per_clip: float, num_ahead: int
) -> MachineCost:
    """Predicts a run of so many clips on a machine; of several GPUs each has an engine of its own."""
    gpu = machine.model_gpu(tier.work.weight_bytes)
    if gpu is None:
        return MachineCost(machine, "memory")
    measured = basis.measured if basis.measured and machine.gpu.lower() in basis.measured.device.lower() else None
    clip_s = model_seconds(tier.work, tier.load, gpu, num_ahead).total
    if measured is not None:
        seen = replace(measured.load, longest_tokens=tier.load.longest_tokens)
        of_measured = model_seconds(tier.work, seen, gpu, num_ahead).total
        clip_s *= measured.busy_s / measured.num_clips / of_measured
    rates = {
        "model": machine.gpus / clip_s,
        "decoding": machine.cpu_cores / basis.cpu_s_per_clip if basis.cpu_s_per_clip else float("inf"),
        "network": machine.network_gbit_per_s * 1e9 / 8 / bytes_per_clip if bytes_per_clip else float("inf"),
    }
    limit = min(rates, key=lambda name: rates[name])
    wall_s = num_clips / rates[limit] + (measured.start_s(num_ahead) if measured else 0.0)
    return MachineCost(
        machine=machine,
        limit=limit,
        clips_per_s=rates[limit],
        gpu_hours=wall_s * machine.gpus / 3600,
        wall_s=wall_s,
        cost=wall_s / 3600 * machine.price_per_hour,
        cores_per_gpu=basis.cpu_s_per_clip / clip_s,
        network_gbit_per_s=bytes_per_clip * rates[limit] * 8 / 1e9,
        is_measured=measured is not None,
    )


def output_bytes(tier: Tier, num_clips: float) -> float:
    """Returns about how much a run writes: parts and tables."""
    texts = tier.load.num_question_tokens + tier.load.num_answer_tokens
    return num_clips * (_OUTPUT_BYTES_PER_CLIP + _OUTPUT_BYTES_PER_TOKEN * texts)


def compare(predicted: Mapping[str, float], actual: Measured) -> dict[str, dict[str, float]]:
    """Returns what was predicted beside what came, for run.json."""
    came: dict[str, Any] = {**asdict(actual), "num_tokens": actual.num_tokens}
    return {name: {"predicted": value, "actual": came[name]} for name, value in predicted.items() if name in came}


def predict(tier: Tier, num_clips: float, seconds: float | None) -> dict[str, float]:
    """Returns the totals of a run, by the names that `Measured` has for them."""
    load = tier.load
    totals = {
        "num_clips": num_clips,
        "num_prompts": load.num_prompts * num_clips,
        "prefix_tokens": load.num_prefix_tokens * num_clips,
        "question_tokens": load.num_question_tokens * num_clips,
        "answer_tokens": load.num_answer_tokens * num_clips,
        "num_tokens": tier.tokens_per_clip * num_clips,
    }
    return {name: round(value) for name, value in totals.items()} | (
        {} if seconds is None else {"seconds": round(seconds, 1)}
    )


def describe_comparison(compared: Mapping[str, Mapping[str, float]]) -> str | None:
    """Returns `predicted 4,100 tokens in 12 s, actual 4,212 (+3 %) in 13 s (+8 %)`, or None where nothing was."""
    shown = [("num_tokens", "tokens", "{:,.0f}"), ("seconds", "s", "{:,.0f}"), ("cost", "cost", "{:,.2f}")]
    parts = [
        f"{form.format(compared[name]['predicted'])} -> {form.format(compared[name]['actual'])} {noun}"
        f" ({_write_change(compared[name])})"
        for name, noun, form in shown
        if name in compared
    ]
    return f"predicted -> actual: {', '.join(parts)}" if parts else None


def _write_change(pair: Mapping[str, float]) -> str:
    return f"{100 * (pair['actual'] / pair['predicted'] - 1):+.0f} %" if pair["predicted"] else "nothing predicted"
