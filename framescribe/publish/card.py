"""The dataset card, OUTPUT/README.md: for people and for `datasets.load_dataset`; no text in it can become markup."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from framescribe.publish.export_config import MIN_PROBABILITY
from framescribe.publish.report import PublishReport, TableCounts
from framescribe.storage.journal import RunRecord
from schemas.tables import TABLE_DESCRIPTIONS, TABLES, describe_tables

# What the user writes below this line outlives the next publish: the licence above all.
OWN_TEXT_MARK = "<!-- Everything below this line is yours: publishing again keeps it. -->"
_OWN_TEXT = """
## Licence

To fill in: the licence of these annotations, and of the videos they describe. The annotations were written by the
model named above; its licence may restrict what they are used for.
"""
_HOW_TO_READ = (
    'With `datasets`: `load_dataset("PATH_OF_THIS_FOLDER", "qa")`. With pandas: `read_parquet("qa")`. With polars and '
    "DuckDB: read `qa/*.parquet`. The columns are described below, and in the metadata of every file."
)
_MAX_REASONS = 20
_MAX_PAIRS = 6


def write_card(run: RunRecord, published: PublishReport, counts: TableCounts, earlier_card: str = "") -> str:
    """Returns the card as Markdown; the user's own text at the end of an earlier card is kept."""
    # A page without the mark is all the user's.
    own_text = earlier_card.rpartition(OWN_TEXT_MARK)[2] or _OWN_TEXT
    sections = (
        _write_header(published),
        "# Video annotations",
        _write_summary(published, counts),
        "## Tables",
        render_table(("table", "rows", "what it holds"), _table_rows(published)),
        _HOW_TO_READ,
        *_write_counts(counts),
        *_write_samples(counts),
        "## Settings",
        fence(json.dumps(dict(run.settings), indent=2, ensure_ascii=False, sort_keys=True, default=str)),
        *_write_prompts(run),
        "## Columns",
        describe_tables(),
        OWN_TEXT_MARK,
    )
    return "\n\n".join(sections) + f"\n\n{own_text.strip()}\n"


def plain_text(text: str) -> str:
    """Returns the text on one line, without control, format and invisible characters."""
    # Category C holds terminal escapes, zero-width characters and those that reverse the reading direction.
    visible = "".join(" " if unicodedata.category(letter)[0] in "CZ" else letter for letter in text)
    return " ".join(visible.split())


def escape(text: str, max_characters: int = 300) -> str:
    """Returns the text for a paragraph or a table cell: no markup, no HTML and no link comes of it."""
    shortened = shorten(plain_text(text), max_characters)
    entities = shortened.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # The colon and the dots keep addresses from becoming links by themselves.
    return re.sub(r"([\\`*_{}\[\]()#+!|~:@]|(?<=www)\.|^[-=]|(?<=^\d)\.)", r"\\\1", entities)


def fence(text: str) -> str:
    """Returns the text as a code block that nothing in it can end."""
    lines = [re.sub(r"\s+$", "", _visible_line(line)) for line in text.splitlines()]
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return "\n".join((f"{marks}text", *lines, marks))


