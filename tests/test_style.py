"""What CONTRIBUTING.md says about size and names, where a machine can tell."""

from __future__ import annotations

import ast

import pytest

from tests.support.source_tree import source_modules

MAX_LINES_OF_A_FILE = 400
MAX_LINES_OF_A_FUNCTION = 60
EMPTY_NAMES = {"common", "data", "helper", "helpers", "info", "manager", "misc", "util", "utils"}

MODULES = sorted(source_modules())


def lines_of_functions(source: str) -> dict[str, int]:
    functions = (
        node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    )
    return {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}


@pytest.mark.parametrize("module", MODULES)
def test_a_file_is_short_enough_to_read_in_one_go(module):
    assert len(source_modules()[module].read_text(encoding="utf-8").splitlines()) <= MAX_LINES_OF_A_FILE


@pytest.mark.parametrize("module", MODULES)
def test_a_function_fits_on_a_screen(module):
    lengths = lines_of_functions(source_modules()[module].read_text(encoding="utf-8"))
    assert {name: length for name, length in lengths.items() if length > MAX_LINES_OF_A_FUNCTION} == {}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_named_after_what_it_holds(module):
    assert not set(module.replace("_", ".").split(".")) & EMPTY_NAMES
