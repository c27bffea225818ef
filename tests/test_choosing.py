"""The greedy choice of the next id, when an answer ends, and how slow and fast frames are laid out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from framescribe.llava_video.attention.static_decode import SeenIds
from framescribe.llava_video.engine.generation import FinishReason, GenerationConfig
from framescribe.llava_video.engine.tasks import StopRule, read_generation_defaults
from framescribe.llava_video.model.checkpoint import Checkpoint
from framescribe.llava_video.model.vision import arrange_faster_video_tokens


def choose(seen: SeenIds, logits: list[float], penalty: float) -> int:
    (chosen,) = seen.choose(torch.tensor([logits]), torch.tensor([0]), torch.tensor([penalty])).ids.tolist()
    return chosen


@pytest.mark.parametrize(
    ("logits", "penalty", "expected"),
    [
        ([2.0, 1.5], 1.0, 0),  # no penalty
        ([2.0, 1.5], 1.3, 0),  # 2 / 1.3 is still more
        ([2.0, 1.9], 1.3, 1),
        ([-1.0, -1.2], 1.3, 1),  # a negative logit is multiplied: -1.3
        ([-1.0, -1.4], 1.3, 0),
    ],
)
def test_an_id_that_was_written_is_less_likely_by_the_penalty_whatever_its_sign(logits, penalty, expected):
    seen = SeenIds(1, 2, torch.device("cpu"))
    assert choose(seen, [9.0, 0.0], penalty) == 0
    assert choose(seen, logits, penalty) == expected


def test_a_row_that_begins_anew_forgets_what_was_written():
    seen = SeenIds(1, 2, torch.device("cpu"))
    choose(seen, [9.0, 0.0], 1.3)
    seen.forget([0])
    assert choose(seen, [2.0, 1.9], 1.3) == 0


def checkpoint_that_says(folder: Path, **generation: object) -> Checkpoint:
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return Checkpoint("test", folder, "0")


@pytest.mark.parametrize(
    ("generation", "ids"), [({"eos_token_id": [3, 5]}, {3, 5}), ({"eos_token_id": 4}, {4}), ({}, {7})]
)
def test_every_end_token_of_a_checkpoint_ends_an_answer(tmp_path, generation, ids):
    rule = StopRule(read_generation_defaults(checkpoint_that_says(tmp_path, **generation)).eos_token_ids)
    assert {last for last in range(10) if rule.finish_reason(Asked([1, last])) is FinishReason.STOP} == ids


def test_an_answer_of_the_most_tokens_is_cut_off_unless_it_ends_right_then():
    rule = StopRule(frozenset({3}))
    assert [rule.finish_reason(Asked(ids)) for ids in ([1], [1, 2, 1, 2], [1, 2, 1, 3])] == [
        None, FinishReason.LENGTH, FinishReason.STOP,
    ]  # fmt: skip


class Asked:
    """What a stop rule looks at of a question."""

    generation = GenerationConfig(max_new_tokens=4)

    def __init__(self, generated: list[int]) -> None:
        self.generated = generated


def test_every_so_manyth_frame_is_slow_and_the_others_are_fast():
    slow = torch.tensor([10.0, 11.0, 12.0, 13.0, 14.0]).reshape(5, 1, 1)
    fast = slow + 10
    newline, faster = torch.tensor([-1.0]), torch.tensor([-2.0])
    laid_out = arrange_faster_video_tokens(slow, fast, newline, faster, stride=2)
    frames = [number for number in laid_out[:, 0].tolist() if number > 0]
    assert frames == [10, 21, 12, 23, 14]
    assert laid_out[:3, 0].tolist() == [10, -1, -2]
