"""Shows the quality of the published tables on one page of HTML that needs nothing from elsewhere."""

from __future__ import annotations

import html
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from framescribe.publish.card import plain_text
from framescribe.publish.decisions import read_decisions
from framescribe.publish.export import CannotExport, PublishedTables, check_target
from framescribe.publish.export_config import BLIND_SCORE, MIN_PROBABILITY
from framescribe.publish.quality import NUM_BINS, Quality, QualityCounter, TypeCounts, baselines, write_sample
from framescribe.storage.addresses import StorageOptions
from framescribe.storage.output import open_output

_MAX_ROWS = 40  # of a table of sources or reasons
_MAX_BINS = 20
_WIDTHS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000)
_BASELINES = (
    *("guessing", "the longest option", "the most frequent letter", "always yes", "always no"),
    *("the most frequent answer", "without the video"),
)
_STYLE = """
:root { color-scheme: light dark; --bar: #2f6fb7; --rule: #8886; }
@media (prefers-color-scheme: dark) { :root { --bar: #6fa8e8; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid var(--rule); padding: .2rem .7rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
caption { text-align: left; font-weight: 600; }
svg { max-width: 100%; height: auto; }
svg text { fill: currentColor; font: 13px system-ui, sans-serif; }
svg rect { fill: var(--bar); }
.note { border-left: .3rem solid var(--bar); padding-left: 1rem; }
"""
_HONEST = (
    "This is the only honest number on this page: all others say what the model stands by, or what can be counted, not "
    "what is true. The interval (Wilson, 95 %) holds where the judged rows were drawn by chance, as those of --sample "
    "are; rows that were picked because they looked wrong make it too low."
)
_NOT_JUDGED = (
    "Nobody has judged any row yet, so nothing here says how many rows are right. `--sample 1%` draws rows for people; "
    "give the filled-in file, or what the page of `review` saved, to `--decisions`."
)


@dataclass(frozen=True, slots=True)
class QualityReport:
    """What `report` wrote: the counts, and the rows of the sample."""

    quality: Quality
    num_sampled: int


def report(
    output: str,
    target: Path,
    decisions: Path | None = None,
    sample: float | None = None,
    storage_options: StorageOptions | None = None,
) -> QualityReport:
    """Writes the page to a new file, and beside it, where a sample is asked for, `NAME.sample.csv` and `.jsonl`.

    Args:
        decisions: what people decided about rows; rows that say something else by now do not count.
        sample: fraction of the good rows that is drawn, of each type and confirmation alike.

    Raises:
        CannotExport: no tables, or one of the files is there already, or lies in the run's own output.
        DecisionsError: the file of decisions is damaged.
    """
    sheets = [target.with_suffix(f".sample{suffix}") for suffix in (".csv", ".jsonl")] if sample is not None else []
    store = open_output(output, storage_options)
    for path in (target, *sheets):
        check_target(store, path)
        if path.is_dir():
            raise CannotExport(f"{path} is a folder, wanted the name of a new file, such as {path / 'quality.html'}")
    tables = PublishedTables(store)
    decided = {} if decisions is None else read_decisions(decisions)
    num_captions = sum(int(row["num_captions"]) for row in tables.rows("clips", ("num_captions",)))
    counter = QualityCounter(decided, sample, num_captions)
    for clip, captions, pairs in tables.clips():
        counter.add(clip, captions, pairs)
    for failure in tables.rows("failures", ("source", "reason")):
        counter.add_failure(failure)
    tables.check_unchanged()
    quality, rows = counter.close()
    target.parent.mkdir(parents=True, exist_ok=True)
    for path in sheets:
        _write_whole(path, lambda place: write_sample(rows, place))
    page = write_page(quality, tables.origin(plain_text))
    _write_whole(target, lambda place: place.write_text(page, encoding="utf-8"))
    return QualityReport(quality, len(rows))


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".framescribe-") as folder:
        write(Path(folder) / path.name)
        os.replace(Path(folder) / path.name, path)