def render_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table; the cells are escaped already."""
    lines = ("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))
    return "\n".join(lines)


def shorten(text: str, max_characters: int) -> str:
    """Returns the text, cut and marked with `...` where it is longer."""
    return text if len(text) <= max_characters else text[:max_characters].rstrip() + "..."


def _write_header(published: PublishReport) -> str:
    # `datasets` cannot load a table without rows, so such a table is not offered to it.
    configs = [line for name in TABLES if published.num_rows[name] for line in _write_config(name)]
    return "\n".join(
        ("---", "license: other", *_write_size(published), *(["configs:"] if configs else []), *configs, "---")
    )


def _write_config(table: str) -> Iterator[str]:
    yield f"- config_name: {table}"
    yield f"  data_files: {table}/*.parquet"
    if table == "captions":
        yield "  default: true"


def _write_size(published: PublishReport) -> Iterator[str]:
    num_clips = published.num_annotated
    limits = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    yield f"size_categories: {json.dumps([next((name for limit, name in limits if num_clips < limit), 'n>1M')])}"


def _write_summary(published: PublishReport, counts: TableCounts) -> str:
    text = (
        f"Captions and question-answer pairs of {published.num_annotated:,} clips, written{_write_origin(counts)} "
        f"with FrameScribe. {published.num_failed - published.num_withdrawn:,} clips could not be annotated: see "
        "`failures/`."
    )
    if published.num_withdrawn:
        text += f" {published.num_withdrawn:,} clips were withdrawn."
    warnings = [f"> **Limited:** only {escape(one.describe())} were annotated." for one in published.limited]
    warnings += [] if published.is_complete else [_write_warning(published)]
    return "\n\n".join([*warnings, text])


def _write_origin(counts: TableCounts) -> str:
    model, revision, recipe = (escape(str(counts.origin.get(name))) for name in ("model", "model_revision", "recipe"))
    return f" by {model} (revision {revision}, recipe {recipe})" if counts.origin else ""


def _write_warning(published: PublishReport) -> str:
    return (
        f"> **Unfinished:** {published.num_units_done:,} of {published.num_units_planned:,} planned units are done. "
        "Start the same command again to go on."
    )


def _table_rows(published: PublishReport) -> Iterable[tuple[str, str, str]]:
    return ((f"`{name}/`", f"{published.num_rows[name]:,}", TABLE_DESCRIPTIONS[name]) for name in TABLES)


def _write_counts(counts: TableCounts) -> Iterator[str]:
    yield "## What became of the questions"
    statuses = ((name, counts.values[f"{name}.status"]) for name in ("captions", "qa"))
    yield render_table(
        ("table", "status", "rows"),
        ((f"`{name}/`", escape(v), f"{n:,}") for name, c in statuses for v, n in _by_count(c)),
    )
    if counts.num_asked_again or not counts.values["qa.score_status"]["ok"]:
        yield _write_consistency(counts)
    yield from _write_scores(counts)
    yield from _write_balance(counts)
    if counts.values["failures.reason"]:
        reasons = _by_count(counts.values["failures.reason"])[:_MAX_REASONS]
        yield "## Why clips failed"
        yield render_table(("reason", "clips"), ((escape(reason), f"{n:,}") for reason, n in reasons))


def _write_consistency(counts: TableCounts) -> str:
    return (
        f"{counts.num_consistent:,} QA pairs are consistent: asked again from the frames, the model gave the same "
        "answer or one close to it. That is agreement of the model with itself. It finds answers that the model does "
        "not stand by; it does not show that an answer is right: a model that errs in the same way twice agrees "
        "with itself."
    )


def _write_scores(counts: TableCounts) -> Iterator[str]:
    statuses = {name: number for name, number in counts.values["qa.score_status"].items() if name != "None"}
    if not statuses:
        return
    failed = ", ".join(f"{name} {number:,}" for name, number in sorted(statuses.items()) if name != "ok")
    yield (
        f"{statuses.get('ok', 0):,} QA pairs are scored{f' (without scores: {failed})' if failed else ''}: "
        "`answer_logprob` says how likely the model finds the answer, `blind_logprob` without the video. "
        f"{counts.num_likely:,} answers have a probability of at least {MIN_PROBABILITY:g} for each token, "
        "as exports want them by default. A likely answer is one that the model stands by, not one that is proved "
        "right."
    )
    turned = counts.values["qa.is_rotation_consistent"]
    if turned["True"] or turned["False"]:
        yield f"Multiple choices whose right letter is the likeliest in all four rotations: {turned['True']:,}."


def _write_balance(counts: TableCounts) -> Iterator[str]:
    """Says what could be guessed without a video: lopsided answers, letters and options."""
    if counts.num_yes or counts.num_no:
        yield f"Answers that open with yes: {counts.num_yes:,}; with no: {counts.num_no:,}."
    letters = {letter: number for letter, number in counts.values["qa.answer_letter"].items() if letter != "None"}
    if letters:
        yield f"Right letters: {', '.join(f'{letter} {number:,}' for letter, number in sorted(letters.items()))}."
        giveaways = sum(number for reason, number in counts.values["qa.giveaway"].items() if reason != "None")
        yield f"Multiple choices whose right option may be told by its form (`giveaway`): {giveaways:,}."


def _by_count(counter: Counter[str]) -> list[tuple[str, int]]:
    # By name among equals: the card must not depend on the order of counting.
    return sorted(counter.items(), key=lambda entry: (-entry[1], entry[0]))


def _write_samples(counts: TableCounts) -> Iterator[str]:
    if not counts.samples["captions"]:
        return
    yield "## Sample"
    for caption in counts.samples["captions"]:
        yield f"**{escape(str(caption['clip_id']))}**"
        yield fence(shorten(str(caption["text"]), 1000))
        pairs = [pair for pair in counts.samples["qa"] if pair["clip_id"] == caption["clip_id"]][:_MAX_PAIRS]
        if pairs:
            cells = ([escape(str(pair[name])) for name in ("question_type", "question", "answer")] for pair in pairs)
            yield render_table(("type", "question", "answer"), cells)


def _write_prompts(run: RunRecord) -> Iterator[str]:
    if run.prompts:
        yield "## Prompts"
    for prompt_id in sorted(run.prompts):
        yield escape(prompt_id)
        yield fence(run.prompts[prompt_id])


def _visible_line(line: str) -> str:
    return "".join(" " if unicodedata.category(letter)[0] == "C" else letter for letter in line)
