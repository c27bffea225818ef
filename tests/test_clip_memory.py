"""A changed recipe asks of a clip what it was not asked before, and says what asking everything would have said."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from framescribe.llava_video.engine.generation import GenerationConfig
from framescribe.recipes import RecipeResult, parse_recipe
from framescribe.recipes.engine_video import EngineVideo
from schemas.records import KeptCompletion
from tests.support.recipes_fixtures import FULL_YAML, LEVELS_YAML
from tests.support.talking_engine import TalkingEngine
from transforms.answer_reuse import ClipMemory, RememberingVideo, digest_question, digest_score

FRAMES = np.random.default_rng(5).integers(0, 256, (8, 4, 4, 3), dtype=np.uint8)
TIMES_S = tuple(5.0 * number for number in range(8))
DURATION_S = 40.0
SCORED_YAML = FULL_YAML.replace(
    FULL_YAML[FULL_YAML.index("recheck:") : FULL_YAML.index("stop_loops")],
    'score: {id: score, prompt: "{question} Be brief."}\n',
)
NUM_TYPES = 3
OF_A_PAIR = 5  # seen and blind, the wrong answers, and their question seen and blind
GENERATION = GenerationConfig(20)
SEEN = ("digest", (0.0, 1.0), 2.0)


def annotate(
    recipe: str,
    memory: ClipMemory,
    frames: np.ndarray = FRAMES,
    times_s: tuple[float, ...] = TIMES_S,
    duration_s: float = DURATION_S,
) -> tuple[RecipeResult, list[str]]:
    """Returns the result of a recipe's text, and the questions that the engine was asked."""
    engine = TalkingEngine("revision")

    async def run() -> RecipeResult:
        video = EngineVideo.open(engine, "clip", frames, times_s, duration_s)  # type: ignore[arg-type]
        return await parse_recipe(recipe, "test.yaml").annotate(RememberingVideo(video, memory), "clip")

    return asyncio.run(run()), [question for _, question in engine.asked]


def memory_of(recipe: str, frames: np.ndarray = FRAMES) -> ClipMemory:
    """Returns a memory that knows what a recipe asked."""
    asked = ClipMemory({})
    annotate(recipe, asked, frames)
    return ClipMemory({one.question_digest: one for one in asked.completions})


@pytest.mark.parametrize(
    ("before", "after", "num_asked"),
    [
        ("Describe this.", "Describe it all.", 1),
        ("max_new_tokens: 50", "max_new_tokens: 51", 1),
        ("Be brief.", "Be very brief.", 2 * NUM_TYPES),
        ("Wrong for", "Wrong now for", 3 * NUM_TYPES),
        ("[Only the letter., Letter", "[The letter., Letter", 2 * 2),
        ("how many.", "how many there are.", 1 + OF_A_PAIR),
        ("Ask {type}: ", "Ask {type} now: ", NUM_TYPES * (1 + OF_A_PAIR) + 1),  # one more: the first try about speed
        ("    Count: how many.\n", "", 2 + 2),  # the choices that are left close with the other line each
        ("penalty: 1.15", "penalty: 1.3", 1),
        ("stop_loops: true", "stop_loops: false", 1 + NUM_TYPES * (1 + OF_A_PAIR) + 1),
        ("min_recheck_score: 0.5", "min_recheck_score: 1.0", 0),
        ("id: check", "id: look_again", 0),
    ],
)
def test_a_changed_full_recipe_asks_what_changed_and_what_follows_from_it(before, after, num_asked):
    changed = FULL_YAML.replace(before, after)
    everything, again = ClipMemory({}), memory_of(FULL_YAML)
    wanted, all_questions = annotate(changed, everything)
    result, questions = annotate(changed, again)
    assert result == wanted
    assert again.completions == everything.completions
    assert (len(questions), again.num_asked) == (num_asked, num_asked)
    assert again.num_asked + again.num_reused == len(all_questions)


@pytest.mark.parametrize(
    ("before", "after", "num_asked"),
    [
        ("id: score", "id: scores", 0),
        ("Be brief.", "Be very brief.", 2 * NUM_TYPES),
        ("[Only the letter., Letter", "[The letter., Letter", 8 * 2),
        ("Wrong for", "Wrong now for", (1 + 8) * NUM_TYPES),
        ("how many.", "how many there are.", 1 + 2 + 1 + 8),
    ],
)
def test_scores_of_unchanged_answers_are_taken_and_others_found_anew(before, after, num_asked):
    changed = SCORED_YAML.replace(before, after)
    wanted, all_questions = annotate(changed, ClipMemory({}))
    again = memory_of(SCORED_YAML)
    result, questions = annotate(changed, again)
    assert result == wanted
    assert any(row.option_probabilities for row in result.qa_pairs)
    assert (len(questions), again.num_asked + again.num_reused) == (num_asked, len(all_questions))


