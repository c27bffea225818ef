"""The recipes' own prompts, filled in for a scene, each with its right answer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import yaml

from demo import answers
from demo.world import Scene, random_scene

RECIPES = Path(__file__).resolve().parent.parent / "framescribe" / "recipes"
LETTERS = "ABCD"


@dataclass(frozen=True, slots=True)
class Asked:
    """One question as the model gets it and the only right answer; `kind` is what evaluation counts by."""

    kind: str
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Prompts:
    """Every prompt that the recipes send."""

    caption: str
    open_ended: str
    types: tuple[tuple[str, str], ...]
    wrong_answers: str
    closings: tuple[str, str]
    recheck: str
    segment: str
    summary: str
    video: str


@cache
def prompts() -> Prompts:
    """Reads the prompts from recipes/full.yaml and recipes/levels.yaml."""
    full, levels = (yaml.safe_load((RECIPES / f"{name}.yaml").read_text()) for name in ("full", "levels"))
    types, choice = full["open_ended"]["types"], full["multiple_choice"]
    return Prompts(
        caption=full["caption"]["prompt"],
        open_ended=full["open_ended"]["prompt"],
        types=tuple(types.items()),
        wrong_answers=choice["prompt"],
        closings=tuple(choice["closings"]),
        recheck=full["recheck"]["prompt"],
        segment=levels["segment"]["prompt"],
        summary=levels["summary"]["prompt"],
        video=levels["video"]["prompt"],
    )


def ask_caption(scene: Scene) -> Asked:
    """Asks for the caption."""
    return Asked("caption", prompts().caption, answers.caption(scene))


def ask_typed(scene: Scene, kind: str) -> Asked:
    """Asks for a pair of this type; the right answer is None where the type does not apply."""
    prompt = prompts().open_ended.replace("{type}", kind).replace("{definition}", dict(prompts().types)[kind])
    pair = answers.typed_pairs(scene).get(kind)
    return Asked("open_ended", prompt, f"Question: {pair[0]}\nAnswer: {pair[1]}" if pair else "None")


def ask_short(pair: answers.Pair) -> Asked:
    """Asks for an answer in a few words."""
    return Asked("recheck", prompts().recheck.replace("{question}", pair[0]), pair[1])


def ask_wrong_answers(pair: answers.Pair) -> Asked:
    """Asks for three wrong answers."""
    prompt = prompts().wrong_answers.replace("{question}", pair[0]).replace("{answer}", pair[1])
    return Asked("wrong_answers", prompt, "\n".join(answers.wrong_answers(pair[1])))


def ask_choice(pair: answers.Pair, rng: np.random.Generator) -> Asked:
    """Asks with four options; right option, order and closing line are drawn from `rng`."""
    options = [pair[1], *answers.wrong_answers(pair[1])]
    order = rng.permutation(4)
    at, closing = int(np.flatnonzero(order == 0)[0]), int(rng.integers(2))
    lines = [f"{letter}. {options[index]}" for letter, index in zip(LETTERS, order, strict=True)]
    question = "\n".join([pair[0], *lines, prompts().closings[closing]])
    answer = f"{LETTERS[at]}." if closing == 0 else f"{LETTERS[at]}. {pair[1]}."
    return Asked("multiple_choice", question, answer)


def ask_segment(scene: Scene, history: list[str]) -> Asked:
    """Asks for the caption of a segment, after these captions of earlier ones."""
    before = "".join(f"\n- {text}" for text in history)
    prompt = prompts().segment.replace("{history}", f"\nWhat happened before:{before}" if history else "")
    return Asked("segment", prompt, answers.caption(scene))


def ask_without_video(asked: Asked) -> Asked:
    """Asks the same text-only, which nobody can answer."""
    return Asked("without_video", asked.question, answers.WITHOUT_VIDEO)


def ask_retelling(descriptions: list[str], prompt: str) -> Asked:
    """Asks to summarise descriptions, text-only; `prompt` is the summary's or the video's."""
    lines = "\n".join(f"{number}. {text}" for number, text in enumerate(descriptions, start=1))
    return Asked("retelling", prompt.replace("{descriptions}", lines), answers.retell(descriptions))


def random_retelling(rng: np.random.Generator) -> Asked:
    """Asks to retell one to three captions, or a summary of two or three by itself."""
    captions = [answers.caption(random_scene(rng)) for _ in range(int(rng.integers(1, 4)))]
    if rng.random() < 0.25:
        captions = [answers.retell(captions)]
    return ask_retelling(captions, _either(rng))


def random_single_retelling(rng: np.random.Generator) -> Asked:
    """Asks to retell one caption, which teaches copying before its order matters."""
    return ask_retelling([answers.caption(random_scene(rng))], _either(rng))


def _either(rng: np.random.Generator) -> str:
    return (prompts().summary, prompts().video)[int(rng.integers(2))]


def pick(rng: np.random.Generator, pairs: list[answers.Pair]) -> answers.Pair:
    """Draws one of the pairs."""
    return pairs[int(rng.integers(len(pairs)))]


def random_history(rng: np.random.Generator) -> list[str]:
    """Draws none to three earlier captions, or a summary and a caption."""
    captions = [answers.caption(random_scene(rng)) for _ in range(int(rng.integers(0, 4)))]
    return [answers.retell(captions[:2]), captions[2]] if len(captions) == 3 and rng.random() < 0.5 else captions