def write_page(quality: Quality, origin: str) -> str:
    """Returns the page; every text of the data in it is inert."""
    sections = (
        _overview(quality, origin),
        _judgement(quality),
        _questions(quality),
        _guessable(quality),
        _scores(quality),
        _captions(quality),
        _repeats(quality),
        _sources(quality),
    )
    body = "\n".join(part for section in sections for part in section)
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<title>Quality of the annotations</title>\n"
        f'<meta name="viewport" content="width=device-width">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _overview(quality: Quality, origin: str) -> Iterator[str]:
    num_failed = quality.failure_reasons.total()
    statuses = quality.statuses
    yield "<h1>Quality of the annotations</h1>"
    yield _paragraph(
        f"{quality.num_clips:,} annotated clips and {num_failed:,} failed ones, written {origin} with FrameScribe. "
        f"Of {statuses.total():,} captions and questions {statuses['looped']:,} were stopped because they repeated "
        f"themselves, and {statuses['length']:,} were cut off by the limit of tokens."
    )
    yield _bars("Rows by status", _by_count(statuses))
    if num_failed:
        yield _table("Why clips failed", ("reason", "clips"), _by_count(quality.failure_reasons)[:_MAX_ROWS])


def _judgement(quality: Quality) -> Iterator[str]:
    yield "<h2>Precision, by people</h2>"
    yield f'<p class="note">{html.escape(_HONEST if quality.judged else _NOT_JUDGED)}</p>'
    if quality.judged:
        rows = []
        for name, found in quality.judged.items():
            low, high = found.interval
            right = found.num_right / found.num_judged
            rows.append(
                (name, found.num_judged, found.num_right, _percent(right), f"{_percent(low)} to {_percent(high)}")
            )
        yield _table("Rows that people judged", ("rows", "judged", "right", "precision", "interval"), rows)
    if quality.num_outdated:
        yield _paragraph(
            f"{quality.num_outdated:,} decisions are about rows that are no good, or say other things by now."
        )


def _questions(quality: Quality) -> Iterator[str]:
    yield "<h2>Questions by type</h2>"
    statuses = [name for name, _ in _by_count(sum((one.statuses for one in quality.types.values()), Counter()))]
    rows = [
        (f"{kind}: {name}", _percent(one.num_ok / one.statuses.total()), *(one.statuses[status] for status in statuses))
        for (kind, name), one in sorted(quality.types.items())
    ]
    yield _table("Yield, and rows by status", ("type", "yield", *statuses), rows)
    rows = [
        (f"{kind}: {name}", *(one.confirmed[answer] for answer in ("yes", "no", "not asked")), _confirmed(one))
        for (kind, name), one in sorted(quality.types.items())
        if one.num_ok
    ]
    header = ("type", "confirmed", "not confirmed", "not asked", "confirmed of asked")
    yield _table("Good pairs by what a second look found", header, rows)
    yield _paragraph(
        "A second look is the model's own: it finds answers that the model does not stand by, not the truth."
    )


def _confirmed(counts: TypeCounts) -> str:
    asked = counts.confirmed["yes"] + counts.confirmed["no"]
    return _percent(counts.confirmed["yes"] / asked) if asked else ""


def _guessable(quality: Quality) -> Iterator[str]:
    found = {name: baselines(name[0], one) for name, one in sorted(quality.types.items())}
    names = [name for name in _BASELINES if any(name in one for one in found.values())]
    yield "<h2>What can be guessed</h2>"
    yield _paragraph(
        "The fraction of pairs that is got right without looking at the video. Answers count as the tables have them, "
        "true or not; `without the video` is the fraction, of the pairs that were asked or scored blind, with a blind "
        f"score of {BLIND_SCORE:g} or more."
    )
    rows = [
        (f"{kind}: {name}", *(_percent(one[column]) if column in one else "" for column in names))
        for (kind, name), one in found.items()
        if one
    ]
    yield _table("Baselines", ("type", *names), rows)
    letters = sum((one.letters for one in quality.types.values()), Counter())
    if letters:
        yield _bars("Right letters of multiple choices", sorted(letters.items()))
        num_giveaways = sum(one.num_giveaways for one in quality.types.values())
        yield _paragraph(f"Right options that may be told by their form (giveaway): {num_giveaways:,}.")


def _scores(quality: Quality) -> Iterator[str]:
    bins = [f"{place / NUM_BINS:g} to {(place + 1) / NUM_BINS:g}" for place in range(NUM_BINS)]
    for title, of_type in (
        (f"Scores (exports keep probabilities of {MIN_PROBABILITY:g} and more)", lambda one: one.scores),
        ("Scores of the same answers without the video", lambda one: one.blind),
    ):
        heights = [sum(column) for column in zip(*(of_type(one) for one in quality.types.values()), strict=True)]
        if any(heights):
            yield _bars(title, list(zip(bins, heights, strict=True)))


