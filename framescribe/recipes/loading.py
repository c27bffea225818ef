"""Reads a recipe from its YAML file, strictly: a mistake is refused with the file, the line and what is allowed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from framescribe.errors import FrameScribeError
from framescribe.recipes.captions import CaptionsRecipe, ModelCardRecipe
from framescribe.recipes.config import WrongPlaceholder
from framescribe.recipes.levels import LevelsRecipe
from framescribe.recipes.questions import DetailedRecipe, FullRecipe
from framescribe.recipes.recipe import Recipe, Retryable

_FLOWS: dict[str, type[Recipe]] = {
    flow.name: flow for flow in (CaptionsRecipe, DetailedRecipe, FullRecipe, ModelCardRecipe, LevelsRecipe)
}
SHIPPED = tuple(_FLOWS)
"""The recipes that come with FrameScribe, by name."""
DEFAULT_RECIPE = "detailed"

_MAX_FILE_BYTES = 1_000_000  # three hundred times a shipped recipe; anything larger is some other file
_MAX_MISTAKES = 10
_TOO_DEEP = "nested too deeply; recipes are three levels deep; copy a shipped one and change its values"
_NUMBER = re.compile(r"[-+]?(\d{1,15}(\.\d{0,15})?|\.\d{1,15})([eE][-+]?\d{1,3})?")


class RecipeError(FrameScribeError, ValueError):
    """A recipe that cannot be used; the message names the file, the line, the key, and what is allowed."""


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
        close = get_close_matches(os.fspath(name_or_path), SHIPPED, n=1)
        meant = f"; did you mean {close[0]}? Wanted" if close else ": wanted"
        raise FileNotFoundError(
            f"no recipe {os.fspath(name_or_path)!r}{meant} one of {', '.join(SHIPPED)}, or the path of a YAML file"
        )
    with path.open("rb") as file:
        return parse_recipe(_decode(file.read(_MAX_FILE_BYTES + 1), str(path)), str(path))


def parse_recipe(text: str, file: str) -> Recipe:
    """Reads a recipe from YAML text; `file` is what errors call it. Raises RecipeError as `load_recipe` does."""
    try:
        root = _compose(text, file)
        settings = _build_mapping(root, "", file, set())
    except RecursionError:
        raise RecipeError(f"{file}: {_TOO_DEEP}") from None
    flow = _FLOWS.get(str(settings.pop("recipe", None)))
    if flow is None:
        raise _wrong_flow(root, file)
    try:
        return TypeAdapter(flow).validate_json(json.dumps(settings))
    except ValidationError as error:
        raise RecipeError("\n".join(_describe_mistakes(root, flow, error, file))) from None


def _decode(content: bytes, file: str) -> str:
    if len(content) > _MAX_FILE_BYTES:
        raise RecipeError(f"{file}: larger than {_MAX_FILE_BYTES} bytes; wanted a recipe's YAML")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise RecipeError(f"{file}: not UTF-8 text at byte {error.start}; wanted a recipe's YAML") from None


def _compose(text: str, file: str) -> yaml.MappingNode:
    """Parses YAML, stopping short of building objects: tags and types stay inert, and lines are known."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        begun = "" if error.context_mark is None else f" that begins in line {error.context_mark.line + 1}"
        problem = f"{error.context}{begun}, {error.problem}" if error.context else str(error.problem)
        line = 1 if mark is None else mark.line + 1
        raise RecipeError(f"{file}, line {line}: not valid YAML: {problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError(f"{file}, line {line}: not valid YAML: {error.reason}") from None
    if not isinstance(node, yaml.MappingNode):
        raise RecipeError(f"{file}: wanted a mapping of settings that begins with `recipe:`, got {_describe(node)}")
    return node


def _build_mapping(node: yaml.MappingNode, path: str, file: str, seen: set[yaml.Node]) -> dict[str, object]:
    values: dict[str, object] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.value in values:
            raise _error(file, key, path, "keys must be plain words, each given once")
        values[key.value] = _build(value, _join(path, key.value), file, seen)
    return values


def _build(node: yaml.Node, path: str, file: str, seen: set[yaml.Node]) -> object:
    """Returns the JSON value of a node; None, which no setting takes, for other scalars: dates, `0x1F`, `.nan`."""
    if isinstance(node, yaml.ScalarNode):
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind == "bool" and node.value.lower() in ("true", "false"):
            return bool(node.value.lower() == "true")
        if kind in ("int", "float") and _NUMBER.fullmatch(node.value):
            return float(node.value) if kind == "float" else int(node.value)
        return node.value if kind == "str" and _is_unicode(node.value) else None
    if node in seen:  # a few of them inside each other stand for more values than any memory holds
        raise _error(file, node, path, "aliases of lists and mappings are not read; write them out")
    seen.add(node)
    if isinstance(node, yaml.MappingNode):
        return _build_mapping(node, path, file, seen)
    return [_build(one, f"{path}[{number}]", file, seen) for number, one in enumerate(node.value)]


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)  # half a character, as "\ud800" writes it


