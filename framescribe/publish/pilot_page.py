"""Writes the page of a pilot: what each setting gave, side by side with the frames, and what the full run would take.

The page is one file without scripts: texts of the data are escaped, frames stand in it as JPEG, nothing is loaded.
"""

from __future__ import annotations

import base64
import html
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from framescribe.publish.export import PublishedTables, SourceVideos
from framescribe.publish.export_questions import Row
from framescribe.publish.review import make_sheet
from schemas.tables import TABLES

_SHEET_FRAMES, _SHEET_FRAME_PX = 4, 144
_OPEN_CLIPS = 3  # whose questions are shown without a click
_NO_PAIR = "not_applicable"  # "None": the model says that this type of question does not fit the clip
STYLE = Path(__file__).with_name("pilot_page.css")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_MEANINGS = {
    "ok": "usable",
    "not_applicable": "the model said that there is nothing to ask",
    "unparsable": "not in the form that was asked for",
    "duplicate": "the clip's question once more",
    "unspecified": "the answer says that the video does not tell",
    "refused": "the model declined",
    "empty": "no text",
    "length": "cut off by the token limit",
    "looped": "stopped because it repeated itself",
}
_PHASES = (
    ("decoding the videos", "framescribe.decode_milliseconds", "all decoder processes together"),
    ("looking at the frames", "engine.encode_milliseconds", "vision tower"),
    ("reading the video's tokens", "engine.prefill_milliseconds", "prefill"),
    ("reading the questions", "engine.question_milliseconds", "prefill of texts"),
    ("writing the answers", "engine.decode_milliseconds", "token by token"),
    ("the model waited", "engine.waiting_milliseconds", "for frames"),
)


@dataclass(frozen=True, slots=True)
class Offer:
    """What the full run would take on a machine; texts as they are shown."""

    machine: str
    clips_per_s: str
    wall_time: str
    gpu_hours: str
    cost: str
    limit: str
    basis: str


@dataclass(frozen=True, slots=True)
class PilotSetting:
    """One way of annotating that the pilot tried.

    Attributes:
        tables: what the run published.
        command: annotates all clips so, with the answers of the pilot.
        counters: of the run, as run.json has them.
        seconds: wall time of the run; None where its runner counts nothing.
        device: that the model was on; empty where it is not known.
        here: time that the full run would take where the pilot was; empty where it is not known.
        offers: what it would take on the machines of a table.
    """

    name: str
    recipe: str
    frames: str
    tables: PublishedTables
    command: str
    counters: Mapping[str, int]
    seconds: float | None
    device: str
    here: str
    offers: Sequence[Offer]


@dataclass(frozen=True, slots=True)
class Found:
    """The rows of a setting, counted."""

    setting: PilotSetting
    clips: Mapping[str, Row]
    captions: Mapping[str, Sequence[Row]]
    pairs: Mapping[str, Sequence[Row]]
    failures: Sequence[Row]

    @property
    def all_pairs(self) -> list[Row]:
        """Every question of every clip."""
        return [pair for pairs in self.pairs.values() for pair in pairs]

    @property
    def all_captions(self) -> list[Row]:
        """Every caption of every clip."""
        return [caption for captions in self.captions.values() for caption in captions]


def count_rows(setting: PilotSetting) -> Found:
    """Reads the tables of a setting: a pilot's fit in memory."""

    def group(rows: Iterable[Row]) -> dict[str, list[Row]]:
        grouped: dict[str, list[Row]] = {}
        for row in rows:
            grouped.setdefault(str(row["clip_id"]), []).append(row)
        return grouped

    rows = {name: [*setting.tables.rows(name, TABLES[name].names)] for name in TABLES}
    clips = {str(row["clip_id"]): row for row in rows["clips"]}
    return Found(setting, clips, group(rows["captions"]), group(rows["qa"]), rows["failures"])