@pytest.mark.parametrize(
    ("before", "after", "num_asked"),
    [
        ("All in all?", "All told?", 1),
        ("So far?", "Until now?", 1 + 1 + 1),  # the summary, the segment after it and the whole
        ("What happens?", "What goes on?", 4 + 1 + 1),
        ("segment_s: 10.0", "segment_s: 20.0", 2 + 1),
        ("recipe: levels", "recipe: levels", 0),
    ],
)
def test_a_changed_levels_recipe_asks_what_changed_and_what_follows_from_it(before, after, num_asked):
    changed = LEVELS_YAML.replace(before, after)
    wanted, _ = annotate(changed, ClipMemory({}))
    result, questions = annotate(changed, memory_of(LEVELS_YAML))
    assert result == wanted
    assert len(questions) == num_asked


def test_other_frames_are_asked_everything_but_what_needs_no_video():
    memory = memory_of(FULL_YAML, 255 - FRAMES)
    _, questions = annotate(FULL_YAML, memory)
    assert len(questions) == memory.num_asked
    assert memory.num_reused == 0  # the questions themselves came from the frames


@pytest.mark.parametrize("seen", [{"times_s": tuple(4.0 * n for n in range(8))}, {"duration_s": 39.0}])
def test_the_same_frames_of_other_times_or_of_a_longer_video_are_asked_anew(seen):
    memory = memory_of(FULL_YAML)
    _, questions = annotate(FULL_YAML, memory, **seen)
    assert (len(questions), memory.num_reused) == (memory.num_asked, 2 * NUM_TYPES)  # what needs no video


def test_a_question_with_other_times_frames_words_or_limits_is_another_question():
    digests = {
        digest_question(SEEN, "What?", GENERATION),
        digest_question(None, "What?", GENERATION),
        digest_question(("other", *SEEN[1:]), "What?", GENERATION),
        digest_question((SEEN[0], (0.0, 1.5), 2.0), "What?", GENERATION),
        digest_question((*SEEN[:2], 2.5), "What?", GENERATION),
        digest_question(SEEN, "What? ", GENERATION),
        digest_question(SEEN, "What?", GenerationConfig(21)),
        digest_question(SEEN, "What?", GenerationConfig(20, 1.15)),
        digest_question(SEEN, "What?", GenerationConfig(20, None, True)),
    }
    digests |= {
        digest_score(SEEN, "What?", ("A ball.",)),
        digest_score(SEEN, "What?", ("A", " ball.")),
        digest_score(SEEN, "What is it?", ("A ball.",)),
        digest_score(None, "What?", ("A ball.",)),
    }
    assert len(digests) == 13
    assert {len(digest) for digest in digests} == {16}


def test_a_name_that_is_no_unicode_can_stand_in_a_question():
    assert digest_question(None, "clip-\udcff", GENERATION) != digest_question(None, "clip-\udcfe", GENERATION)


def test_a_restored_completion_is_the_one_that_was_given():
    engine = TalkingEngine("revision")
    video = EngineVideo.open(engine, "clip", FRAMES, TIMES_S, DURATION_S)  # type: ignore[arg-type]

    async def ask(memory: ClipMemory) -> list[object]:
        remembering = RememberingVideo(video, memory)
        return [await ask("Grüße?", GENERATION) for ask in (remembering.ask, remembering.ask_text)]

    first = ClipMemory({})
    given = asyncio.run(ask(first))
    restored = asyncio.run(ask(ClipMemory({one.question_digest: one for one in first.completions})))
    assert restored == given
    assert len(engine.asked) == 2


def test_completions_are_kept_in_an_order_that_does_not_depend_on_when_they_came():
    known = {bytes([n]): KeptCompletion(bytes([n]), (n,), "stop", 7) for n in range(3)}
    memory = ClipMemory(known)
    for digest in (b"\x02", b"\x00", b"\x01"):
        memory.recall(digest)
    assert memory.completions == tuple(known.values())
