"""Tells a completion that goes round in circles from one that is only long.

The 7B model repeats a sentence up to fifty times and then runs into the token limit (LLaVA-NeXT issue 362). Two rules
on token ids stop it while it generates; one rule on text finds what they let pass. A false alarm cuts a good answer, a
late one costs some tokens: the thresholds lean towards late.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress

CHECK_EVERY = 16
"""Tokens between two looks: a loop costs at most fifteen tokens more, and looking a sixteenth."""

MAX_PERIOD = 256
"""Longest repeated passage that is looked for, about ten sentences."""

MIN_COPIED = 48
"""Tokens that must repeat what stands one period before them; `| --- | --- |` rows and `ha ha ha` stay below."""

NUM_COPIES_SHORT, NUM_COPIES_LONG, LONG_PERIOD = 4, 3, 32
"""Copies of a passage that make a loop: four of a sentence, three of a passage of more than 32 tokens (a paragraph)."""

GRAM, NUM_GRAMS, GRAM_WINDOW = 16, 8, 1024
"""The last 16 tokens standing eight times among the last 1,024: a sentence that returns with others in between.

Sixteen, because the rows of an honest table or list have a shorter passage in common than that before they differ.
"""

MIN_SENTENCE_WORDS, NUM_SENTENCES = 3, 8
"""The same sentence of three words or more, numbering apart, eight times in one text."""


def is_looping(token_ids: Sequence[int]) -> bool:
    """Whether the tokens generated so far end in a loop; to be called after each new token.

    Looks only when the number of tokens is a multiple of `CHECK_EVERY`, and then at no more than `GRAM_WINDOW` of
    them: some 20 microseconds, whatever the length, so about one for each token.
    """
    if len(token_ids) < MIN_COPIED or len(token_ids) % CHECK_EVERY:
        return False
    tail = list(token_ids[-GRAM_WINDOW:])
    # The gram looked for ends some tokens before the end, more or fewer at each look: a running number inside each copy
    # of a sentence cannot be hit every time.
    gram_stop = len(tail) - len(token_ids) // CHECK_EVERY % CHECK_EVERY
    return _ends_in_copies(tail) or _is_frequent(tail[gram_stop - GRAM : gram_stop], tail)


def has_repeated_sentence(text: str) -> bool:
    """Whether one sentence or line stands in a text `NUM_SENTENCES` times, whatever number leads it."""
    sentences = (_WORD.findall(sentence.lower()) for sentence in _SENTENCE_END.split(text))
    counts = Counter(" ".join(words) for words in sentences if len(words) >= MIN_SENTENCE_WORDS)
    return any(count >= NUM_SENTENCES for count in counts.values())


# A leading number ends a "sentence" of its own, so that `12. The man walks.` counts as `The man walks.`
_SENTENCE_END = re.compile(r"[.!?。！？](?=\s|$)|\n|(?:^|(?<=[.!?]\s))\d{1,4}[.):](?=\s)", re.MULTILINE)
_WORD = re.compile(r"\w+")


def _ends_in_copies(tail: list[int]) -> bool:
    return any(_is_copied(tail, period) for period in _find_periods(tail))


def _find_periods(tail: list[int]) -> Iterator[int]:
    """How far back the newest token stands before, up to MAX_PERIOD: no other period can be that of a loop."""
    backwards = tail[: -MAX_PERIOD - 2 : -1]
    period = 0
    with suppress(ValueError):
        while True:  # `index` scans in C; a Python loop over all periods costs ten times as much
            period = backwards.index(backwards[0], period + 1)
            yield period


def _is_copied(tail: list[int], period: int) -> bool:
    num_copies = NUM_COPIES_SHORT if period <= LONG_PERIOD else NUM_COPIES_LONG
    num_copied = max(MIN_COPIED, (num_copies - 1) * period)
    start = len(tail) - num_copied
    if start < period or tail[-2] != tail[-2 - period]:  # the second newest token settles most cases
        return False
    return tail[start:] == tail[start - period : -period]


def _is_frequent(gram: list[int], tail: list[int]) -> bool:
    num_grams, start = 0, 0
    while num_grams < NUM_GRAMS:
        try:
            start = tail.index(gram[0], start, len(tail) - GRAM + 1)
        except ValueError:
            return False
        found = tail[start + 1] == gram[1] and tail[start : start + GRAM] == gram
        num_grams += found
        start += GRAM if found else 1  # copies do not overlap: a dashed line is not a loop yet
    return True