def _captions(quality: Quality) -> Iterator[str]:
    yield "<h2>Captions</h2>"
    rows = []
    for level, words in sorted(quality.caption_words.items()):
        marks = [_quantile(words, fraction) for fraction in (0.05, 0.5, 0.95)]
        rows.append((level, words.total(), min(words), *marks, max(words)))
    yield _table(
        "Length of good captions in words", ("level", "captions", "least", "5 %", "half", "95 %", "most"), rows
    )
    for level, words in sorted(quality.caption_words.items()):
        width = next((width for width in _WIDTHS if max(words) < width * _MAX_BINS), max(words))
        bins = Counter[int]()
        for length, number in words.items():
            bins[length // width] += number
        shown = [(f"{place * width} to {(place + 1) * width - 1}", bins[place]) for place in range(max(bins) + 1)]
        yield _bars(f"Words per caption, level {level}", shown)


def _quantile(words: Counter[int], fraction: float) -> int:
    seen = 0
    for length, number in sorted(words.items()):
        seen += number
        if seen >= fraction * words.total():
            return length
    return max(words)


def _repeats(quality: Quality) -> Iterator[str]:
    yield "<h2>Texts that come again</h2>"
    yield _paragraph(
        f"Good questions that an earlier one of the same clip asks in the same words: {quality.repeated_questions:,}. "
        f"Good captions that are word for word an earlier one: {quality.repeated_captions:,}."
    )
    near = quality.near_duplicates
    if near is None:
        yield _paragraph(
            "Near-duplicates were not looked for: that needs datasketch, pip install 'framescribe[report]'."
        )
        return
    yield _paragraph(
        f"Of {near.num_compared:,} captions{'' if near.fraction == 1 else ', drawn evenly from all,'} "
        f"{near.num_found:,} are like an earlier one of another clip "
        "(MinHash: Jaccard of three-word runs about 0.8 or more)."
    )
    if near.examples:
        yield _table(
            "Near-duplicates, for example", ("earlier", "later"), [(a[:200], b[:200]) for a, b in near.examples]
        )


def _sources(quality: Quality) -> Iterator[str]:
    columns = ("clips", "captions", "pairs", "failed")
    ordered = sorted(quality.sources.items(), key=lambda one: (-one[1]["clips"] - one[1]["failed"], one[0]))
    rows = [(name, *(counts[column] for column in columns)) for name, counts in ordered[:_MAX_ROWS]]
    if rest := [counts for _, counts in ordered[_MAX_ROWS:]]:
        rows.append((f"{len(rest):,} others", *(sum(counts[column] for counts in rest) for column in columns)))
    yield "<h2>Sources</h2>"
    yield _table(
        "By shard, or folder of files", ("source", "clips", "good captions", "good pairs", "failed clips"), rows
    )


def _by_count(counter: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counter.items(), key=lambda entry: (-entry[1], entry[0]))


def _percent(fraction: float) -> str:
    return f"{fraction:.1%}"


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in header)
    lines = [
        "<tr>" + "".join(f"<td>{html.escape(f'{c:,}' if isinstance(c, int) else str(c))}</td>" for c in row) + "</tr>"
        for row in rows
    ]
    # Browsers scroll it by keys only where it can be focused.
    return (
        f'<table tabindex="0"><caption>{html.escape(title)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def _bars(title: str, values: Sequence[tuple[str, int]]) -> str:
    """Returns a figure with one horizontal bar per value, its name and its number."""
    most, total = max((number for _, number in values), default=0), sum(number for _, number in values)
    rows = []
    for place, (name, number) in enumerate(values):
        width = 400 * number / most if most else 0
        y = 22 * place
        share = f"{number:,} ({_percent(number / total)})" if total else "0"
        rows.append(
            f'<text x="150" y="{y + 15}" text-anchor="end">{html.escape(name[:24])}</text>'
            f'<rect x="160" y="{y + 3}" width="{width:.1f}" height="16"></rect>'
            f'<text x="{165 + width:.1f}" y="{y + 15}">{share}</text>'
        )
    height = 22 * len(values)
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f'<svg role="img" aria-label="{html.escape(title)}" viewBox="0 0 700 {height}" width="700" height="{height}">'
        f"{''.join(rows)}</svg></figure>"
    )