def write_page(title: str, settings: Sequence[Found], videos: SourceVideos, notes: Sequence[str]) -> Iterator[str]:
    """Yields the page, piece by piece.

    Args:
        title: what was tried, on how many clips of how many.
        notes: what the reader must know of the figures.
    """
    yield (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>FrameScribe pilot</title>\n<style>{STYLE.read_text(encoding='utf-8')}</style></head>\n<body>\n"
        f"<h1>{_text(title)}</h1>\n"
    )
    yield from (f"<p>{_text(note)}</p>\n" for note in notes)
    yield '<nav><a href="#settings">Which setting?</a> <a href="#full">The full run</a> '
    yield '<a href="#types">Questions by type</a> <a href="#why">What went wrong</a> '
    yield '<a href="#speed">Speed</a> <a href="#clips">The clips</a></nav>\n'
    yield from _section("settings", "Which setting?", _compare(settings))
    yield from _section("full", "What the full run would take", *(_offer(found.setting) for found in settings))
    yield from _section("types", "Questions by type", *(_list_types(found) for found in settings))
    yield from _section("why", "What went wrong", *(_list_statuses(found) for found in settings))
    yield from _section("speed", "Speed by phase", *(_list_phases(found) for found in settings))
    yield '<section id="clips"><h2>The clips, side by side</h2>\n'
    for number, clip_id in enumerate(sorted({clip_id for found in settings for clip_id in found.clips})):
        yield _show_clip(clip_id, settings, videos, is_open=number < _OPEN_CLIPS)
    yield "</section>\n</body></html>\n"


