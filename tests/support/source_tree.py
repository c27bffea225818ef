"""What the source tree imports, read with `ast` and never by importing it."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = tuple(sorted(file.parent.name for file in ROOT.glob("*/__init__.py") if file.parent.name != "tests"))


@functools.cache
def source_modules() -> dict[str, Path]:
    """Returns every module of the source, for example `schemas.records`, with its file; a package by its own name."""
    files = [ROOT / "run_pipeline.py", *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))]
    return {_module_name(file): file for file in sorted(files) if file.exists()}


def top_level_imports_of_tests() -> set[str]:
    """Returns the packages that the tests import anywhere, for example `numpy`."""
    trees = (ast.parse(file.read_text(encoding="utf-8")) for file in (ROOT / "tests").rglob("*.py"))
    names = (name for tree in trees for name in _imported_names("tests", ast.walk(tree)))
    return {name.split(".")[0] for name in names} - {file.stem for file in (ROOT / "tests").rglob("*.py")}


def imports(module: str) -> set[str]:
    """Returns the full names that `module` imports anywhere, in functions too."""
    return set(_imported_names(module, ast.walk(tree_of(module))))


def imports_on_load(module: str) -> set[str]:
    """Returns the full names that are imported when `module` is: not those in functions or for type checkers."""
    return set(_imported_names(module, _nodes_run_on_load(tree_of(module))))


def loaded_with(module: str) -> set[str]:
    """Returns every name that importing `module` brings in, through other modules of this source as well."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        waiting += _parents(name)
        if name in source_modules():
            waiting += imports_on_load(name)
    return seen


def _module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def tree_of(module: str) -> ast.Module:
    """Returns the syntax tree of a module."""
    return ast.parse(source_modules()[module].read_text(encoding="utf-8"))


def _nodes_run_on_load(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or _is_for_type_checkers(node):
            continue
        yield node
        yield from _nodes_run_on_load(node)


def _is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def _imported_names(module: str, nodes: Iterator[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _base_of(module, node)
            yield base
            # `from schemas import records` imports a module, `from schemas.records import Clip` does not.
            yield from (name for alias in node.names if (name := f"{base}.{alias.name}") in source_modules())


def _base_of(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    is_package = source_modules()[module].name == "__init__.py"
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]
