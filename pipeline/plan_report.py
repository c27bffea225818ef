"""What `plan` says of a run before it is paid for, as lines for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from framescribe.decoding.config import SamplingConfig, VideoHeader
from framescribe.recipes import load_recipe
from pipeline.cost import (
    RELEASED_7B,
    Basis,
    MachineCost,
    Measured,
    Tier,
    count_tier,
    output_bytes,
    price,
)
from pipeline.machines import Machine, read_machines
from pipeline.prediction import find_measured, make_basis
from pipeline.progress import write_count, write_size
from pipeline.start import StartPlan
from pipeline.survey import TRAINED_S, Interval, Survey, survey_clips
from transforms.worker import WorkerConfig

TIERS = ("captions", "detailed", "full")
_FRAMES = {
    "64": SamplingConfig(max_frames=64),
    "1 per second, at most 64": SamplingConfig(max_frames=64, fps=1.0),
    "16": SamplingConfig(max_frames=16),
}
_AHEAD = WorkerConfig().prefetch_clips
_MAX_SHOWN = 4
_SCALES = ((86_400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


@dataclass(frozen=True, slots=True)
class PlanReport:
    """All figures of a plan; totals are those of the clips that are still to be annotated.

    Attributes:
        num_clips: that the start takes, and `num_todo` of them; windows of `--split-seconds` count, as surveyed.
        measured: the run that the figures follow; None where all are modelled. On its machine it takes
            `same_machine_s`.
        model: whose shapes they are.
    """

    num_clips: float
    num_done: int
    num_todo: float
    limited: str
    survey: Survey | None
    recipe: str
    tiers: tuple[Tier, ...]
    machines: tuple[MachineCost, ...]
    measured: Measured | None
    same_machine_s: float | None
    output_bytes: float
    model_bytes: float
    model: str
    sampling: SamplingConfig
    size_bytes: int

    @property
    def chosen(self) -> Tier:
        """The tier of the run's own recipe."""
        return next(tier for tier in self.tiers if tier.recipe == self.recipe)


def make_report(
    plan: StartPlan, machines: Sequence[Machine], calibrate_from: str | None, has_model: bool, has_output: bool
) -> PlanReport:
    """Surveys the inputs and predicts the run.

    Args:
        has_model: whether the model's configuration is to be read; else it is the released 7B model.
        has_output: whether there is an output to look for finished units.

    Raises:
        CannotStart: the run to calibrate from has other settings, or says nothing.
    """
    request = plan.request
    config = request.config
    survey = survey_clips(plan.reader, plan.shards, config.units, config.sampling, config.split_s)
    measured = find_measured(request, plan.found.record if has_output else None, calibrate_from)
    basis = make_basis(plan, has_model, survey, measured)
    recipes = {name: load_recipe(name) for name in TIERS} | {config.recipe.name: config.recipe}
    tiers = {name: count_tier(basis, recipe) for name, recipe in recipes.items()}
    own = tiers[config.recipe.name]
    num_done, num_todo = _count_clips(plan, survey, has_output)
    num_listed = sum(unit.num_clips for unit in plan.all_units)
    bytes_per_clip = sum(unit.size_bytes for unit in plan.all_units) / max(1, num_listed)
    num_ahead = config.workers.prefetch_clips
    costs = [price(basis, own, one, num_todo, bytes_per_clip, num_ahead) for one in machines]
    return PlanReport(
        num_clips=num_done + num_todo,
        num_done=num_done,
        num_todo=num_todo,
        limited=plan.limited.describe() if plan.limited else "",
        survey=survey,
        recipe=config.recipe.name,
        tiers=tuple(tiers.values()),
        machines=tuple(costs),
        measured=measured,
        same_machine_s=None if measured is None else measured.predict_s(num_todo, num_ahead),
        output_bytes=output_bytes(own, num_todo),
        model_bytes=own.work.weight_bytes,
        model=config.engine.model if has_model else "lmms-lab/LLaVA-Video-7B-Qwen2, by its published shapes",
        sampling=config.sampling,
        size_bytes=round(bytes_per_clip * survey.num_listed),
    )


