"""Questions about a batch of scenes, tokenised and laid out in blocks of about equal length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from tokenizers import Tokenizer

from demo import answers, questions
from demo.questions import Asked
from demo.training.tokenizer import SYSTEM, TURN_END, time_instruction
from demo.world import FPS, Scene, random_scene

IGNORED = -100
KNOWN_ANSWERS = tuple(dict.fromkeys(answer for category in answers.CATEGORIES for answer in category))


@dataclass(frozen=True, slots=True)
class Block:
    """Questions with their answers: ids and targets int64 [B, Q, L], weights float32 [B, Q, L] over answer tokens.

    `options` int64 [B, Q, L] says 1 at the end of the right option's line and 0 at the end of a wrong one's;
    `known` int64 [B, Q, L] numbers the right answer among KNOWN_ANSWERS at the end of the question's line.
    """

    ids: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    options: torch.Tensor
    known: torch.Tensor
    kinds: list[list[str]]


class Encoder:
    """The tokenizer with a memory: most texts come again and again."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.encode = lru_cache(maxsize=200_000)(lambda text: tuple(tokenizer.encode(text).ids))
        self.end = self.encode("<|im_end|>")
        self.system = list(self.encode(SYSTEM))
        self.newline, self.question_end = self.encode("\n")[0], self.encode("?\n")[0]

    def exchange(self, asked: Asked) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns the ids of the question up to where the answer begins, and of the answer with its end."""
        return self.encode(asked.question + TURN_END), self.encode(asked.answer) + self.end


def pack_block(encoder: Encoder, asked: list[list[Asked]]) -> Block:
    """Puts the same number of questions for each clip into one padded block.

    An answer of n tokens weighs the square root of n in all: one letter must not drown in long captions.
    """
    pairs = [[encoder.exchange(one) for one in row] for row in asked]
    longest = max(len(question) + len(answer) for row in pairs for question, answer in row) - 1
    shape = (len(asked), len(asked[0]), longest)
    ids, targets = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
    weights = np.zeros(shape, dtype=np.float32)
    options, known = (np.full(shape, IGNORED, dtype=np.int64) for _ in range(2))
    for b, row in enumerate(pairs):
        for q, (question, answer) in enumerate(row):
            whole = question + answer
            ids[b, q, : len(whole) - 1] = whole[:-1]
            spoken = slice(len(question) - 1, len(whole) - 1)
            targets[b, q, spoken] = answer
            weights[b, q, spoken] = len(answer) ** -0.5
            if asked[b][q].kind == "multiple_choice":
                line_ends = [at for at, token in enumerate(question) if token == encoder.newline][:4]
                options[b, q, line_ends] = [int(letter == asked[b][q].answer[0]) for letter in questions.LETTERS]
            if asked[b][q].kind in ("multiple_choice", "recheck") and encoder.question_end in question:
                known[b, q, question.index(encoder.question_end)] = KNOWN_ANSWERS.index(right_answer(asked[b][q]))
    kinds = [[one.kind for one in row] for row in asked]
    return Block(
        torch.from_numpy(ids),
        torch.from_numpy(targets),
        torch.from_numpy(weights),
        torch.from_numpy(options),
        torch.from_numpy(known),
        kinds,
    )


@dataclass(frozen=True, slots=True)
class Mix:
    """How many clips one step takes and how many questions of each kind it asks about each."""

    clips: int
    short: int
    choices: int
    wrong: int
    typed: int
    segment_every: int  # steps; 0 for never
    text_only_every: int  # steps; 0 for never
    full_prompts: bool  # with system text and frame times, or with the last sentence before the question alone


def right_answer(asked: Asked) -> str:
    """Returns the answer itself, for a multiple-choice question the text of the right option."""
    if asked.kind != "multiple_choice":
        return asked.answer
    mark = f"\n{asked.answer[0]}. "
    return asked.question.partition(mark)[2].partition("\n")[0]


def ask_about(scenes: list[Scene], mix: Mix, rng: np.random.Generator, with_segments: bool) -> list[list[list[Asked]]]:
    """Draws the questions for each scene, a list for each block of questions of about one length."""
    blocks: list[Callable[[Scene], list[Asked]]] = [
        lambda scene: [questions.ask_caption(scene)],
        lambda scene: [_short(scene, rng) for _ in range(mix.short)],
        lambda scene: [
            *(_choice(scene, rng) for _ in range(mix.choices)),
            *(_wrong(scene, rng) for _ in range(mix.wrong)),
        ],
        lambda scene: [_typed(scene, rng) for _ in range(mix.typed)],
        lambda scene: [questions.ask_segment(scene, questions.random_history(rng))] if with_segments else [],
    ]
    asked = ([ask(scene) for scene in scenes] for ask in blocks)
    return [rows for rows in asked if rows[0]]


def _short(scene: Scene, rng: np.random.Generator) -> Asked:
    pair = questions.pick(rng, answers.all_pairs(scene))
    # Some without the closing line, so that people can ask in their own short way.
    return Asked("recheck", *pair) if rng.random() < 0.12 else questions.ask_short(pair)


def _choice(scene: Scene, rng: np.random.Generator) -> Asked:
    return questions.ask_choice(questions.pick(rng, answers.all_pairs(scene)), rng)


def _wrong(scene: Scene, rng: np.random.Generator) -> Asked:
    return questions.ask_wrong_answers(questions.pick(rng, answers.all_pairs(scene)))


def _typed(scene: Scene, rng: np.random.Generator) -> Asked:
    # Nine of the sixteen types are always None and easy; the seven others come four times in five.
    seeing = (
        "Description-Scene",
        "Description-Object",
        "Count",
        "Binary",
        "Object Direction",
        "Attribute Change",
        "Spatial",
        "Object Direction",  # these two ask which object it is about, or whether any: twice
        "Attribute Change",
    )
    names = seeing if rng.random() < 0.8 else [name for name, _ in questions.prompts().types]
    return questions.ask_typed(scene, str(rng.choice(names)))


def ask_text_only(
    rng: np.random.Generator, num_refusals: int, num_single: int, num_any: int
) -> list[list[list[Asked]]]:
    """Draws text-only questions: those that only the video could answer, and retellings of one and of any captions."""
    refused = []
    for _ in range(num_refusals):
        scene = random_scene(rng)
        refused.append(questions.ask_without_video((_short, _choice)[int(rng.integers(2))](scene, rng)))
    single = [questions.random_single_retelling(rng) for _ in range(num_single)]
    return [[refused], [single], [[questions.random_retelling(rng) for _ in range(num_any)]]]


def frame_times(scene: Scene, num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Draws the frame numbers of one sampling, ends included or bin centres, as both are in use."""
    if rng.random() < 0.5:
        return np.linspace(0, scene.num_frames - 1, num_frames).astype(int)
    edges = np.linspace(0, scene.num_frames, num_frames + 1)
    return ((edges[:-1] + edges[1:]) / 2).astype(int)


def random_time_instruction(scene: Scene, frames: np.ndarray, rng: np.random.Generator) -> str:
    """States the times of frames; one clip in four is a segment of a longer video."""
    start_s = 10.0 * int(rng.integers(1, 7)) if rng.random() < 0.25 else 0.0
    duration_s = scene.num_frames / FPS + (start_s if rng.random() < 0.5 else 0.0)
    return time_instruction(start_s + frames / FPS, duration_s)
