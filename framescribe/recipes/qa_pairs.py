"""Finds the first complete question and answer in what a model wrote."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from framescribe.recipes.answer_text import has_content, is_none, squeeze, strip_marks


@dataclass(frozen=True, slots=True)
class ParsedPair:
    """A question and its answer in the model's own words, white space squeezed, markdown and quotes around removed.

    Attributes:
        is_closed: something follows the answer (a closing quote, more text), so that no token limit can have cut it.
    """

    question: str
    answer: str
    is_closed: bool


def parse_qa_pair(text: str) -> ParsedPair | None:
    """Reads labelled questions and answers (`Question:`, `**Q1:**`, JSON and Python keys) and takes the first pair.

    Nothing is guessed: an answer belongs to the question right before it. Two different questions in a row, numbers
    that do not fit, a question or an answer without words give None.
    """
    question: _Value | None = None
    position = 0
    for label in _find_labels(text):
        if label.start < position:
            continue  # inside the quoted value before it
        value = _read_value(text, label)
        position = value.stop
        if label.is_question:
            if question and has_content(value.text) and value.text != question.text:
                return None
            question = value if has_content(value.text) and not is_none(value.text) else question
        elif has_content(value.text):
            question = question or _read_unlabelled_question(text, label)
            if question is None:
                continue
            return _pair(question, value, text)
    return None


@dataclass(frozen=True, slots=True)
class _Label:
    is_question: bool
    is_short: bool  # `Q:` and `A:`
    is_key: bool  # in quotes, as the keys of JSON and Python are
    number: str
    start: int
    end: int
    line_limit: int = 0  # a question written as a line ends at the next label of any kind; an answer, which may say
    key_limit: int = 0  # "the answer is:", at the next question. A quoted value ends at the next quoted key.


@dataclass(frozen=True, slots=True)
class _Value:
    text: str
    number: str
    stop: int
    is_closed: bool


_LABEL = re.compile(
    r"""(?P<key>["'])? (?<![\w.]) (?:(?P<word>question|answer)|(?P<short>(?-i:[QA])))
        (?!\s+(?:type|category|dimension)\b[^:\n]{0,40}:)
        (?P<rest>[^\w:：\n?"'{}.,;]{0,3}\d{0,3}|(?(word)[^:：\n?{}.,;]{0,40}|(?!)))
        ["'*_`]{0,4}\s?[:：][*_`]{0,3}
      | (?m:^)[#*_ ]{0,8}(?P<heading>question|answer)[ ]?\d{0,3}[*_ ]{0,4}$""",
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
_CLOSING = {
    quote: re.compile(rf"(?<!\\){quote}(?=\s*(?:,\s*[\"'\{{\[]|,?\s*[\}}\]]|,?\s*\n|,?\s*\Z))") for quote in "\"'"
}
_MAX_QUESTION_CHARS = 600  # of a question without a label: keeps the reading of any text linear
_OPTION_B = re.compile(r"^[^\w\n]{0,8}B\s?[:.)]", re.MULTILINE)
_ESCAPE = re.compile(r"\\([\"'\\/nrt])")


def _find_labels(text: str) -> list[_Label]:
    labels = _limit_labels([_read_label(found) for found in _LABEL.finditer(text)], len(text))
    # `A:` may be the first of four options: it is an answer only where no line begins with B and nothing says Answer.
    if _OPTION_B.search(text) or any(not label.is_question and not label.is_short for label in labels):
        labels = [label for label in labels if label.is_question or not label.is_short]
    return labels


def _limit_labels(labels: list[_Label], length: int) -> list[_Label]:
    limited = []
    next_label = next_question = next_key = length
    for label in reversed(labels):
        line_limit = next_label if label.is_question else next_question
        limited.append(replace(label, line_limit=line_limit, key_limit=next_key))
        next_label = label.start
        next_question = label.start if label.is_question else next_question
        next_key = label.start if label.is_key else next_key
    return limited[::-1]


def _read_label(found: re.Match[str]) -> _Label:
    word = found["word"] or found["short"] or found["heading"]
    number = re.search(r"\d+", found["rest"] or "")
    return _Label(
        is_question=word[0] in "qQ",
        is_short=found["short"] is not None,
        is_key=found["key"] is not None,
        number=number[0] if number else "",
        start=found.start(),
        end=found.end(),
    )


def _read_value(text: str, label: _Label) -> _Value:
    if label.is_key:
        opening = re.compile(r"\s*([\"'])").match(text, label.end)
        return _read_quoted(text, label, opening) if opening else _read_bare(text, label)
    return _read_line(text, label)


def _read_quoted(text: str, label: _Label, opening: re.Match[str]) -> _Value:
    closing = _CLOSING[opening[1]].search(text, opening.end(), label.key_limit)
    stop = closing.start() if closing else label.key_limit
    value = text[opening.end() : stop]
    if not closing:
        value = re.sub(r"(?<!\\)[\"',\s]+\Z", "", value)
    return _Value(_unescape(value), label.number, stop, closing is not None)


def _read_bare(text: str, label: _Label) -> _Value:
    found = re.compile(r"[^,}\]\n]*").match(text, label.end)
    stop = found.end() if found else label.end
    return _Value(strip_marks(text[label.end : stop]), label.number, stop, bool(text[stop:].strip()))


def _read_line(text: str, label: _Label) -> _Value:
    stop = label.line_limit
    start = label.end + len(text[label.end : stop]) - len(text[label.end : stop].lstrip())
    line_stop = text.find("\n", start, stop)
    line = text[start : line_stop if line_stop >= 0 else stop]
    if label.is_question and "?" not in line and "?" in text[start:stop]:
        line = text[start : text.index("?", start) + 1]
    elif not label.is_question and line.rstrip().endswith(":"):  # a list follows
        line = text[start:stop].split("\n\n", 1)[0]
    end = start + len(line)
    return _Value(strip_marks(line), label.number, end, bool(text[end:].strip()))


def _read_unlabelled_question(text: str, answer: _Label) -> _Value | None:
    """The line before the answer label, if it is a question: `1. What is red? Answer: The ball.`"""
    start = max(0, answer.start - _MAX_QUESTION_CHARS)
    line = text[start : answer.start].rstrip(" \t\r\n*_`#>-").rpartition("\n")[2]
    line = strip_marks(re.sub(r"^\W*\d{1,3}[.)]\s+|^\s*[-*•]\s+", "", line))
    if not line.endswith("?") or not has_content(line):
        return None
    return _Value(line, answer.number, answer.start, True)


def _pair(question: _Value, answer: _Value, text: str) -> ParsedPair | None:
    if question.number and answer.number and question.number != answer.number:
        return None
    if _OPTION_B.search(text) and re.fullmatch(r"\W*[A-Z]\W*", answer.text):
        return None  # the letter of an option: no answer without the options
    return ParsedPair(question.text, answer.text, answer.is_closed)


def _unescape(value: str) -> str:
    return squeeze(_ESCAPE.sub(lambda found: " " if found[1] in "nrt" else found[1], value))
