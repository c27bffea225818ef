"""Reads what a 7B model returns: never raises, and never returns words that the model did not write."""

from __future__ import annotations

import re
from collections.abc import Sequence

from framescribe.recipes.annotation import Status
from framescribe.recipes.answer_text import (
    ends_in_none,
    has_content,
    is_none,
    is_refusal,
    is_unspecified,
    normalise_answer,
    says_none,
    strip_marks,
)
from framescribe.recipes.qa_pairs import ParsedPair

LETTERS = "ABCD"
_MAX_OPTION_CHARS = 300  # longer than that is an explanation, not an option
# "A man walks." begins with an article: a letter is one only before punctuation or alone.
_LETTER_FIRST = re.compile(
    r"^[\W_]*(?:[Oo]ption\s+)?(?:([A-D])(?=[.):,*_\]\"']|\s*\n|\s*$)(?![\W_]{0,4}(?:or|and|[,/&])[\W_]{1,4}[A-D]\b)"
    r"|([a-d])[\W_]*$)"
)
_LETTER_STATED = re.compile(
    r"\b(?:answer|option|choice)\b(?:\s+(?:is|would be|should be))?\s*:?\s*(?:option\s+)?"
    r"[\"'(*_\[]{0,4}([A-D])\b(?!\s+[a-z])",
    re.IGNORECASE,
)
_LETTER_IN_BRACKETS = re.compile(r"\(([A-D])\)")
_MARK = re.compile(
    r"^[\s*_`>#\"']*(?:(?:[-•+–]|\*)\s+|\(?(?:\d{1,2}|[A-Da-d])[.)][*_`]*\s+|(?:wrong|incorrect)\s+answers?\s*\d*\s*:\s*)+",
    re.IGNORECASE,
)
_PREAMBLE = re.compile(r"\W*(?:sure|certainly|of course|okay|here (?:are|is))\b", re.IGNORECASE)
_NO_OPTION = re.compile(r"\W*(?:question|answer|correct answer|note|explanation)\s*:", re.IGNORECASE)


def read_pair_status(text: str, pair: ParsedPair | None) -> Status:
    """What a completion that should hold one question and answer came to, `pair` being what was parsed from it.

    The answer None counts as an answer to `How many ...?` only.
    """
    if says_none(text):
        return Status.NOT_APPLICABLE
    if pair is None:
        return _read_status_without_pair(text)
    if is_none(pair.answer) and not pair.question.lower().startswith("how m"):
        return Status.NOT_APPLICABLE
    if is_refusal(pair.answer):
        return Status.REFUSED
    return Status.UNSPECIFIED if is_unspecified(pair.answer) else Status.OK


def _read_status_without_pair(text: str) -> Status:
    if ends_in_none(text):
        return Status.NOT_APPLICABLE
    if is_refusal(text):
        return Status.REFUSED
    return Status.UNSPECIFIED if is_unspecified(text) else Status.UNPARSABLE


def parse_letter(text: str, options: Sequence[str] = ()) -> str | None:
    """The letter A to D that a completion chooses: `B`, `(B)`, `**B.** red`, `The answer is B`, or an option's words.

    None where it names several letters as its answer, or none.
    """
    for pattern in (_LETTER_FIRST, _LETTER_STATED, _LETTER_IN_BRACKETS):
        letters = {next(filter(None, found.groups())).upper() for found in pattern.finditer(text)}
        if letters:
            return letters.pop() if len(letters) == 1 else None
    return _letter_of_option(text, options)


def _letter_of_option(text: str, options: Sequence[str]) -> str | None:
    wanted = normalise_answer(re.sub(r"^[A-D]\s+", "", text)), normalise_answer(text)
    letters = [letter for letter, option in zip(LETTERS, options, strict=False) if normalise_answer(option) in wanted]
    return letters[0] if len(letters) == 1 and has_content(text) else None


def parse_wrong_answers(text: str, answer: str) -> tuple[str, ...]:
    """Up to three answers that differ from `answer` and from each other, normalised as SQuAD does, in their order.

    Reads lines, numbered or bulleted or plain, a JSON list, or one line with exactly three entries.
    """
    seen = {normalise_answer(answer)}
    wrong: list[str] = []
    for option in map(clean_option, _split_options(text)):
        normal = normalise_answer(option)
        if normal in seen or not _may_be_option(option):
            continue
        seen.add(normal)
        wrong.append(option)
    return tuple(wrong[:3])


def clean_option(text: str) -> str:
    """An answer as the options show it: without marks and closing full stop, which would give the right one away."""
    text = strip_marks(text)
    return text[:-1].rstrip() if text.endswith(".") and not text.endswith("..") else text


def _split_options(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) == 1:
        return _split_line(lines[0])
    marked = [_MARK.sub("", line, count=1) for line in lines if _MARK.match(line)]
    if len(marked) >= 3:
        return marked
    if len(lines) > 3 and _PREAMBLE.match(lines[0]):
        lines = lines[1:]
    return [_MARK.sub("", line, count=1).rstrip(" ,") for line in lines]


def _split_line(line: str) -> list[str]:
    quoted = re.findall(r'"([^"]+)"', line) or re.findall(r"(?<!\w)'([^']+)'(?!\w)", line)
    if len(quoted) >= 3:
        return quoted
    numbered = re.split(r"(?:^|\s)\(?(?:\d|[A-Da-d])[.)]\s", line)
    if len(numbered) >= 4:
        return numbered[1:]
    parts = re.split(r"[,;]\s+(?:and |or )?", line)
    return parts if len(parts) == 3 else [line]


def _may_be_option(option: str) -> bool:
    if not has_content(option) or option.endswith(":") or len(option) > _MAX_OPTION_CHARS:
        return False
    return not (is_none(option) or is_refusal(option) or _NO_OPTION.match(option))
