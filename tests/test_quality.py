"""The curves of docs/quality.md: what fraction a bar keeps, and what fraction of those is right."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from benchmarks.quality import FRAMES, KINDS, draw, precision_at, trace, write_tables


def pair(probability, is_right, kind="open_ended", frames=4):
    rotation = 1.0 if kind == "multiple_choice" else None
    return {
        "kind": kind,
        "frames": frames,
        "is_right": is_right,
        "probability": probability,
        "gain": probability,
        "f1": 1.0,
        "rotation": rotation,
    }


PAIRS = [pair(0.9, True), pair(0.8, False), pair(0.8, True), pair(0.1, False)]


def test_pairs_of_one_score_come_together():
    assert trace(PAIRS, "probability") == [
        (0.25, 1.0, 0.9),
        (0.75, pytest.approx(2 / 3), 0.8),
        (1.0, 0.5, 0.1),
    ]
    assert trace(PAIRS, "f1") == [(1.0, 0.5, 1.0)]


@pytest.mark.parametrize(("least_yield", "bar"), [(0.25, 0.9), (0.26, 0.8), (0.75, 0.8), (0.98, 0.1)])
def test_the_strictest_bar_that_keeps_enough_is_taken(least_yield, bar):
    assert precision_at(trace(PAIRS, "probability"), least_yield)[2] == bar


def test_tables_and_curves_show_every_kind_and_number_of_frames():
    pairs = [
        pair(number / 10, number > 3, kind, frames) for kind in KINDS for frames in FRAMES for number in range(1, 10)
    ]
    tables, picture = write_tables(pairs), ET.fromstring(draw(pairs))
    names = [f"{title}, {frames} frame" for title in KINDS.values() for frames in FRAMES]
    texts = [element.text for element in picture.iter() if element.text]
    assert all(name in tables for name in names)
    assert all(any(text.startswith(name) for text in texts) for name in names)
