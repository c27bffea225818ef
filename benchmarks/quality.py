"""How well scores tell right pairs from wrong ones, where the truth is known: `python -m benchmarks.quality`.

The demo model writes QA pairs about drawn clips of which it sees 4, 2 and 1 frames; it was trained with 6 to 10. Each
pair is scored and asked again. For every score: what fraction of the pairs a bar keeps (yield), and what fraction of
those is right, word for word (precision). Takes some minutes on two cores; `--from` draws from the numbers of
an earlier run.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from demo.evaluate import CHECKPOINT, JudgedPair, annotate_and_judge, second_looks
from framescribe.llava_video import Engine, EngineConfig
from framescribe.recipes.annotation import QAPair

Pair = Mapping[str, float | bool | str | None]  # what is kept of one pair
Point = tuple[float, float, float]  # yield, precision, bar

FRAMES = (4, 2, 1)
KINDS = {"open_ended": "open-ended", "multiple_choice": "multiple choice"}
SCORES = {
    "probability": "answer's probability",
    "gain": "what the video adds",
    "f1": "asked again (token F1, letter)",
    "rotation": "right letter in all rotations",
}
COLOURS = {"probability": "#1f6fb2", "gain": "#2a9d55", "f1": "#d1741f", "rotation": "#8a4fb0"}
YIELDS = (0.98, 0.95, 0.9, 0.8)
BARS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def measure(seed: int, num_clips: int, num_threads: int | None) -> list[Pair]:
    """Runs the recipe with few frames and returns a record for each pair."""
    if num_threads is not None:
        import torch

        torch.set_num_threads(num_threads)
    pairs: list[Pair] = []
    with Engine.load(EngineConfig(model=str(CHECKPOINT), device="cpu", dtype="float32")) as engine:
        for num_frames in FRAMES:
            judged = annotate_and_judge(engine, seed, num_clips, num_frames, second_looks())
            pairs += [_record(one, num_frames) for one in judged]
    return pairs


def _record(judged: JudgedPair, num_frames: int) -> Pair:
    pair = judged.pair
    return {
        "frames": num_frames,
        "kind": pair.kind,
        "type": pair.question_type,
        "is_right": judged.is_right,
        "probability": _probability(pair.answer_logprob, pair),
        "blind": _probability(pair.blind_logprob, pair),
        "gain": pair.video_gain_per_token,
        "f1": pair.recheck_score,
        "rotation": None if pair.is_rotation_consistent is None else float(pair.is_rotation_consistent),
    }


def _probability(logprob: float | None, pair: QAPair) -> float | None:
    if logprob is None or pair.num_answer_tokens is None:
        return None
    return math.exp(logprob / pair.num_answer_tokens)


def trace(pairs: Sequence[Pair], score: str) -> list[Point]:
    """Returns yield, precision and bar, from the strictest bar to none; pairs of equal score come together."""
    ordered = sorted(pairs, key=lambda pair: -_number(pair[score]))
    points: list[Point] = []
    num_right = 0
    for place, pair in enumerate(ordered, start=1):
        num_right += bool(pair["is_right"])
        if place == len(ordered) or pair[score] != ordered[place][score]:
            points.append((place / len(ordered), num_right / place, _number(pair[score])))
    return points


def _number(value: float | bool | str | None) -> float:
    assert isinstance(value, (int, float)), "a pair without this score"
    return float(value)


def precision_at(points: Sequence[Point], least_yield: float) -> Point:
    """Returns the strictest bar that keeps at least such a fraction of the pairs."""
    return next(point for point in points if point[0] >= least_yield)


def write_tables(pairs: Sequence[Pair]) -> str:
    """Returns two Markdown tables: precision by score at some yields, and by bar of the answer's probability."""
    by_yield = [
        "| pairs | score | right of all | " + " | ".join(f"at {one:.0%}" for one in YIELDS) + " |",
        "|---|---|---|" + "---|" * len(YIELDS),
    ]
    for title, score, chosen in _curves(pairs):
        points = trace(chosen, score)
        cells = (f"{point[1]:.1%} ({point[0]:.0%})" for point in (precision_at(points, one) for one in YIELDS))
        by_yield.append(f"| {title} | {SCORES[score]} | {points[-1][1]:.1%} | {' | '.join(cells)} |")
    by_bar = ["| pairs | " + " | ".join(f"{bar:g}" for bar in BARS) + " |", "|---|" + "---|" * len(BARS)]
    for title, score, chosen in _curves(pairs):
        if score == "probability":
            by_bar.append(f"| {title} | {' | '.join(_at_bar(chosen, bar) for bar in BARS)} |")
    return "\n".join([*by_yield, "", *by_bar])


