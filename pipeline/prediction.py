"""Predicts a start of `annotate`, follows what earlier runs took, and lays what came beside what was predicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from framescribe.llava_video.model.prompts import PromptTokenizer
from framescribe.llava_video.model.roofline import ClipLoad
from framescribe.storage.errors import InputError
from framescribe.storage.journal import DamagedRunError, RunRecord, read_part
from framescribe.storage.output import open_output
from pipeline.config import CannotStart, RunConfig, describe_sampling
from pipeline.cost import (
    RELEASED_7B,
    Basis,
    Measured,
    Tier,
    compare,
    count_tier,
    measure,
    predict,
    price,
    read_measured,
)
from pipeline.found import FoundOutput
from pipeline.machines import find_machine, read_machines
from pipeline.start import AnnotateRequest, StartPlan
from pipeline.survey import Survey
from schemas.part_rows import read_workers
from transforms.canary import CANARY_CLIPS, CANARY_DURATION_S, CANARY_PROMPTS, CANARY_TIMES_S, MAX_NEW_TOKENS
from transforms.worker import count_cores


def make_basis(plan: StartPlan, has_model: bool, survey: Survey | None, measured: Measured | None) -> Basis:
    """Returns what the tiers of a plan are counted from.

    Args:
        has_model: whether the model's configuration is to be read; else it is the released 7B model.
    """
    config = plan.request.config
    return Basis(
        model=plan.model if has_model else RELEASED_7B,
        sampling=config.sampling,
        tokenizer=PromptTokenizer(plan.checkpoint, config.engine.prompt_layout) if has_model else None,
        survey=survey,
        measured=measured,
        measured_recipe=None if measured is None else config.recipe,
    )


def find_measured(
    request: AnnotateRequest, own: RunRecord | None, calibrate_from: str | None = None
) -> Measured | None:
    """Returns what a run of the same recipe and frames took: of the run that is named, or of the output's own.

    Raises:
        FileNotFoundError: no run was started there.
        CannotStart: it has other settings, or says nothing.
    """
    if calibrate_from is None:
        fits = own is not None and not _list_differences(own, request.config)
        return read_measured(own.measured) if own is not None and fits else None
    found = FoundOutput(open_output(calibrate_from, request.config.storage_options))
    address = found.store.address("")
    if found.record is None:
        raise FileNotFoundError(f"no run in {address}: --calibrate-from takes the --output of an earlier run")
    differing = _list_differences(found.record, request.config)
    if differing:
        raise CannotStart(
            f"{address} tells nothing of this run, since it had {' and '.join(differing)}: give the same, or calibrate "
            "from another run"
        )
    measured = read_measured(found.record.measured)
    if measured is None:
        raise CannotStart(
            f"{address} says nothing of what it took: it has not ended, took all its answers from another run, or its "
            "runner counts nothing. A run with --limit is enough"
        )
    return measured


def _list_differences(recorded: RunRecord, config: RunConfig) -> list[str]:
    then = recorded.settings
    sampling = {**describe_sampling(config.sampling), "image_size": None}
    pairs = {
        "another recipe": (then.get("recipe"), config.recipe.to_dict()),
        "other frames": ({**then.get("sampling", {}), "image_size": None}, sampling),
        "other windows (--split-seconds)": (then.get("split_s"), config.split_s),
    }
    return [name for name, (before, now) in pairs.items() if before != now]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a start was predicted to take, made before its first clip.

    Attributes:
        basis: of which `measured` is an earlier run of the same settings, or None.
        seconds: None where no run was followed.
    """

    basis: Basis
    tier: Tier
    num_clips: int
    seconds: float | None


def predict_start(plan: StartPlan) -> Prediction | None:
    """Predicts the work of a start; None where nobody can tell how many clips will be asked about.

    That is so where answers are taken from another run, and for windows that are not cut yet.
    """
    request = plan.request
    num_clips = _count_asked(plan)
    if request.reuse_from is not None or plan.redone or not num_clips:
        return None
    own = None if request.overwrite else plan.found.record
    measured = find_measured(request, own)
    basis = make_basis(plan, True, None, measured)
    seconds = None if measured is None else measured.predict_s(num_clips, request.config.workers.prefetch_clips)
    return Prediction(basis, count_tier(basis, request.config.recipe), num_clips, seconds)