def _count_clips(plan: StartPlan, survey: Survey, has_output: bool) -> tuple[int, float]:
    """Returns clips that are done and those to do; windows of clips that were not cut yet as many as surveyed ones."""
    todo = plan.todo if has_output else plan.units
    split_s = plan.request.config.split_s
    num_done = plan.num_windows_done if has_output else 0
    if split_s is None:
        return num_done, sum(unit.num_clips for unit in todo)
    per_clip = survey.total(lambda clip: len(clip.windows_s)).value / max(1, len(survey.sound)) if survey.sound else 1
    per_clip *= len(survey.clips) / max(1, survey.num_listed)
    whole = sum(1 if windows is None else 0 for unit in todo for windows in unit.picks or (None,) * unit.num_clips)
    picked = sum(unit.num_clips for unit in todo) - whole
    return num_done, picked + whole * max(1.0, per_clip)


def render(report: PlanReport) -> Iterator[str]:
    """Yields the report as aligned lines."""
    yield from _render_inputs(report)
    yield ""
    yield from _render_tiers(report)
    yield ""
    yield from _render_machines(report)
    yield ""
    yield _describe_basis(report)


def to_json(report: PlanReport) -> dict[str, Any]:  # Any: JSON
    """Returns the report as JSON values."""
    survey = report.survey
    content = asdict(report)
    content.pop("survey")
    for tier, chosen in zip(content["tiers"], report.tiers, strict=True):
        tier["tokens_per_clip"] = chosen.tokens_per_clip
        tier["tokens"] = chosen.tokens_per_clip * report.num_todo
    if survey is not None:
        content["survey"] = {
            "clips_looked_at": len(survey.clips),
            "clips_listed": survey.num_listed,
            "hours": asdict(_hours(survey)),
            "will_fail": asdict(survey.failures()),
            "longer_than_trained": asdict(survey.long_clips()),
            "reasons": dict(survey.reasons()),
            "sizes": dict(survey.mix(_write_dimensions)),
            "codecs": dict(survey.mix(lambda header: header.codec)),
        }
    return content


def _render_inputs(report: PlanReport) -> Iterator[str]:
    survey = report.survey
    todo = f", {report.num_done:,} done before, {report.num_todo:,.0f} to do" if report.num_done else ""
    of = f" ({report.limited})" if report.limited else ""
    yield f"clips      {'' if float(report.num_clips).is_integer() else 'about '}{report.num_clips:,.0f}{todo}{of}"
    if survey is None:
        return
    looked = "all clips" if survey.is_whole else f"{len(survey.clips):,} of {survey.num_listed:,} clips"
    size = f", {write_size(report.size_bytes)}" if report.size_bytes else ""
    yield f"video      {_write_interval(_hours(survey), '.2f', survey)} h{size}; by the headers of {looked}"
    yield f"sizes      {_write_mix(survey.mix(_write_dimensions))}"
    yield f"codecs     {_write_mix(survey.mix(lambda header: header.codec))}"
    reasons = ", ".join(f"{reason} {number:,}" for reason, number in survey.reasons().most_common(_MAX_SHOWN))
    yield f"will fail  {_write_interval(survey.failures(), ',.0f', survey)}{f': {reasons}' if reasons else ''}"
    if (long_clips := survey.long_clips()).value:
        yield (
            f"long       {_write_interval(long_clips, ',.0f', survey)} longer than {TRAINED_S} s, the longest that the "
            f"model saw in LLaVA-Video-178K: --split-seconds {TRAINED_S} cuts them"
        )


def _render_tiers(report: PlanReport) -> Iterator[str]:
    frames = f"{report.sampling.max_frames} frames"
    if report.sampling.fps is not None:
        frames = f"{report.sampling.fps:g} frames per second, at most {report.sampling.max_frames}"
    yield f"{f'per clip, {frames}':<44}{'prompts':>8}{'prefix':>9}{'questions':>11}{'answers':>9}{'all tokens':>16}"
    for tier in report.tiers:
        load, mark = tier.load, "  <- this run" if tier is report.chosen else ""
        yield (
            f"  {tier.recipe[:40]:<42}{load.num_prompts:>8,.1f}{load.num_prefix_tokens:>9,.0f}"
            f"{load.num_question_tokens:>11,.0f}{load.num_answer_tokens:>9,.0f}"
            f"{tier.tokens_per_clip * report.num_todo:>16,.0f}{mark}"
        )