def _wrong_flow(root: yaml.MappingNode, file: str) -> RecipeError:
    path, node = _find(root, ("recipe",))
    if not path:
        return _error(file, root, "", "missing key 'recipe'")
    return _error(file, node, path, f"unknown flow {_describe(node)}; wanted one of {', '.join(SHIPPED)}")


def _describe_mistakes(
    root: yaml.MappingNode, flow: type[Recipe], refused: ValidationError, file: str
) -> Iterator[str]:
    """Yields what is wrong, a line for each of the first mistakes."""
    for one in refused.errors(include_url=False, include_input=False)[:_MAX_MISTAKES]:
        place: tuple[str | int, ...] = one["loc"]
        error = one.get("ctx", {}).get("error")
        if isinstance(error, WrongPlaceholder):
            place = (*place, error.key)
        path, node = _find(root, place)
        if one["type"] == "missing":
            problem = f"missing key {place[-1]!r}"
        elif one["type"] == "unexpected_keyword_argument":
            problem = f"unknown key; allowed here: {', '.join(_allowed_keys(flow, place[:-1]))}"
        elif one["type"] == "value_error":
            problem = str(error)
        else:
            problem = _WANTED.get(one["type"], one["msg"]).format(_describe(node))
        yield str(_error(file, node, path, problem))


_WANTED = {
    "bool_type": "wanted true or false, got {}",
    "dataclass_type": "wanted a mapping, got {}",
    "dict_type": "wanted a mapping, got {}",
    "float_type": "wanted a number, got {}",
    "json_invalid": _TOO_DEEP,  # the JSON is ours: nothing else can be wrong with it
    "int_type": "wanted a whole number, got {}",
    "literal_error": f"got {{}}; wanted any of {', '.join(status.value for status in get_args(Retryable))}",
    "string_type": "wanted text, got {}; put quotes around it",
    "tuple_type": "wanted a list, got {}",
}


def _allowed_keys(flow: type[Recipe], place: tuple[str | int, ...]) -> list[str]:
    kind: type = flow
    for step in place:
        kind = get_args(kind)[0] if isinstance(step, int) else get_type_hints(kind)[step]
        if type(None) in get_args(kind):  # a setting that may be left out
            kind = get_args(kind)[0]
    names = [field.name for field in fields(kind)]
    if kind is flow:  # its own settings before those of every recipe
        names = ["recipe", *sorted(names, key=[field.name for field in fields(Recipe)].__contains__)]
    return names


def _find(root: yaml.MappingNode, place: tuple[str | int, ...]) -> tuple[str, yaml.Node]:
    """Returns the path of a place and its node; of the innermost mapping or list around it where there is none."""
    path = ""
    node: yaml.Node = root
    for step in place:
        if isinstance(node, yaml.MappingNode):
            found = next((value for key, value in node.value if key.value == step), None)
        else:
            found = node.value[step] if isinstance(node, yaml.SequenceNode) else None
        if found is None:
            break
        path, node = f"{path}[{step}]" if isinstance(step, int) else _join(path, step), found
    return path, node


def _join(path: str, key: str) -> str:
    name = key if key.isprintable() else repr(key)
    return f"{path}.{name}" if path else name


def _error(file: str, node: yaml.Node, path: str, problem: str) -> RecipeError:
    return RecipeError(f"{file}, line {node.start_mark.line + 1}: {path + ': ' if path else ''}{problem}")


def _describe(node: yaml.Node | None) -> str:
    if node is None:
        return "an empty file"
    if isinstance(node, yaml.ScalarNode):
        return f"{node.value[:40]!r}"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