def _count_asked(plan: StartPlan) -> int:
    if plan.request.config.split_s is not None and any(not unit.picks or None in unit.picks for unit in plan.todo):
        return 0
    return sum(plan.failed_clips.get(unit.unit_id, unit.num_clips) for unit in plan.todo) - plan.num_answered_before


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a start took, and each figure beside what was predicted, for run.json."""

    measured: Measured
    compared: Mapping[str, Mapping[str, float]]


def settle(
    plan: StartPlan, prediction: Prediction | None, counters: Mapping[str, int], seconds: float
) -> Outcome | None:
    """Lays what came beside what was predicted; None where the workers counted nothing.

    On a GPU of the table of machines costs are told as well, and of a start that followed no run the modelled time.
    """
    config = plan.request.config
    num_decoders = config.workers.num_decoder_processes or count_cores()
    measured = measure(counters, seconds, num_decoders, _find_device(plan), plan.record.fingerprint)
    if measured is None:
        return None
    basis = make_basis(plan, True, None, None) if prediction is None else prediction.basis
    num_canary = _count_canary_clips(config, counters)
    measured = measured.without(_load_of_canary(basis, num_canary), num_canary)
    if measured is None or prediction is None:
        return None if measured is None else Outcome(measured, {})
    predicted_s = prediction.seconds
    machine = find_machine(read_machines(plan.request.machines), measured.device)
    if predicted_s is None and machine is not None:
        modelled = price(basis, prediction.tier, machine, prediction.num_clips, 0, config.workers.prefetch_clips)
        predicted_s = modelled.wall_s or None
    compared = compare(predict(prediction.tier, prediction.num_clips, predicted_s), measured)
    if machine is not None and "seconds" in compared:
        price_per_s = machine.price_per_hour / 3600
        compared["cost"] = {name: round(value * price_per_s, 4) for name, value in compared["seconds"].items()}
    return Outcome(measured, compared)


def _find_device(plan: StartPlan) -> str:
    for unit in plan.todo[:1]:
        try:
            workers: list[Any] = read_workers(read_part(plan.store, unit.unit_id, []).schema)  # Any: JSON values
        except (FileNotFoundError, DamagedRunError, InputError):
            continue
        return str(workers[0].get("device", "")) if workers else ""
    return ""


def _count_canary_clips(config: RunConfig, counters: Mapping[str, int]) -> int:
    """Returns how many of the clips that the model saw were the canary's: those that nobody sampled."""
    if not config.workers.canary_every:
        return 0
    num_not_sampled = counters["engine.encoded_clips"] - counters.get("framescribe.clips_sampled", 0)
    if not counters.get("framescribe.answers_reused"):
        return max(0, num_not_sampled)
    # Clips whose answers are all known are sampled and not seen by the model: one check of one worker is assumed.
    return len(CANARY_CLIPS)


def _load_of_canary(basis: Basis, num_clips: int) -> ClipLoad:
    """Returns what so many clips of the canary are for the model, in all."""
    if basis.tokenizer is None:
        return ClipLoad(0, 0, 0, 0, 0, 0)
    prefix = basis.tokenizer.video_prefix(CANARY_TIMES_S, CANARY_DURATION_S)
    num_video = basis.model.num_video_tokens(len(CANARY_TIMES_S))
    questions = sum(len(basis.tokenizer.video_question(prompt)) for prompt in CANARY_PROMPTS)
    return ClipLoad(
        num_frames=num_clips,  # they are still: one frame of each is encoded
        num_prefix_tokens=num_clips * (num_video + len(prefix.before_video) + len(prefix.after_video)),
        num_prompts=num_clips * len(CANARY_PROMPTS),
        num_question_tokens=num_clips * questions,
        num_answer_tokens=num_clips * (MAX_NEW_TOKENS + 2),  # a description that is cut off, and a number
        longest_tokens=MAX_NEW_TOKENS,
    )


def record_outcome(record: RunRecord, outcome: Outcome | None) -> dict[str, Any]:  # Any: JSON values
    """Returns the fields of run.json that say what a start took; what an earlier one took stays where none does."""
    if outcome is None:
        return {"measured": record.measured, "predicted": {}}
    return {"measured": asdict(outcome.measured), "predicted": dict(outcome.compared)}
