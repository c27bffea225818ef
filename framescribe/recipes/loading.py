"""Reads a recipe from its YAML file, strictly."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from framescribe.recipes.annotation import Status
from framescribe.recipes.config import (
    MultipleChoiceConfig,
    OpenEndedConfig,
    PromptConfig,
    QuestionType,
    RecheckConfig,
    RetryConfig,
)
from framescribe.recipes.detailed import DetailedRecipe
from framescribe.recipes.levels import LevelsRecipe
from framescribe.recipes.model_card import ModelCardRecipe
from framescribe.recipes.recipe import DEFAULT_RETRY_ON, RETRYABLE, Recipe
from framescribe.recipes.yaml_reader import RecipeError, Section, parse_yaml

SHIPPED = ("model_card", "detailed", "levels")
"""The recipes that come with FrameScribe, by name."""

_MAX_FILE_BYTES = 1_000_000  # three hundred times a shipped recipe; anything larger is some other file


def load_recipe(name_or_path: str | os.PathLike[str]) -> Recipe:
    """Loads a shipped recipe by its name, or a user's own from the path of a YAML file.

    Raises:
        FileNotFoundError: neither a shipped name nor a file.
        RecipeError: the file is not a recipe: the message names file, line, key and what is allowed.
    """
    path = Path(os.path.expanduser(name_or_path))
    if os.fspath(name_or_path) in SHIPPED:
        path = Path(__file__).with_name(f"{name_or_path}.yaml")
    if not path.is_file():
        raise FileNotFoundError(
            f"no recipe {os.fspath(name_or_path)!r}: wanted one of {', '.join(SHIPPED)}, or the path of a YAML file"
        )
    with path.open("rb") as file:
        return parse_recipe(_decode(file.read(_MAX_FILE_BYTES + 1), str(path)), str(path))


def parse_recipe(text: str, file: str) -> Recipe:
    """Reads a recipe from YAML text; `file` is what errors call it. Raises RecipeError as `load_recipe` does."""
    section = parse_yaml(text, file)
    flow = section.text("recipe")
    if flow not in _READERS:
        problem = f"unknown flow {flow!r}; wanted one of {', '.join(SHIPPED)}"
        raise section.error(section.values["recipe"], problem, "recipe")
    with section.building():
        return _READERS[flow](section)


def _decode(content: bytes, file: str) -> str:
    if len(content) > _MAX_FILE_BYTES:
        raise RecipeError(f"{file}: larger than {_MAX_FILE_BYTES} bytes; wanted a recipe's YAML")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise RecipeError(f"{file}: not UTF-8 text at byte {error.start}; wanted a recipe's YAML") from None


def _read_model_card(section: Section) -> Recipe:
    section.only("recipe", "caption", *_SHARED_KEYS)
    return ModelCardRecipe(
        caption=_read_prompt(section.section("caption")),
        stop_loops=section.flag("stop_loops"),
        retries=_read_retries(section),
        retry_on=_read_retry_on(section),
    )


def _read_detailed(section: Section) -> Recipe:
    section.only("recipe", "caption", "open_ended", "multiple_choice", "recheck", *_SHARED_KEYS)
    return DetailedRecipe(
        caption=_read_prompt(section.section("caption")),
        open_ended=_read_open_ended(section.section("open_ended")),
        multiple_choice=_read_multiple_choice(section.section("multiple_choice")),
        recheck=_read_recheck(section.section("recheck")),
        stop_loops=section.flag("stop_loops"),
        retries=_read_retries(section),
        retry_on=_read_retry_on(section),
    )


def _read_levels(section: Section) -> Recipe:
    section.only("recipe", *_LEVELS_KEYS, *_SHARED_KEYS)
    optional = {"max_history_chars": section.integer("max_history_chars")} if section.has("max_history_chars") else {}
    return LevelsRecipe(
        segment_s=section.number("segment_s"),
        min_segment_s=section.number("min_segment_s"),
        segments_per_summary=section.integer("segments_per_summary"),
        segment=_read_prompt(section.section("segment")),
        summary=_read_prompt(section.section("summary")),
        video=_read_prompt(section.section("video")),
        stop_loops=section.flag("stop_loops"),
        retries=_read_retries(section),
        retry_on=_read_retry_on(section),
        **optional,
    )


_SHARED_KEYS = ("stop_loops", "retries", "retry_on")
_PROMPT_KEYS = ("id", "prompt", "max_new_tokens")
_LEVELS_KEYS = (
    "segment_s", "min_segment_s", "segments_per_summary", "segment", "summary", "video", "max_history_chars"
)  # fmt: skip
_READERS: dict[str, Callable[[Section], Recipe]] = {
    "model_card": _read_model_card,
    "detailed": _read_detailed,
    "levels": _read_levels,
}


def _read_prompt(section: Section, *other_keys: str) -> PromptConfig:
    section.only(*_PROMPT_KEYS, *other_keys)
    with section.building():
        return PromptConfig(section.text("id"), section.text("prompt"), section.integer("max_new_tokens"))


def _read_open_ended(section: Section) -> OpenEndedConfig:
    prompt = _read_prompt(section, "types")
    types = section.section("types")
    with section.building():
        return OpenEndedConfig(prompt, tuple(QuestionType(name, types.text(name)) for name in types.values))


def _read_multiple_choice(section: Section) -> MultipleChoiceConfig:
    prompt = _read_prompt(section, "closings")
    with section.building():
        return MultipleChoiceConfig(prompt, section.texts("closings"))


def _read_recheck(section: Section) -> RecheckConfig:
    prompt = _read_prompt(section, "min_recheck_score")
    with section.building():
        return RecheckConfig(prompt, section.number("min_recheck_score"))


def _read_retries(section: Section) -> tuple[RetryConfig, ...]:
    rungs = []
    for rung in section.sections("retries"):
        rung.only("repetition_penalty")
        with rung.building():
            rungs.append(RetryConfig(rung.number("repetition_penalty")))
    return tuple(rungs)


def _read_retry_on(section: Section) -> tuple[Status, ...]:
    if not section.has("retry_on"):
        return DEFAULT_RETRY_ON
    statuses = {status.value: status for status in RETRYABLE}
    names = section.texts("retry_on")
    unknown = [name for name in names if name not in statuses]
    if unknown:
        problem = f"got {unknown[0]!r}; wanted any of {', '.join(statuses)}"
        raise section.error(section.values["retry_on"], problem, "retry_on")
    return tuple(statuses[name] for name in names)
