"""Everything a run is started with, composed of the settings that each part defines for itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from framescribe.decoding.config import SamplingConfig
from framescribe.errors import FrameScribeError
from framescribe.llava_video.engine.config import EngineConfig
from framescribe.storage.config import ReadConfig
from schemas.records import FailurePolicy
from schemas.run_columns import RunColumns, find_versions
from transforms.worker import WorkerConfig

# The parser takes its defaults from here: `--help` and a wrong flag are answered without Beam, which takes seconds.
if TYPE_CHECKING:
    from framescribe.llava_video.model.checkpoint import Checkpoint
    from framescribe.llava_video.model.config import ModelConfig
    from framescribe.recipes.recipe import Recipe
    from framescribe.storage.journal import RunRecord
    from transforms.annotate_clips import AnnotateClipsConfig
    from transforms.answer_reuse import ReusableRun
    from transforms.commit_parts import CommitPartsConfig
    from transforms.read_clips import ReadClipsConfig, ReadUnitsConfig
    from transforms.sample_frames import SampleFramesConfig

# Raised by hand when the program's own rules change what is written for the same settings.
ROW_VERSION = 5


@dataclass(frozen=True, slots=True)
class UnitConfig:
    """How large a work unit is: what is lost when a worker dies, and what one worker takes at a time.

    Attributes:
        max_clips: 32 clips are half a minute of one GPU for a 7B model, minutes for the 72B.
        max_bytes: a unit of a tar is one ranged read of so much; a single larger clip is a unit by itself.
    """

    max_clips: int = 32
    max_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        for name in ("max_clips", "max_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class CannotStart(FrameScribeError, ValueError):
    """The run cannot work with these settings on this machine; nothing was removed or written."""


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Settings of one `annotate` run.

    Attributes:
        output: folder or URI that everything is written to.
        split_s: cuts longer videos into windows of this many seconds; None keeps them whole.
        failures: when a worker stops, and the run is no success.
        retry_failed: units that are done again ask the model about their failed clips only.
        earlier: runs whose answers to unchanged questions are taken; checked by `pipeline.checks`.
        allow_other_versions: goes on, and takes earlier answers, under another minor version of FrameScribe, torch or
            transformers, and with workers that have one.
        storage_options: fsspec options for inputs and output; never written anywhere.
    """

    output: str
    engine: EngineConfig
    recipe: Recipe
    sampling: SamplingConfig
    reading: ReadConfig = field(default_factory=ReadConfig)
    units: UnitConfig = field(default_factory=UnitConfig)
    split_s: float | None = None
    failures: FailurePolicy = field(default_factory=FailurePolicy)
    retry_failed: bool = False
    workers: WorkerConfig = field(default_factory=WorkerConfig)
    earlier: tuple[ReusableRun, ...] = ()
    allow_other_versions: bool = False
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)  # Any: fsspec's own

    def __post_init__(self) -> None:
        if self.split_s is not None:
            from framescribe.shards.reading import check_split_s

            check_split_s(self.split_s)

    def read_units(self, run: RunColumns) -> ReadUnitsConfig:
        """Returns settings of the step that reads the plan of a run."""
        from transforms.read_clips import ReadUnitsConfig

        return ReadUnitsConfig(self.output, run.fingerprint, self.storage_options)

    def read_clips(self, run: RunColumns) -> ReadClipsConfig:
        """Returns settings of the step that reads what a run has not annotated yet."""
        from transforms.read_clips import ReadClipsConfig

        return ReadClipsConfig(
            reading=self.reading,
            split_s=self.split_s,
            sampling=self.sampling,
            workers=self.workers,
            output=self.output,
            fingerprint=run.fingerprint,
            retry_failed=self.retry_failed,
            storage_options=self.storage_options,
        )

    def sample_frames(self) -> SampleFramesConfig:
        """Returns settings of the step that decodes."""
        from transforms.sample_frames import SampleFramesConfig

        return SampleFramesConfig(self.sampling, self.workers)

    def annotate_clips(self, run: RunColumns) -> AnnotateClipsConfig:
        """Returns settings of the step that asks the model of a run."""
        from transforms.annotate_clips import AnnotateClipsConfig

        return AnnotateClipsConfig(self.engine, self.recipe, run.model_revision, self.workers, self.earlier)

    def commit_parts(self, run: RunColumns) -> CommitPartsConfig:
        """Returns settings of the step that writes the rows of a run."""
        from transforms.commit_parts import CommitPartsConfig

        versions = None if self.allow_other_versions else find_versions()
        return CommitPartsConfig(self.output, run, self.failures, versions, self.storage_options)


