"""docs/reliability.md and the table of mutants name what exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.mutants import PROMISES, files_of_tests

ROOT = Path(__file__).parent.parent
NAMED = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text())


@pytest.mark.parametrize(("file_name", "test"), NAMED)
def test_a_test_that_the_page_names_is_there(file_name, test):
    assert f"def {test}(" in (ROOT / "tests" / file_name).read_text()


@pytest.mark.parametrize("module", PROMISES)
def test_a_module_that_is_tried_with_mutants_and_its_tests_are_there(module):
    named = files_of_tests(module)
    assert all((ROOT / path).is_file() for path in (module, *named))
    assert named
