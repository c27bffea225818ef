"""Annotated and failed clips, and outputs to write them to."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import numpy as np

from framescribe.decoding.config import SamplingConfig
from framescribe.decoding.sampling import Sampling
from framescribe.llava_video.engine.config import EngineConfig
from framescribe.recipes import load_recipe
from framescribe.recipes.annotation import Caption, QAPair, Status
from framescribe.storage.journal import RunRecord, commit_part
from framescribe.storage.output import OutputStore, open_output
from pipeline.checks import check_same_settings, check_tables_are_ours
from pipeline.config import RunConfig
from pipeline.found import FoundOutput
from pipeline.start import AnnotateRequest, StartPlan, inspect
from pipeline.start import commit as commit_start
from pipeline.units import PlannedInputs
from schemas.part_rows import build_part
from schemas.records import ClipAnnotation, ClipRef, FailedClip, InputKind, Stage, UnitEnd, WorkUnit
from schemas.run_columns import RunColumns

RUN = RunColumns(
    recipe="detailed",
    model="lmms-lab/LLaVA-Video-7B-Qwen2",
    model_revision="abc123",
    prompt_layout="model_card",
    pool_mode="average",
    dtype="bfloat16",
    framescribe_version="0.1.0",
    fingerprint="f00d",
)
RUN_RECORD = RunRecord(
    fingerprint="f00d",
    settings={"sampling": {"max_frames": 64}, "recipe": "detailed"},
    prompts={"detailed_caption": "Please describe this video in detail."},
    versions={"framescribe": "0.1.0"},
)


def make_ref(clip_id: str, unit_id: str = "unit-0") -> ClipRef:
    return ClipRef(
        clip_id=clip_id,
        unit_id=unit_id,
        source="s3://bucket/shards/000.tar",
        member=f"{clip_id}.mp4",
        start_s=1.5,
        end_s=None,
        metadata='{"title": "größer"}',
    )


def make_caption(text: str = "A red ball rolls.", status: Status = Status.OK) -> Caption:
    return Caption(
        level="clip",
        start_s=0.0,
        end_s=4.1,
        text=text,
        status=status,
        finish_reason="stop",
        num_prompt_tokens=3000,
        num_completion_tokens=7,
        prompt_id="detailed_caption",
        prompt="Please describe this video in detail.",
        attempt=2,
    )


def make_pair(status: Status = Status.OK, is_consistent: bool | None = True) -> QAPair:
    return QAPair(
        kind="multiple_choice",
        question_type="Count",
        question="How many balls are there?",
        answer="one",
        status=status,
        completion="Question: ...",
        finish_reason="stop",
        num_prompt_tokens=3010,
        num_completion_tokens=20,
        prompt_id="open_ended",
        prompt="Write one question ...",
        options=("one", "two", "three", "four"),
        answer_letter="A",
        recheck_answer="one",
        recheck_score=0.9,
        blind_answer="two",
        blind_score=0.1,
        is_consistent=is_consistent,
    )


def make_annotation(clip_id: str, unit_id: str = "unit-0", num_pairs: int = 2) -> ClipAnnotation:
    sampling = Sampling(
        frame_indices=(0, 7, 14),
        timestamps_s=(0.0, 0.7, 1.4),
        duration_s=4.1,
        frames_digest="d1" * 32,
        decoder="pyav 18.1.0",
        width_px=640,
        height_px=360,
        decoded_fraction=0.93,
    )
    return ClipAnnotation(make_ref(clip_id, unit_id), sampling, (make_caption(),), (make_pair(),) * num_pairs)


def make_failed(clip_id: str, unit_id: str = "unit-0") -> FailedClip:
    return FailedClip(make_ref(clip_id, unit_id), Stage.DECODE, "no video stream", "found one audio stream")


def make_unit(unit_id: str, clip_ids: list[str]) -> list[ClipAnnotation | FailedClip | UnitEnd]:
    """Returns a unit whose last clip failed, and its end."""
    annotated = [make_annotation(clip_id, unit_id) for clip_id in clip_ids[:-1]]
    return [*annotated, make_failed(clip_ids[-1], unit_id), UnitEnd(unit_id, len(clip_ids))]


def memory_output() -> str:
    """Returns an output in memory that nobody else uses."""
    return f"memory://{uuid.uuid4().hex}"


def make_units(*unit_ids: str) -> list[WorkUnit]:
    """Returns one unit of three clips an id, one after the other in one shard."""
    return [
        WorkUnit(unit_id, InputKind.TAR, "s3://bucket/shards/000.tar", "000", 3 * n, 3 * n + 3, 1000)
        for n, unit_id in enumerate(unit_ids)
    ]


def commit(output: str, unit_id: str, outcomes: list[ClipAnnotation | FailedClip]) -> None:
    """Commits a part as the pipeline does."""
    commit_part(open_output(output), unit_id, build_part(unit_id, outcomes, RUN), RUN.fingerprint)


def plan_start(store: OutputStore, record: RunRecord, units: Sequence[WorkUnit], overwrite: bool = False) -> StartPlan:
    """Returns what a start finds that knows its settings and units already."""
    config = RunConfig("unused", EngineConfig("unused"), load_recipe("model_card"), SamplingConfig())
    plan = inspect(AnnotateRequest(config, inputs=(), overwrite=overwrite))
    plan.found, plan.config, plan.record = FoundOutput(store), config, record
    plan.inputs = PlannedInputs(tuple(units), np.arange(sum(unit.stop - unit.start for unit in units), dtype=np.uint64))
    return plan


def start_run(store: OutputStore, record: RunRecord, units: Sequence[WorkUnit], overwrite: bool = False) -> StartPlan:
    """Starts a run in its folder, or goes on with it."""
    plan = plan_start(store, record, units, overwrite)
    check_tables_are_ours(plan)
    check_same_settings(plan)
    commit_start(plan)
    return plan


def overwrite_run(store: OutputStore, record: RunRecord, units: Sequence[WorkUnit]) -> StartPlan:
    """Removes the run that the folder holds, and starts this one."""
    return start_run(store, record, units, overwrite=True)