def _render_machines(report: PlanReport) -> Iterator[str]:
    head = f"{report.recipe} on"
    columns = f"{'clips/s':>9}{'GPU hours':>11}{'wall time':>12}{'cost':>14}{'cores/GPU':>11}{'Gbit/s':>8}"
    yield f"{head:<20}{columns}  limited by"
    for one in report.machines:
        if one.limit == "memory":
            yield f"  {one.machine.name[:18]:<18}  the model's weights do not fit one of its GPUs"
            continue
        cost = f"{one.cost:,.2f} {one.machine.currency}"
        yield (
            f"  {one.machine.name[:18]:<18}{one.clips_per_s:>9.2f}{one.gpu_hours:>11,.2f}{write_time(one.wall_s):>12}"
            f"{cost:>14}{one.cores_per_gpu:>11.1f}{one.network_gbit_per_s:>8.2f}  {one.limit}"
        )
    if report.same_machine_s is not None and report.measured is not None:
        device = report.measured.device or "not known"
        yield f"  where the run was that is followed ({device}): {write_time(report.same_machine_s)}"
    output, model = (write_size(round(size)) for size in (report.output_bytes, report.model_bytes))
    yield f"  disk: output about {output}, model {model}"


def _describe_basis(report: PlanReport) -> str:
    prices = "Prices are those of the table of machines (the shipped ones are examples)."
    if report.measured is None:
        return (
            f"Modelled, not measured on a GPU: {report.model}. {prices} Run with --limit first, and these figures "
            "follow what that took."
        )
    followed = [one.machine.name for one in report.machines if one.is_measured]
    times = f"times of {', '.join(followed)} too" if followed else "times of the machines are modelled, not measured"
    return f"Tokens follow a run of {write_count(report.measured.num_clips, 'clip')}; {times}. {prices}"


def _hours(survey: Survey) -> Interval:
    total = survey.total(lambda clip: sum(clip.windows_s) / 3600)
    return Interval(total.value, total.low, total.high)


def _write_interval(interval: Interval, form: str, survey: Survey) -> str:
    if survey.is_whole:
        return f"{interval.value:{form}}"
    return f"about {interval.value:{form}} (95 %: {interval.low:{form}} to {interval.high:{form}})"


def _write_mix(mix: Sequence[tuple[str, float]]) -> str:
    shown = [f"{name} {100 * fraction:.0f} %" for name, fraction in mix[:_MAX_SHOWN]]
    more = len(mix) - len(shown)
    return (", ".join(shown) or "none can be read") + (f" and {more} others" if more > 0 else "")


def _write_dimensions(header: VideoHeader) -> str:
    return f"{header.width_px}x{header.height_px}"


def write_time(seconds: float) -> str:
    """Returns `3.2 h`, `12 min` or `41 s`."""
    for scale, unit in _SCALES:
        if seconds >= 2 * scale or unit == "s":
            number = seconds / scale
            return f"{number:,.1f} {unit}" if number < 10 else f"{number:,.0f} {unit}"
    raise AssertionError("the last scale takes all")


def describe_tiers() -> str:
    """Returns the table of docs/cost.md: tiers with three settings of frames, modelled for the released 7B model."""
    lines = [
        "| recipe | frames | prompts | prefix tokens | question tokens | answer tokens | H100 clips/s | H200 clips/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    by_name = {machine.name: machine for machine in read_machines()}
    for name in TIERS:
        for label, sampling in _FRAMES.items():
            basis = Basis(RELEASED_7B, sampling)
            tier = count_tier(basis, load_recipe(name))
            load = tier.load
            rates = [price(basis, tier, by_name[f"1x {gpu}"], 1.0, 0.0, _AHEAD).clips_per_s for gpu in ("H100", "H200")]
            lines.append(
                f"| `{name}` | {label} | {load.num_prompts:.1f} | {load.num_prefix_tokens:,.0f} | "
                f"{load.num_question_tokens:,.0f} | {load.num_answer_tokens:,.0f} | {rates[0]:.2f} | {rates[1]:.2f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    print(describe_tiers())
