"""Reads YAML strictly: unknown, missing and mistyped keys are refused, with the line they stand on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import yaml

from framescribe.recipes.config import WrongPlaceholder

_NUMBER = re.compile(r"[-+]?(\d{1,15}(\.\d{0,15})?|\.\d{1,15})([eE][-+]?\d{1,3})?")
_MAX_NESTING_ADVICE = "recipes are three levels deep; copy a shipped one and change its values"


class RecipeError(ValueError):
    """A recipe that cannot be used; the message names the file, the line, the key, and what is allowed."""


def parse_yaml(text: str, file: str) -> Section:
    """Reads a YAML mapping without building any object from it: tags, aliases and types stay inert.

    Raises:
        RecipeError: the text is not YAML, or not a mapping.
    """
    try:
        # Composing stops short of construction: it is what `yaml.safe_load` does first, and keeps the line numbers.
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise RecipeError(f"{file}, line {_line_of(error)}: not valid YAML: {_describe_problem(error)}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError(f"{file}, line {line}: not valid YAML: {error.reason}") from None
    except RecursionError:
        raise RecipeError(f"{file}: nested too deeply; {_MAX_NESTING_ADVICE}") from None
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError(f"{file}: wanted a mapping of settings that begins with `recipe:`, got {_describe(node)}")
    return Section(file, "", node)


@dataclass(slots=True)
class Section:
    """A mapping of a YAML file, read key by key.

    `values` holds its keys as written, in the order of the file.

    Every reading method raises RecipeError for a value of another type, and for a missing key without a default.
    """

    file: str
    path: str
    node: yaml.MappingNode
    values: dict[str, yaml.Node] = field(init=False)

    def __post_init__(self) -> None:
        self.values = {}
        for key, value in self.node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value in self.values:
                raise self.error(key, "keys must be plain words, each given once")
            self.values[key.value] = value

    def has(self, key: str) -> bool:
        """Whether an optional key is given."""
        return key in self.values

    def text(self, key: str) -> str:
        """A string; a number or a bare yes/no must be quoted to be one."""
        return self._read_text(self._take(key), key)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        return tuple(self._read_text(one, key) for one in self._take_list(key))

    def number(self, key: str) -> float:
        """A decimal number."""
        node = self._take(key)
        if _is_scalar(node, "int", "float") and _NUMBER.fullmatch(node.value):
            return float(node.value)
        raise self.error(node, f"wanted a number, got {_describe(node)}", key)

    def integer(self, key: str) -> int:
        """A whole number in decimal digits."""
        node = self._take(key)
        if _is_scalar(node, "int") and re.fullmatch(r"[-+]?\d{1,15}", node.value):
            return int(node.value)
        raise self.error(node, f"wanted a whole number, got {_describe(node)}", key)

    def flag(self, key: str) -> bool:
        """`true` or `false`."""
        node = self._take(key)
        if _is_scalar(node, "bool") and node.value.lower() in ("true", "false"):
            return bool(node.value.lower() == "true")
        raise self.error(node, f"wanted true or false, got {_describe(node)}", key)

    def section(self, key: str) -> Section:
        """A mapping inside this one."""
        node = self._take(key)
        if isinstance(node, yaml.MappingNode):
            return Section(self.file, self._path(key), node)
        raise self.error(node, f"wanted a mapping, got {_describe(node)}", key)

    def sections(self, key: str) -> Iterator[Section]:
        """A list of mappings."""
        for position, node in enumerate(self._take_list(key)):
            if not isinstance(node, yaml.MappingNode):
                raise self.error(node, f"wanted a mapping, got {_describe(node)}", key)
            yield Section(self.file, f"{self._path(key)}[{position}]", node)

    def only(self, *allowed: str) -> None:
        """Refuses every key but these."""
        for key, node in self.values.items():
            if key not in allowed:
                raise self.error(node, f"unknown key; allowed here: {', '.join(allowed)}", key)

    @contextmanager
    def building(self, key: str | None = None) -> Iterator[None]:
        """Gives a ValueError of the settings built inside this file's name, line and key."""
        try:
            yield
        except RecipeError:
            raise
        except ValueError as error:
            key = error.key if isinstance(error, WrongPlaceholder) else key
            raise self.error(self.node if key is None else self.values[key], str(error), key) from None

    def error(self, node: yaml.Node, problem: str, key: str | None = None) -> RecipeError:
        """The error for a node of this section."""
        path = self.path if key is None else self._path(key)
        return RecipeError(f"{self.file}, line {node.start_mark.line + 1}: {path + ': ' if path else ''}{problem}")

    def _path(self, key: str) -> str:
        name = key if key.isprintable() else repr(key)
        return f"{self.path}.{name}" if self.path else name

    def _take(self, key: str) -> yaml.Node:
        if key not in self.values:
            raise self.error(self.node, f"missing key {key!r}")
        return self.values[key]

    def _take_list(self, key: str) -> list[yaml.Node]:
        node = self._take(key)
        if isinstance(node, yaml.SequenceNode):
            return list(node.value)
        raise self.error(node, f"wanted a list, got {_describe(node)}", key)

    def _read_text(self, node: yaml.Node, key: str) -> str:
        if _is_scalar(node, "str"):
            return str(node.value)
        raise self.error(node, f"wanted text, got {_describe(node)}; put quotes around it", key)


def _is_scalar(node: yaml.Node, *types: str) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag in {f"tag:yaml.org,2002:{one}" for one in types}


def _line_of(error: yaml.MarkedYAMLError) -> int:
    mark = error.problem_mark or error.context_mark
    return 1 if mark is None else int(mark.line) + 1


def _describe_problem(error: yaml.MarkedYAMLError) -> str:
    """Returns what YAML was reading, with the line where that began, and what is wrong."""
    begun = "" if error.context_mark is None else f" that begins in line {error.context_mark.line + 1}"
    return f"{error.context}{begun}, {error.problem}" if error.context else str(error.problem)


def _describe(node: yaml.Node | None) -> str:
    if node is None:
        return "an empty file"
    if isinstance(node, yaml.ScalarNode):
        return f"{node.value[:40]!r}"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
