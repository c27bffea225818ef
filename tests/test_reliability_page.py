"""docs/reliability.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMED = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text())


@pytest.mark.parametrize(("file_name", "test"), NAMED)
def test_a_test_that_the_page_names_is_there(file_name, test):
    assert f"def {test}(" in (ROOT / "tests" / file_name).read_text()
