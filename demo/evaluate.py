"""Measures the demo checkpoint through the engine on clips it has never seen: `python -m demo.evaluate --seed 7`.

Every clip is rendered, encoded, decoded and sampled as in a run; every prompt is one that the recipes send. With
`--consistency` a recipe writes QA pairs about the clips instead, and the table says how many are right: of all pairs,
and of those that the model agreed with when it was asked again.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from demo import answers, questions
from demo.questions import Asked
from demo.video_files import decode_evenly, encode_scene
from demo.world import Scene, play_backwards, random_scene
from framescribe.llava_video import Completion, Engine, EngineConfig, GenerationConfig
from framescribe.recipes import load_recipe
from framescribe.recipes.annotation import QAPair, Status
from framescribe.recipes.engine_video import EngineVideo
from framescribe.recipes.questions import FullRecipe
from framescribe.recipes.recipe import Recipe

CHECKPOINT = Path(__file__).parent / "checkpoint"
MIN_FRACTION_RIGHT = 0.95
NUM_FRAMES = 8
CONSISTENCY_RECIPE = "full"
CLIPS_AT_ONCE = 8
SHORT_QUESTIONS, CHOICES, WRONG_ANSWERS, BLIND = 4, 4, 2, 2
MAX_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Answered:
    """One question with the model's words."""

    asked: Asked
    text: str

    @property
    def is_right(self) -> bool:
        """Whether the answer is the expected one, letter by letter."""
        return self.text == self.asked.answer


def evaluate(engine: Engine, seed: int, num_clips: int, num_frames: int = NUM_FRAMES) -> list[Answered]:
    """Asks everything about `num_clips` random clips and about the same clips played backwards."""
    rng = np.random.default_rng([seed, 20_001])
    answered: list[Answered] = []
    for _ in range(num_clips):
        scene = random_scene(rng)
        video = encode_scene(scene)
        answered += ask_about_clip(engine, scene, video, num_frames, rng)
        answered += ask_backwards(engine, scene, video, num_frames)
    return answered


def ask_about_clip(
    engine: Engine, scene: Scene, video: bytes, num_frames: int, rng: np.random.Generator
) -> list[Answered]:
    """Asks every kind of question about one encoded clip, and its text-only questions."""
    seeing, blind = list(draw_questions(scene, rng)), list(draw_text_questions(scene, rng))
    frames, times_s, duration_s = decode_evenly(video, num_frames)
    opened = engine.open(frames, times_s.tolist(), duration_s)
    pending = [(asked, opened.ask(asked.question, GenerationConfig(max_new_tokens=160))) for asked in seeing]
    pending += [(asked, engine.ask(asked.question, GenerationConfig(max_new_tokens=160))) for asked in blind]
    answered = [read(asked, future) for asked, future in pending]
    opened.close()
    return answered


def ask_backwards(engine: Engine, scene: Scene, video: bytes, num_frames: int) -> list[Answered]:
    """Asks for the caption of the same decoded frames in reverse order."""
    frames, times_s, duration_s = decode_evenly(video, num_frames)
    asked = Asked("played_backwards", questions.prompts().caption, answers.caption(play_backwards(scene)))
    opened = engine.open(frames[::-1].copy(), times_s.tolist(), duration_s)
    answered = read(asked, opened.ask(asked.question, GenerationConfig(max_new_tokens=160)))
    opened.close()
    return [answered]


def read(asked: Asked, future: Future[Completion]) -> Answered:
    """Waits for an answer."""
    return Answered(asked, future.result().text)


def draw_questions(scene: Scene, rng: np.random.Generator) -> Iterator[Asked]:
    """Yields the caption, all sixteen types and some of every other kind of question about a scene."""
    pairs = answers.all_pairs(scene)
    yield questions.ask_caption(scene)
    for name, _ in questions.prompts().types:
        yield questions.ask_typed(scene, name)
    for _ in range(SHORT_QUESTIONS):
        yield questions.ask_short(questions.pick(rng, pairs))
    for _ in range(CHOICES):
        yield questions.ask_choice(questions.pick(rng, pairs), rng)
    for _ in range(WRONG_ANSWERS):
        yield questions.ask_wrong_answers(questions.pick(rng, pairs))
    yield questions.ask_segment(scene, questions.random_history(rng))


def draw_text_questions(scene: Scene, rng: np.random.Generator) -> Iterator[Asked]:
    """Yields what is asked without the video."""
    pairs = answers.all_pairs(scene)
    for _ in range(BLIND):
        yield questions.ask_without_video(questions.ask_short(questions.pick(rng, pairs)))
        yield questions.ask_without_video(questions.ask_choice(questions.pick(rng, pairs), rng))
    yield questions.random_retelling(rng)


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """A QA pair that a recipe wrote about a scene; right where the scene has that question and that answer."""

    pair: QAPair
    is_right: bool


def second_looks() -> Recipe:
    """Returns the recipe that asks again, which scores as well, as `detailed` does."""
    asks_again, scores = load_recipe(CONSISTENCY_RECIPE), load_recipe("detailed")
    assert isinstance(asks_again, FullRecipe)
    assert isinstance(scores, FullRecipe)
    return replace(asks_again, score=scores.score)