def _at_bar(pairs: Sequence[Pair], bar: float) -> str:
    kept = [pair for pair in pairs if _number(pair["probability"]) >= bar]
    num_right = sum(bool(pair["is_right"]) for pair in kept)
    return f"{num_right / max(len(kept), 1):.1%} ({len(kept) / len(pairs):.0%})"


def _curves(pairs: Sequence[Pair]) -> Iterator[tuple[str, str, list[Pair]]]:
    for kind, title in KINDS.items():
        for frames in FRAMES:
            chosen = [pair for pair in pairs if pair["kind"] == kind and pair["frames"] == frames]
            for score in SCORES:
                if chosen and chosen[0][score] is not None:
                    yield f"{title}, {frames} {'frame' if frames == 1 else 'frames'}", score, chosen


_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 250, 170, 56, 58, 64


def draw(pairs: Sequence[Pair]) -> str:
    """Returns the curves as SVG: one panel for each kind and number of frames, yield to the right, precision upward."""
    width, height = _LEFT + len(FRAMES) * (_WIDTH + _GAP), _TOP + len(KINDS) * (_HEIGHT + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        *_draw_legend(),
    ]
    for row, (kind, title) in enumerate(KINDS.items()):
        for column, frames in enumerate(FRAMES):
            chosen = [pair for pair in pairs if pair["kind"] == kind and pair["frames"] == frames]
            name = f"{title}, {frames} {'frame' if frames == 1 else 'frames'}: {len(chosen)} pairs"
            place = (_LEFT + column * (_WIDTH + _GAP), _TOP + row * (_HEIGHT + _GAP))
            parts += _draw_panel(name, {s: trace(chosen, s) for s in SCORES if chosen[0][s] is not None}, *place)
    return "\n".join([*parts, "</svg>", ""])


def _draw_legend() -> Iterator[str]:
    for place, (score, title) in enumerate(SCORES.items()):
        x = _LEFT + 215 * place
        yield f'<line x1="{x}" y1="18" x2="{x + 22}" y2="18" stroke="{COLOURS[score]}" stroke-width="2.5"/>'
        yield f'<text x="{x + 28}" y="22">{title}</text>'


def _draw_panel(name: str, curves: Mapping[str, Sequence[Point]], left: int, top: int) -> Iterator[str]:
    least = math.floor(20 * min(point[1] for points in curves.values() for point in points if point[0] >= 0.1)) / 20
    least = min(least, 0.95)

    def place(point: Point) -> tuple[float, float]:
        return left + _WIDTH * point[0], top + _HEIGHT * (1 - (point[1] - least) / (1 - least))

    yield f'<text x="{left}" y="{top - 8}" font-weight="bold">{name}</text>'
    yield f'<rect x="{left}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#999"/>'
    for step in range(5):
        yield from _draw_ticks(left, top, step / 4, least)
    for score, points in curves.items():
        shown = [place(point) for point in points if point[0] >= 0.1 and point[1] >= least]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in shown)
        yield f'<polyline points="{line}" fill="none" stroke="{COLOURS[score]}" stroke-width="2"/>'
        for x, y in shown if len(shown) < 8 else shown[-1:]:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{COLOURS[score]}"/>'


def _draw_ticks(left: int, top: int, share: float, least: float) -> Iterator[str]:
    x, y = left + _WIDTH * share, top + _HEIGHT * (1 - share)
    yield f'<text x="{x:.0f}" y="{top + _HEIGHT + 15}" text-anchor="middle">{share:.0%}</text>'
    yield f'<text x="{left - 5}" y="{y + 4:.0f}" text-anchor="end">{least + (1 - least) * share:.1%}</text>'
    yield f'<line x1="{left}" y1="{y:.0f}" x2="{left + _WIDTH}" y2="{y:.0f}" stroke="#ddd"/>'


def main() -> None:
    """Measures, or reads what was measured; prints the tables and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--clips", type=int, default=80)
    parser.add_argument("--threads", type=int, help="of PyTorch (default: all cores)")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers of each pair")
    parser.add_argument("--from", dest="measured", type=Path, help="JSON file of an earlier run, instead of measuring")
    parser.add_argument("--svg", type=Path, help="file for the curves")
    given = parser.parse_args()
    if given.measured is not None:
        pairs = json.loads(given.measured.read_text())
    else:
        pairs = measure(given.seed, given.clips, given.threads)
    if given.out is not None:
        given.out.write_text("[\n" + ",\n".join(json.dumps(pair) for pair in pairs) + "\n]\n")
    if given.svg is not None:
        given.svg.write_text(draw(pairs))
    print(write_tables(pairs))


if __name__ == "__main__":
    main()