def choose_dtype_name(engine: EngineConfig) -> str:
    """Returns what the model is computed in on this machine; raises `CannotStart` where it has no such device."""
    from framescribe.llava_video.engine.memory import choose_dtype, find_device

    try:
        device = find_device(engine.device)
    except ValueError as error:
        raise CannotStart(f"--device {engine.device}: {error}") from None
    return str(choose_dtype(engine.dtype, device)).removeprefix("torch.")


def record_run(config: RunConfig, checkpoint: Checkpoint, model: ModelConfig, dtype: str) -> RunRecord:
    """Returns what run.json shall say: all settings that change rows, and the fingerprint over them.

    Settings stand here as what they came to, however they were typed. Two are left out: where the checkpoint lies,
    since its revision says what it holds; and the device, since beyond the dtype only the last bits of sums depend on
    it, as they do between two kinds of GPU.

    Args:
        dtype: what is computed in; `auto` where only the workers know.
    """
    from framescribe.storage.journal import RunRecord

    recipe = config.recipe.to_dict()
    settings: dict[str, Any] = {
        "row_version": ROW_VERSION,
        "model": {
            "revision": checkpoint.revision,
            "config_overrides": {
                key: value for key, value in config.engine.config_overrides.items() if key not in _SHOWN_AS_USED
            },
            "pool_mode": model.pool_mode,
            "newline_position": model.newline_position,
            "dtype": dtype,
            "attn_implementation": config.engine.attn_implementation,
            "prompt_layout": config.engine.prompt_layout,
        },
        "sampling": describe_sampling(config.sampling),
        "split_s": config.split_s,
        "recipe": recipe,
    }
    fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return RunRecord(fingerprint, settings, _prompts_of(recipe), find_versions(), model_name=checkpoint.name)


def run_columns(
    config: RunConfig, checkpoint: Checkpoint, model: ModelConfig, dtype: str, run: RunRecord
) -> RunColumns:
    """Returns the columns that every row of the run repeats; a dtype of `auto` is filled in where parts are written."""
    return RunColumns(
        recipe=config.recipe.name,
        model=checkpoint.name,
        model_revision=checkpoint.revision,
        prompt_layout=config.engine.prompt_layout,
        pool_mode=model.pool_mode,
        dtype=dtype,
        framescribe_version=run.versions.get("framescribe", "unknown"),
        fingerprint=run.fingerprint,
    )


# Keys of config.json that stand in the settings as they are used, changed or not.
_SHOWN_AS_USED = frozenset({"mm_spatial_pool_mode", "mm_newline_position"})
# Limits of the machine that decodes: they decide whether a clip fails, never what a row says.
_NOT_IN_ROWS = frozenset({"deadline_s", "memory_limit_bytes"})


def describe_sampling(sampling: SamplingConfig) -> dict[str, Any]:  # Any: JSON values
    """Returns the settings of sampling that change rows, as run.json has them."""
    described = {name: value for name, value in asdict(sampling).items() if name not in _NOT_IN_ROWS}
    return {**described, "decoder": sampling.chosen_decoder}


def _prompts_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """Finds every prompt of a recipe's settings by its id."""
    prompts = {settings["id"]: settings["prompt"]} if "id" in settings and "prompt" in settings else {}
    for value in settings.values():
        if isinstance(value, Mapping):
            prompts |= _prompts_of(value)
    return {prompt_id: text for prompt_id, text in prompts.items() if isinstance(text, str)}
