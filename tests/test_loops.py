"""The loop detector stops what goes round in circles, and nothing else."""

from __future__ import annotations

import random
import re
import time

import pytest

from framescribe.llava_video.engine.loops import has_repeated_sentence, is_looping

TREE = """The video opens with a wide shot of a quiet park. A man in a grey coat walks a small dog along a path. He
stops by a bench, looks at his watch and sits down. The dog lies down beside him. After a while a woman with a red
umbrella arrives, and the two talk. They laugh. It begins to rain, and they share the umbrella as they leave."""


def tokens_of(text: str) -> list[int]:
    """One id a word, number digit or mark, as a real tokenizer has it for common words."""
    vocabulary: dict[str, int] = {}
    pieces = re.findall(r"[A-Za-z]+|\d|[^\sA-Za-z\d]|\n", text)
    return [vocabulary.setdefault(piece, len(vocabulary)) for piece in pieces]


def stop_of(token_ids: list[int]) -> int | None:
    """How many tokens the engine generates before the detector stops it; None when it never does."""
    return next((length for length in range(1, len(token_ids) + 1) if is_looping(token_ids[:length])), None)


SENTENCE = "The man is seen wearing a black jacket and walking through the hallway. "
COLOURS = ["red", "green", "blue", "yellow", "white", "black", "pink", "orange", "grey", "brown"]


@pytest.mark.parametrize(
    ("text", "latest_stop"),
    [
        (TREE + SENTENCE * 50, 90 + 14 * 5 + 16),
        ("! " * 400, 64),
        ("the man the man the man " * 60, 64),
        (TREE + (SENTENCE + "He then turns around and looks at the camera. ") * 30, 90 + 25 * 5 + 16),
        ((TREE + "\n") * 12, 4 * 90),
        ("\n".join(f"{number}. {SENTENCE}He looks at his watch." for number in range(1, 60)), 12 * 25),
        ("".join(f"At {number} seconds: {SENTENCE}" for number in range(10, 90)), 20 * 20),
    ],
    ids=["sentence", "marks", "words", "two sentences", "paragraph", "numbered sentence", "timed sentence"],
)
def test_a_loop_is_stopped_after_a_few_copies(text, latest_stop):
    stop = stop_of(tokens_of(text))

    assert stop is not None
    assert stop <= latest_stop


@pytest.mark.parametrize(
    "text",
    [
        TREE,
        "Yes yes yes, no no no, ha ha ha ha ha! " * 2 + TREE,
        "\n".join(f"{number}. The {colour} car passes the bridge." for number, colour in enumerate(COLOURS * 4, 1)),
        "\n".join(f"- {colour}: moves to the left" for colour in COLOURS),
        "| shape | colour | motion |\n| --- | --- | --- |\n"
        + "\n".join(f"| circle | {colour} | moves left |" for colour in COLOURS * 3),
        "| " + "--- | " * 10,
        "\n".join(f"Frame {number}: circle" for number in range(1, 33)),
        "".join(f"At 0:0{number}, {colour} lights flash. " for number, colour in enumerate(COLOURS)),
        "Row, row, row your boat, gently down the stream. Merrily, merrily, merrily, life is but a dream. " * 3,
        "The man walks. The man stops. The man turns. The man walks. The man sits. The man walks. The man waves. " * 2,
        "-" * 20 + "\n" + "=" * 30 + "\n" + TREE,
        "1 0 1 1 0 0 1 0 1 1 1 0 0 0 1 0 1 0 0 1 1 0 1 0 1 1 0 0 0 1 1 1 0 1 0 0 1 1 0 0",
        "A, B, C, D. " * 3,
    ],
    ids=[
        "prose", "interjections", "numbered list", "bullets", "table", "table rule", "frames", "timeline", "song",
        "short sentences", "dashes", "bits", "letters",
    ],
)  # fmt: skip
def test_ordinary_text_is_no_loop(text):
    assert stop_of(tokens_of(text)) is None


@pytest.mark.parametrize("num_words", [4, 50, 5000])
def test_random_text_is_no_loop(num_words):
    random_ids = random.Random(num_words)

    assert stop_of([random_ids.randrange(num_words) for _ in range(2000)]) is None


@pytest.mark.parametrize("period", [1, 2, 7, 8, 16, 33, 100, 256])
def test_a_stretch_of_any_length_that_repeats_to_the_end_is_found_wherever_it_begins(period):
    random_ids = random.Random(period)
    before = [random_ids.randrange(5000) for _ in range(period + 5)]
    passage = [random_ids.randrange(5000) for _ in range(period)]

    stop = stop_of(before + passage * (4 + 64 // period))

    assert stop is not None
    assert stop <= len(before) + max(48 + period, 4 * period) + 16


def test_a_loop_in_the_past_that_the_model_left_is_no_loop():
    ids = tokens_of(SENTENCE) * 20 + list(range(1000, 1300))

    assert not is_looping(ids)


def test_a_tuple_and_an_empty_answer_are_fine():
    assert not is_looping(())
    assert is_looping((5,) * 64)


def test_a_look_costs_microseconds_however_long_the_answer_is():
    random_ids = random.Random(1)
    ids = [random_ids.randrange(50) for _ in range(4096)]
    start = time.process_time()

    looped = [is_looping(ids[:length]) for length in range(3072, 4096)]

    assert not any(looped)
    assert (time.process_time() - start) / len(looped) < 100e-6  # about 2 on an idle machine


def test_a_sentence_repeated_behind_numbers_is_a_loop_in_text():
    assert has_repeated_sentence("\n".join(f"{number}. The man walks." for number in range(1, 9)))
    assert has_repeated_sentence("Well: " + "The man walks on. Then he stops. " * 8)


@pytest.mark.parametrize(
    "text",
    [
        TREE,
        "",
        "Yes. " * 40,
        "\n".join(f"{number}. The man walks." for number in range(1, 8)),
        "\n".join(f"Frame {number}: the red circle." for number in range(1, 30)),
        "\n".join(f"| circle | {colour} | moves left |" for colour in COLOURS),
    ],
)
def test_text_whose_sentences_differ_or_are_few_is_no_loop(text):
    assert not has_repeated_sentence(text)