def annotate_and_judge(
    engine: Engine, seed: int, num_clips: int, num_frames: int, recipe: Recipe | None = None
) -> list[JudgedPair]:
    """Runs a recipe, or the one that asks again, over random clips, and returns the pairs that it wrote, judged."""
    recipe = recipe or load_recipe(CONSISTENCY_RECIPE)
    rng = np.random.default_rng([seed, 20_002])
    scenes = [random_scene(rng) for _ in range(num_clips)]
    judged: list[JudgedPair] = []
    for start in range(0, num_clips, CLIPS_AT_ONCE):
        group = scenes[start : start + CLIPS_AT_ONCE]
        judged += asyncio.run(_annotate_group(engine, group, start, num_frames, recipe))
    return judged


async def _annotate_group(
    engine: Engine, scenes: Sequence[Scene], start: int, num_frames: int, recipe: Recipe
) -> list[JudgedPair]:
    numbered = enumerate(scenes, start=start)
    judged = await asyncio.gather(
        *(_annotate_scene(engine, scene, f"clip-{n}", num_frames, recipe) for n, scene in numbered)
    )
    return [one for of_scene in judged for one in of_scene]


async def _annotate_scene(
    engine: Engine, scene: Scene, clip_id: str, num_frames: int, recipe: Recipe
) -> list[JudgedPair]:
    frames, times_s, duration_s = decode_evenly(encode_scene(scene), num_frames)
    video = EngineVideo.open(engine, clip_id, frames, tuple(times_s.tolist()), duration_s)
    result = await recipe.annotate(video, clip_id)
    video.close()
    return [judge(pair, scene) for pair in result.qa_pairs if pair.status is Status.OK]


def judge(pair: QAPair, scene: Scene) -> JudgedPair:
    """Compares a pair with the scene, word for word; a question that the scene has no answer to is wrong."""
    return JudgedPair(pair, (pair.question, pair.answer) in answers.all_pairs(scene))


def write_consistency_table(judged: Sequence[JudgedPair]) -> str:
    """Returns the table: how many pairs are right, of all and of the consistent ones, for each kind."""
    lines = [f"{'kind':<16} {'pairs':>17} {'right':>6} {'written':>8} {'fraction':>9}"]
    for kind in ("open_ended", "multiple_choice"):
        of_kind = [one for one in judged if one.pair.kind == kind]
        for name, pairs in (("all", of_kind), ("consistent", [one for one in of_kind if one.pair.is_consistent])):
            num_right = sum(one.is_right for one in pairs)
            fraction = num_right / max(1, len(pairs))
            lines.append(f"{kind:<16} {name:>17} {num_right:>6} {len(pairs):>8} {fraction:>9.1%}")
    return "\n".join(lines)


def split_kinds(answered: Sequence[Answered]) -> dict[str, list[Answered]]:
    """Groups answers by what the table counts; open-ended ones by whether the type applies."""
    groups: dict[str, list[Answered]] = {}
    for one in answered:
        kind = one.asked.kind
        if kind == "open_ended":
            kind = "open_ended, None" if one.asked.answer == "None" else "open_ended, a pair"
        groups.setdefault(kind, []).append(one)
    return dict(sorted(groups.items()))


def fraction_right(answered: Sequence[Answered]) -> float:
    """Returns the fraction of answers that are right word for word."""
    return sum(one.is_right for one in answered) / len(answered)


def write_table(groups: dict[str, list[Answered]]) -> str:
    """Returns the table, a line for each kind."""
    lines = [f"{'kind':<20} {'right':>6} {'asked':>6} {'right %':>7}"]
    for kind, answered in groups.items():
        num_right = sum(one.is_right for one in answered)
        lines.append(f"{kind:<20} {num_right:>6} {len(answered):>6} {num_right / len(answered):>7.1%}")
    return "\n".join(lines)


def write_mistakes(groups: dict[str, list[Answered]]) -> str:
    """Returns the first wrong answers of each kind."""
    lines = []
    for kind, answered in groups.items():
        for one in [one for one in answered if not one.is_right][:MAX_SHOWN]:
            lines.append(f"{kind}: {one.asked.question!r}\n  wanted {one.asked.answer!r}\n  got    {one.text!r}")
    return "\n".join(lines)


def main() -> int:
    """Prints the table; returns 1 when any kind is under 95 %, unless consistency was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--model", default=str(CHECKPOINT))
    parser.add_argument("--num-frames", type=int, default=NUM_FRAMES, help="frames per clip (default: %(default)s)")
    parser.add_argument("--consistency", action="store_true", help="what consistency says about right and wrong")
    parser.add_argument("--mistakes", action="store_true", help="print some wrong answers of each kind")
    given = parser.parse_args()
    with Engine.load(EngineConfig(model=given.model, device="cpu", dtype="float32")) as engine:
        if given.consistency:
            print(write_consistency_table(annotate_and_judge(engine, given.seed, given.clips, given.num_frames)))
            return 0
        groups = split_kinds(evaluate(engine, given.seed, given.clips, given.num_frames))
    print(write_table(groups))
    if given.mistakes:
        print(write_mistakes(groups))
    weak = [kind for kind, answered in groups.items() if fraction_right(answered) < MIN_FRACTION_RIGHT]
    if weak:
        print(f"under {MIN_FRACTION_RIGHT:.0%}: {', '.join(weak)}", file=sys.stderr)
    return 1 if weak else 0


if __name__ == "__main__":
    sys.exit(main())
