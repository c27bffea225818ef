"""The settings that recipes are made of, checked when they are built, and prompts with places to fill."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, GetPydanticSchema

_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
# How pydantic reads settings: no unknown keys, no '40' for 40. Any: its own settings.
STRICT: dict[str, Any] = {"strict": True, "extra": "forbid"}


@dataclass(frozen=True, slots=True)
class PromptConfig:
    """One prompt of a recipe.

    Attributes:
        id: what the rows call this prompt.
        prompt: the words, with `{name}` where a text is filled in.
        max_new_tokens: a completion that needs more is cut off and gets the status `length`.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    id: str
    prompt: str
    max_new_tokens: int

    def __post_init__(self) -> None:
        if not self.id.strip() or not self.prompt.strip():
            raise ValueError("id and prompt must not be empty")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")


@dataclass(frozen=True, slots=True)
class RetryConfig:
    """One rung of the retry ladder: greedy decoding gives another text only under another penalty."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    repetition_penalty: float

    def __post_init__(self) -> None:
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(f"repetition_penalty must be positive, got {self.repetition_penalty}")


@dataclass(frozen=True, slots=True)
class QuestionType:
    """One of the dimensions that questions are asked about."""

    name: str
    definition: str

    def __post_init__(self) -> None:
        if not self.name.strip() or not self.definition.strip():
            raise ValueError("a question type needs a name and a definition")


def _make_types(definitions: Mapping[str, str]) -> tuple[QuestionType, ...]:
    return tuple(QuestionType(name, definition) for name, definition in definitions.items())


# In YAML the types are a mapping of names to definitions.
_FROM_MAPPING = GetPydanticSchema(lambda _, handler: handler(Annotated[dict[str, str], AfterValidator(_make_types)]))


@dataclass(frozen=True, slots=True)
class OpenEndedConfig(PromptConfig):
    """The prompt that asks for one question of a type and its answer: `{type}`, `{definition}`."""

    types: Annotated[tuple[QuestionType, ...], _FROM_MAPPING]

    def __post_init__(self) -> None:
        PromptConfig.__post_init__(self)
        check_placeholders("prompt", self.prompt, required=("type",), optional=("definition",))
        if not self.types:
            raise ValueError("types must name at least one question type")


@dataclass(frozen=True, slots=True)
class MultipleChoiceConfig(PromptConfig):
    """The prompt that asks for three wrong answers (`{question}`, `{answer}`) and the lines that close a question."""

    closings: tuple[str, ...]

    def __post_init__(self) -> None:
        PromptConfig.__post_init__(self)
        check_placeholders("prompt", self.prompt, required=("question",), optional=("answer",))
        if not self.closings or not all(closing.strip() for closing in self.closings):
            raise ValueError("closings must hold at least one line, and no empty one")


@dataclass(frozen=True, slots=True)
class RecheckConfig(PromptConfig):
    """How a question is asked again (`{question}`), and how well the answers must agree."""

    min_recheck_score: float

    def __post_init__(self) -> None:
        PromptConfig.__post_init__(self)
        check_placeholders("prompt", self.prompt, required=("question",))
        if not 0 <= self.min_recheck_score <= 1:
            raise ValueError(f"min_recheck_score must lie between 0 and 1, got {self.min_recheck_score}")


@dataclass(frozen=True, slots=True)
class ScoreConfig:
    """After which prompt (`{question}`) an answer is scored; a multiple choice is scored as it is asked."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    id: str
    prompt: str

    def __post_init__(self) -> None:
        if not self.id.strip() or not self.prompt.strip():
            raise ValueError("id and prompt must not be empty")
        check_placeholders("prompt", self.prompt, required=("question",))


class WrongPlaceholder(ValueError):
    """A prompt that lacks a placeholder, or names one that is not filled in.

    Attributes:
        key: the setting that holds the prompt.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def fill_prompt(template: str, texts: Mapping[str, str]) -> str:
    """Puts `texts["name"]` where the template says `{name}`, in one pass.

    Braces inside a filled-in text stay text, and so does every other brace of the template, such as those of a JSON
    example. Unknown names were refused when the recipe was loaded (`check_placeholders`).
    """
    return _PLACEHOLDER.sub(lambda found: texts.get(found[1], found[0]), template)


def check_placeholders(key: str, template: str, required: Collection[str], optional: Collection[str] = ()) -> None:
    """Makes sure that a template, held by the setting `key`, names every required placeholder and no unknown one.

    Raises:
        WrongPlaceholder: with the placeholders that are allowed.
    """
    found = set(_PLACEHOLDER.findall(template))
    allowed = sorted({*required, *optional})
    unknown = sorted(found.difference(allowed))
    if unknown:
        problem = f"{_braced(unknown)} cannot be filled in; this prompt may hold {_braced(allowed) or 'none'}"
        raise WrongPlaceholder(key, problem)
    missing = sorted(set(required) - found)
    if missing:
        raise WrongPlaceholder(key, f"the prompt must hold {_braced(missing)}")


def _braced(names: Collection[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)
