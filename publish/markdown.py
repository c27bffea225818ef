"""Text of models and inputs made safe for a Markdown page."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence


def plain_text(text: str) -> str:
    """Returns the text on one line, without control, format and invisible characters."""
    # Category C holds terminal escapes, zero-width characters and those that reverse the reading direction.
    visible = "".join(" " if unicodedata.category(letter)[0] in "CZ" else letter for letter in text)
    return " ".join(visible.split())


def escape(text: str, max_characters: int = 300) -> str:
    """Returns the text for a paragraph or a table cell: no markup, no HTML and no link comes of it."""
    shortened = shorten(plain_text(text), max_characters)
    entities = shortened.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # The colon and the dots keep addresses from becoming links by themselves.
    return re.sub(r"([\\`*_{}\[\]()#+!|~:@]|(?<=www)\.|^[-=]|(?<=^\d)\.)", r"\\\1", entities)


def fence(text: str) -> str:
    """Returns the text as a code block that nothing in it can end."""
    lines = [re.sub(r"\s+$", "", _visible_line(line)) for line in text.splitlines()]
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return "\n".join((f"{marks}text", *lines, marks))


def render_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table; the cells are escaped already."""
    lines = ("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))
    return "\n".join(lines)


def shorten(text: str, max_characters: int) -> str:
    """Returns the text, cut and marked with `...` where it is longer."""
    return text if len(text) <= max_characters else text[:max_characters].rstrip() + "..."


def _visible_line(line: str) -> str:
    return "".join(" " if unicodedata.category(letter)[0] == "C" else letter for letter in line)
