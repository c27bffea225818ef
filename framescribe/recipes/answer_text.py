"""What a model's words amount to: refusals, answers that say nothing, and how well two answers agree."""

from __future__ import annotations

import re
import string
from collections import Counter

_EMPHASIS = ("**", "__", "*", "_", "`")
_LONE_MARKS = re.compile(r"(?:(?:^|(?<=\s))[*_`#>]+\s*)+$")
_QUOTES = (('"', '"'), ("'", "'"), ("“", "”"), ("‘", "’"), ("«", "»"))
_NONE = re.compile(r"[\W_]*(?:none|null|n/a|not applicable)[\W_]*", re.IGNORECASE)
_NONE_FIRST = re.compile(r"[\W_]*(?:none|null|n/a|not applicable)[*_`\"')\]]*\s*(?:[.,;:!(\n-]|–|—)", re.IGNORECASE)
_NONE_LAST = re.compile(r"\b(?:None|null|N/A)[\W_]*\Z")
_REFUSAL = re.compile(
    r"[\W_]*(?:unfortunately,? |i apologi[sz]e,? but )?"
    r"(?:(?:i'm|i am)(?: very| so)? sorry,? (?:but|however|i\b|as an)"
    r"|sorry,? (?:but )?i\b"
    r"|(?:i'm|i am) (?:unable|not able)\b"
    r"|i (?:cannot|can't|can not|could not|couldn't|won't|will not)\b(?! help but)"
    r"|i (?:don't|do not) (?:have (?:access|the ability)|see (?:a|any|the) (?:video|image|frame)s?)\b"
    r"|as an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    r"|i apologi[sz]e\b)",
    re.IGNORECASE,
)
_UNSPECIFIED = re.compile(
    r"[\W_]*(?:(?:the|this|these) )?"
    r"(?:(?:given |provided )?(?:videos?|clips?|footage|scene|segment|frames?|description|it|they) )?"
    r"(?:(?:does not|doesn't|do not|don't) (?:specify|specifically|mention|depict|show|provide|indicate)\b"
    r"|(?:is|are) not (?:specified|mentioned|depicted|shown|indicated)\b)",
    re.IGNORECASE,
)
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve"
_NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())}
_OPPOSITES = (frozenset({"yes", "no"}), frozenset({"left", "right"}), frozenset({"up", "down"}))


def squeeze(text: str) -> str:
    """The text on one line: every run of white space is one space."""
    return " ".join(text.split())


def strip_marks(text: str) -> str:
    """A squeezed text without the markdown emphasis and the quotes that enclose it, or that lost their other half."""
    text = _LONE_MARKS.sub("", squeeze(text).lstrip("#> ")).strip()
    for mark in _EMPHASIS:
        if text.count(mark) % 2:
            text = text.removeprefix(mark) if text.startswith(mark) else text.removesuffix(mark)
        text = _unwrap(text, mark, mark)
    for opening, closing in _QUOTES:
        text = _unwrap(text, opening, closing)
    return text.strip()


def has_content(text: str) -> bool:
    """Whether a text says anything: not only punctuation, and not a placeholder such as `<question>` or `[...]`."""
    return bool(re.search(r"\w", text)) and not re.fullmatch(r"\s*(<[^<>]*>|\[[^\[\]]*\]|\{[^{}]*\})\s*", text)


def is_none(text: str) -> bool:
    """Whether a text is only a way to write None: `None.`, `**N/A**`, `null`, `[]`."""
    return bool(_NONE.fullmatch(text)) or bool(re.fullmatch(r"\s*(\[\s*\]|\{\s*\})\s*", text))


def says_none(text: str) -> bool:
    """Whether a whole completion begins with None, explained or not; `None of the men ...` is not one."""
    return is_none(text) or bool(_NONE_FIRST.match(text))


def ends_in_none(text: str) -> bool:
    """Whether the last word of a completion that holds no question is None."""
    return "?" not in text and bool(_NONE_LAST.search(text))


def is_refusal(text: str) -> bool:
    """Whether a text opens as a refusal: `I'm sorry, but I can't ...`, `As an AI ...`."""
    return bool(_REFUSAL.match(text.replace("’", "'")))


def is_unspecified(answer: str) -> bool:
    """Whether an answer only says that it is not to be seen.

    LLaVA-Video-178K drops answers that begin with "does not specify", "does not mention", "does not specifically",
    "does not depict" or "does not show" (arXiv 2410.02713, section 3); the subject before them is allowed for.
    """
    return bool(_UNSPECIFIED.match(answer.replace("’", "'")))


def normalise_answer(text: str) -> str:
    """Lower case, without punctuation, articles and extra white space, as the SQuAD evaluation has it."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def token_f1(answer: str, reference: str) -> float:
    """Token F1 of two answers, 0 to 1 (Rajpurkar et al. 2016, SQuAD: arXiv 1606.05250).

    Two texts without any token left after normalisation do not agree: there is nothing to agree on.
    """
    answer_tokens, reference_tokens = normalise_answer(answer).split(), normalise_answer(reference).split()
    num_shared = sum((Counter(answer_tokens) & Counter(reference_tokens)).values())
    if not num_shared:
        return 0.0
    return 2 * num_shared / (len(answer_tokens) + len(reference_tokens))


def score_agreement(answer: str, reference: str) -> float:
    """Token F1, but 0 where the answers contradict each other in the one word that matters.

    Yes against no, left against right, up against down, and other numbers share most of their tokens in a sentence;
    token F1 alone would call them agreed. A bare `yes` or `no` agrees fully with a sentence that opens with it.
    """
    answer_tokens, reference_tokens = _read_tokens(answer), _read_tokens(reference)
    if _contradict(set(answer_tokens), set(reference_tokens)):
        return 0.0
    openings = {*answer_tokens[:1], *reference_tokens[:1]}
    if min(len(answer_tokens), len(reference_tokens)) == 1 and openings in ({"yes"}, {"no"}):
        return 1.0
    return token_f1(answer, reference)


def has_number(text: str) -> bool:
    """Whether a text holds a number, in digits or as a word up to twelve."""
    return any(character.isdecimal() for token in _read_tokens(text) for character in token)


def _unwrap(text: str, opening: str, closing: str) -> str:
    inner = text[len(opening) : -len(closing)]
    is_wrapped = text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing)
    return inner if is_wrapped and opening not in inner and closing not in inner else text


def _read_tokens(text: str) -> list[str]:
    return [_NUMBERS.get(token, token) for token in normalise_answer(text).split()]


def _contradict(answer: set[str], reference: set[str]) -> bool:
    numbers = [{token for token in tokens if token.isdecimal()} for tokens in (answer, reference)]
    if all(numbers) and not numbers[0] & numbers[1]:
        return True
    return any(answer & pair and reference & pair and not answer & reference & pair for pair in _OPPOSITES)