def _section(anchor: str, heading: str, *parts: str) -> Iterator[str]:
    yield f'<section id="{anchor}"><h2>{heading}</h2>\n'
    yield from parts
    yield "</section>\n"


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table; head and cells are markup already."""
    columns = "".join(f'<th scope="col">{name}</th>' for name in head)
    body = "".join(map(_table_row, rows))
    return f'<div class="wide"><table><thead><tr>{columns}</tr></thead><tbody>\n{body}</tbody></table></div>\n'


def _table_row(cells: Sequence[str]) -> str:
    first, *rest = cells
    return f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>\n'


def _name(setting: PilotSetting) -> str:
    return f"<b>{_text(setting.recipe)}</b>, {_text(setting.frames)}"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"


def _mean(values: Sequence[float], form: str = "{:.2f}") -> str:
    return form.format(sum(values) / len(values)) if values else "-"


def _compare(settings: Sequence[Found]) -> str:
    """Returns the table to decide by: a row for each figure, a column for each setting."""
    shown = [(label, [figure(found) for found in settings]) for label, figure in _FIGURES]
    rows = [[_text(label), *map(_text, cells)] for label, cells in shown if any(cell != "-" for cell in cells)]
    rows += [
        ["Full run, where the pilot was", *(_text(found.setting.here or "-") for found in settings)],
        ["Full run, cheapest machine of the table", *(_text(_cheapest(found.setting)) for found in settings)],
    ]
    return _table(("", *(_name(found.setting) for found in settings)), rows)


def _cheapest(setting: PilotSetting) -> str:
    priced = [offer for offer in setting.offers if offer.cost]
    return "{0.cost}, {0.wall_time} on {0.machine} ({0.basis})".format(priced[0]) if priced else "-"


def _list_ok(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row["status"] == "ok"]


def _count_ok(rows: Iterable[Row]) -> int:
    return len(_list_ok(rows))


def _scores(found: Found, name: str) -> list[float]:
    return [pair[name] for pair in found.all_pairs if pair["status"] == "ok" and pair.get(name) is not None]


def _probabilities(found: Found) -> list[float]:
    return [
        exp(pair["answer_logprob"] / max(1, pair.get("num_answer_tokens") or 1))
        for pair in found.all_pairs
        if pair["status"] == "ok" and pair.get("answer_logprob") is not None
    ]


def _agreement(found: Found, name: str) -> str:
    asked = _scores(found, name)
    return _share(sum(map(bool, asked)), len(asked))


_FIGURES: Sequence[tuple[str, Callable[[Found], str]]] = (
    ("Clips annotated", lambda found: f"{len(found.clips):,} of {len(found.clips) + len(found.failures):,}"),
    ("Usable captions", lambda found: _share(_count_ok(found.all_captions), len(found.all_captions))),
    (
        "Words of a usable caption, on average",
        lambda found: _mean(
            [len(row["text"].split()) for row in found.all_captions if row["status"] == "ok"], "{:.0f}"
        ),
    ),
    (
        "Usable questions per clip",
        lambda found: f"{_count_ok(found.all_pairs) / len(found.clips):.1f}" if found.all_pairs else "-",
    ),
    ("Usable, of all questions", lambda found: _share(_count_ok(found.all_pairs), len(found.all_pairs))),
    (
        "“None”: nothing to ask of this type",
        lambda found: _share(sum(row["status"] == _NO_PAIR for row in found.all_pairs), len(found.all_pairs)),
    ),
    (
        "Asked twice within a clip",
        lambda found: _share(sum(row["status"] == "duplicate" for row in found.all_pairs), len(found.all_pairs)),
    ),
    ("Same answer when asked again", lambda found: _agreement(found, "is_consistent")),
    ("Answers need no video (mean score, lower is better)", lambda found: _mean(_scores(found, "blind_score"))),
    ("How sure the model is of its answers (0 to 1)", lambda found: _mean(_probabilities(found))),
    ("What the video adds, per token", lambda found: _mean(_scores(found, "video_gain_per_token"), "{:+.2f}")),
    ("Choice stays when its options are rotated", lambda found: _agreement(found, "is_rotation_consistent")),
)


def _offer(setting: PilotSetting) -> str:
    rows = [
        [
            _text(one.machine),
            *map(_text, (one.wall_time, one.cost, one.gpu_hours, one.clips_per_s, one.limit, one.basis)),
        ]
        for one in setting.offers
    ]
    head = ("machine", "time", "cost", "GPU hours", "clips/s", "limited by", "figures are")
    here = f"<p>Where the pilot was ({_text(setting.device or 'device not known')}): {_text(setting.here)}.</p>\n"
    return (
        f"<article><h3>{_name(setting)}</h3>\n{here if setting.here else ''}{_table(head, rows) if rows else ''}"
        "<p>This command annotates all clips with this setting. It takes the answers of the pilot, and asks nothing "
        "twice:</p>\n"
        f'<pre class="command">{_text(setting.command)}</pre></article>\n'
    )


def _list_types(found: Found) -> str:
    types = Counter((str(row["question_type"]), str(row["kind"])) for row in found.all_pairs)
    if not types:
        return f"<article><h3>{_name(found.setting)}</h3><p>Asks no questions.</p></article>\n"
    rows = []
    for question_type, kind in sorted(types):
        of_type = [row for row in found.all_pairs if (row["question_type"], row["kind"]) == (question_type, kind)]
        num_ok, num_none = _count_ok(of_type), sum(row["status"] == _NO_PAIR for row in of_type)
        rows.append(
            [
                f"{_text(question_type)} <small>{_text(kind.replace('_', ' '))}</small>",
                f"{len(of_type):,}",
                _bar(num_ok, len(of_type)),
                _share(num_none, len(of_type)),
                _share(sum(row["status"] == "duplicate" for row in of_type), len(of_type)),
            ]
        )
    head = ("type", "asked", "usable", "“None”", "asked twice")
    return f"<article><h3>{_name(found.setting)}</h3>\n{_table(head, rows)}</article>\n"


def _bar(part: int, whole: int) -> str:
    percent = round(100 * part / whole) if whole else 0
    return f'<span class="bar"><span style="width:{percent}%"></span></span> {percent} %'


def _list_statuses(found: Found) -> str:
    captions, pairs = (Counter(str(row["status"]) for row in rows) for rows in (found.all_captions, found.all_pairs))
    names = sorted(captions.keys() | pairs.keys(), key=lambda name: -(captions[name] + pairs[name]))
    rows = [
        [
            f"<code>{_text(name)}</code> {_text(_MEANINGS.get(name, ''))}",
            *(f"{counts[name]:,}" for counts in (captions, pairs)),
        ]
        for name in names
    ]
    reasons = Counter(f"{row['reason']} ({row['stage']})" for row in found.failures)
    failed = [[_text(reason), f"{number:,}"] for reason, number in reasons.most_common()]
    return (
        f"<article><h3>{_name(found.setting)}</h3>\n{_table(('status', 'captions', 'questions'), rows)}"
        f"{_table(('why clips failed', 'clips'), failed) if failed else '<p>No clip failed.</p>'}</article>\n"
    )


def _list_phases(found: Found) -> str:
    setting, num_clips = found.setting, len(found.clips)
    seconds = [(label, setting.counters.get(name, 0) / 1000, note) for label, name, note in _PHASES]
    rows = [
        [f"{_text(label)} <small>{_text(note)}</small>", f"{spent:,.1f} s", f"{num_clips / spent:,.2f}"]
        for label, spent, note in seconds
        if spent
    ]
    if setting.seconds:
        rows.append(["<b>from start to end</b>", f"{setting.seconds:,.1f} s", f"{num_clips / setting.seconds:,.2f}"])
    shown = _table(("phase", "time", "clips/s"), rows) if rows else "<p>The runner counted nothing.</p>"
    return f"<article><h3>{_name(setting)}</h3>\n{shown}</article>\n"


def _show_clip(clip_id: str, settings: Sequence[Found], videos: SourceVideos, *, is_open: bool) -> str:
    row = next(found.clips[clip_id] for found in settings if clip_id in found.clips)
    sheet, times_s = make_sheet(videos, row, _SHEET_FRAMES, _SHEET_FRAME_PX)
    image = "<p><small>The frames could not be read again.</small></p>"
    if sheet is not None:
        shown = f"frames at {', '.join(f'{one:g} s' for one in times_s)}" if times_s else "frames"
        code = base64.b64encode(sheet).decode("ascii")
        image = f'<img alt="{_text(shown)}" loading="lazy" src="data:image/jpeg;base64,{code}"><small>{shown}</small>'
    columns = "".join(_show_texts(clip_id, found, is_open) for found in settings)
    return (
        f'<article class="clip"><h3>{_text(clip_id)} <small>{row["duration_s"]:.1f} s</small></h3>\n'
        f'<div class="sheet">{image}</div>\n<div class="columns">{columns}</div></article>\n'
    )


def _show_texts(clip_id: str, found: Found, is_open: bool) -> str:
    captions, pairs = found.captions.get(clip_id, ()), found.pairs.get(clip_id, ())
    head = f"<h4>{_name(found.setting)}</h4>\n"
    if clip_id not in found.clips:
        reasons = [str(row["message"]) for row in found.failures if row["clip_id"] == clip_id]
        return f"<div>{head}<p class='bad'>failed: {_text(' '.join(reasons))}</p></div>\n"
    texts = "".join(f"<p>{_badge(row)}{_text(row['text'])}</p>\n" for row in captions)
    if not pairs:
        return f"<div>{head}{texts}</div>\n"
    opened = " open" if is_open else ""
    summary = f"{_count_ok(pairs)} of {len(pairs)} questions are usable"
    listed = "".join(map(_show_pair, pairs))
    return f"<div>{head}{texts}<details{opened}><summary>{summary}</summary><ul>{listed}</ul></details></div>\n"


def _badge(row: Row) -> str:
    if row["status"] == "ok":
        return ""
    if row["status"] == _NO_PAIR:
        return '<span class="badge">nothing to ask</span> '
    return f'<span class="badge bad">{_text(row["status"])}</span> '


def _show_pair(row: Row) -> str:
    lettered = zip(ascii_uppercase, row["options"] or (), strict=False)
    letters = [
        f"<li{' class=right' if letter == row['answer_letter'] else ''}>{letter}. {_text(option)}</li>"
        for letter, option in lettered
    ]
    answer = f"<ol>{''.join(letters)}</ol>" if letters else f"<div>{_text(row['answer'])}</div>"
    kind = f"<small>{_text(row['question_type'])}</small>"
    return f"<li>{kind} {_badge(row)}<b>{_text(row['question'])}</b>{answer}</li>\n"


def summarise(found: Found) -> dict[str, Any]:  # Any: JSON values
    """Returns the figures of a setting for pilot.json."""
    return {
        "recipe": found.setting.recipe,
        "frames": found.setting.frames,
        "command": found.setting.command,
        "figures": {label: figure(found) for label, figure in _FIGURES},
        "full_run_here": found.setting.here,
    }
