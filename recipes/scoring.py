"""How well two short answers agree."""

from __future__ import annotations

import re
import string
from collections import Counter

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve"
_NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())}
_OPPOSITES = (frozenset({"yes", "no"}), frozenset({"left", "right"}), frozenset({"up", "down"}))


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


def _read_tokens(text: str) -> list[str]:
    return [_NUMBERS.get(token, token) for token in normalise_answer(text).split()]


def _contradict(answer: set[str], reference: set[str]) -> bool:
    numbers = [{token for token in tokens if token.isdecimal()} for tokens in (answer, reference)]
    if all(numbers) and not numbers[0] & numbers[1]:
        return True
    return any(answer & pair and reference & pair and not answer & reference & pair for pair in _OPPOSITES)
