"""Exports the published tables of a run, with videos or frames, in the forms that trainers read."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import pyarrow.parquet as pq

from framescribe.decoding.config import TimeWindow, UndecodableClip
from framescribe.errors import FrameScribeError
from framescribe.publish.card import escape
from framescribe.publish.decisions import read_decisions
from framescribe.publish.export_config import ExportConfig, Selection
from framescribe.publish.export_datasets import HfWriter, MessagesWriter, WebDatasetWriter, write_export_card
from framescribe.publish.export_llava import LlavaWriter
from framescribe.publish.export_questions import SECOND_LOOK, Row
from framescribe.publish.export_rows import (
    SPLITS,
    ChosenClip,
    ExportCounts,
    LetterBalance,
    RowChooser,
    assign_splits,
)
from framescribe.publish.export_videos import Cut, read_frames, take_evenly, write_clip_video
from framescribe.publish.tables import is_table_file
from framescribe.shards.lookup import VideoLookup
from framescribe.storage.access import Store
from framescribe.storage.addresses import StorageOptions
from framescribe.storage.config import ReadConfig
from framescribe.storage.errors import VideoUnreadable
from framescribe.storage.output import SUCCESS_FILE, OutputStore, open_output
from schemas.tables import TABLES

REPORT_FILE = "export.json"
_CLIP_COLUMNS = ("clip_id", "source", "member", "start_s", "end_s")
_COLUMNS = {
    "clips": (
        *(*_CLIP_COLUMNS, "duration_s", "frame_indices", "timestamps_s", "model", "recipe"),
        *("num_captions", "num_qa_pairs"),
    ),
    "captions": ("clip_id", "caption_index", "level", "caption_start_s", "caption_end_s", "text", "status"),
    "qa": (
        *("clip_id", "qa_index", "kind", "question_type", "question", "answer", "options", "answer_letter", "status"),
        *("recheck_answer", "blind_answer", *SECOND_LOOK),
    ),
}
_ROWS_AT_A_TIME = 1_000


class CannotExport(FrameScribeError, ValueError):
    """There is nothing to export, or nowhere to put it."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export wrote: see `ExportCounts`; `is_finished` is whether the run's `_SUCCESS` was there."""

    counts: ExportCounts
    is_finished: bool


class _Writer(Protocol):
    def add(self, clip: ChosenClip) -> None: ...

    def close(self) -> None: ...


def export(
    output: str,
    target: Path,
    config: ExportConfig,
    storage_options: StorageOptions | None = None,
    reading: ReadConfig | None = None,
    before_writing: Callable[[], None] | None = None,
) -> ExportReport:
    """Writes the rows of the published tables that are chosen to a new local folder, whole or not at all.

    The same tables, videos and settings give the same bytes. Every row of `captions` and `qa` is exported, or counted
    under the reason why it is not; the counts are in `export.json`, too.

    Args:
        before_writing: called once, when the tables, the target and the settings have been checked.

    Raises:
        CannotExport: no tables, a question type that no row has, nothing that passes, or `target` is there already.
        DecisionsError: the file of decisions is damaged.
    """
    store = open_output(output, storage_options)
    check_target(store, target)
    tables = PublishedTables(store)
    _check_types(tables, config.selection)
    decisions = {} if config.decisions is None else read_decisions(config.decisions)
    counts = ExportCounts()
    if before_writing is not None:
        before_writing()
    with new_folder(target) as folder, tempfile.TemporaryDirectory(prefix="framescribe-") as scratch:
        videos = SourceVideos(VideoLookup(Store(storage_options or {}, reading or ReadConfig()), output), Path(scratch))
        job = _Export(folder, config, counts, videos, tables.origin())
        chooser = RowChooser(config.selection, counts, decisions)
        splits = assign_splits(tables.rows("clips", _CLIP_COLUMNS), config.selection)
        for clip, captions, pairs in tables.clips():
            chosen = chooser.choose(clip, captions, pairs, splits[str(clip["clip_id"])])
            if chosen is not None:
                job.add(clip, chosen)
        videos.close()
        _check_counts(counts)
        job.close()
        tables.check_unchanged()
    return ExportReport(counts, SUCCESS_FILE in store.list_files(""))


class PublishedTables:
    """Reads the published tables clip by clip; all are sorted by clip id.

    Raises:
        CannotExport: there are none, or they were published anew in the middle, so that they do not belong together.
    """

    def __init__(self, store: OutputStore) -> None:
        self._store = store
        self._seen = self._list()
        self._files = {table: sorted(files) for table, files in self._seen.items()}
        if not all(self._files.values()):
            raise CannotExport(
                f"{store.address('')} has no tables: `annotate` makes them, or `publish` of what is done"
            )

    def clips(self) -> Iterator[tuple[Row, list[Row], list[Row]]]:
        """Yields each clip with its captions and QA pairs."""
        groups = [groupby(self.rows(table), key=lambda row: row["clip_id"]) for table in ("captions", "qa")]
        waiting = [next(group, (None, iter(()))) for group in groups]
        for clip in self.rows("clips"):
            found: list[list[Row]] = [[], []]
            for place, group in enumerate(groups):
                if waiting[place][0] == clip["clip_id"]:
                    found[place] = list(waiting[place][1])
                    waiting[place] = next(group, (None, iter(())))
            if [len(rows) for rows in found] != [clip["num_captions"], clip["num_qa_pairs"]]:
                raise self._torn()
            yield clip, found[0], found[1]
        if any(clip_id is not None for clip_id, _ in waiting):
            raise self._torn()

    def check_unchanged(self) -> None:
        """Raises `CannotExport` where somebody published since the files were first listed."""
        if self._list() != self._seen:
            raise self._torn()

    def rows(self, table: str, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """Yields the rows of a table in its order."""
        for name in self._files[table]:
            file = pq.ParquetFile(io.BytesIO(self._store.read(name)))
            for batch in file.iter_batches(_ROWS_AT_A_TIME, columns=list(columns or _COLUMNS[table])):
                yield from batch.to_pylist()

    def _list(self) -> dict[str, dict[str, str]]:
        """Returns table to file to version."""
        return {
            table: {
                f"{table}/{name}": version
                for name, version in self._store.list_versions(table).items()
                if is_table_file(table, name)
            }
            for table in TABLES
        }

    def _torn(self) -> CannotExport:
        return CannotExport(
            f"{self._store.address('')}: the tables do not belong together, or were published anew in the middle: wait "
            "for the run that publishes there, or let `publish` build them, then start the same command again"
        )

    def origin(self, quote: Callable[[str], str] = escape) -> str:
        """Returns who wrote the rows, with the names quoted; of a local checkpoint only its folder's own name."""
        first = next(self.rows("clips", ("model", "recipe")), None)
        if first is None:
            return "by no model"
        model = str(first["model"])
        is_place = "://" in model or model.startswith(("/", ".", "~")) or model.count("/") > 1
        recipe = str(first["recipe"]).rstrip("/").rpartition("/")[2]
        return f"by {quote(model.rstrip('/').rpartition('/')[2] if is_place else model)} (recipe {quote(recipe)})"


class SourceVideos:
    """Gives each clip's source video as a local file; one that came as bytes is written once for all its windows."""

    def __init__(self, lookup: VideoLookup, scratch: Path) -> None:
        self._lookup = lookup
        self._kept = scratch / "source"
        self._key: tuple[str, str | None] | None = None
        self.scratch = scratch

    def find(self, clip: Row) -> Path:
        """Returns the file; valid until the next call.

        Raises:
            VideoUnreadable: it cannot be had.
        """
        key = str(clip["source"]), clip["member"]
        if key == self._key:
            return self._kept
        video = self._lookup.find(*key)
        if isinstance(video, Path):
            return video
        extension = Path(clip["member"] or clip["source"].partition("?")[0]).suffix
        self._kept.unlink(missing_ok=True)
        self._kept = self.scratch / f"source{extension if extension[1:].isalnum() else ''}"
        self._kept.write_bytes(video)
        self._key = key
        return self._kept

    def close(self) -> None:
        """Closes the shard that was read last."""
        self._lookup.close()


class _Export:
    """Writes chosen clips in one format."""

    def __init__(
        self, folder: Path, config: ExportConfig, counts: ExportCounts, videos: SourceVideos, origin: str
    ) -> None:
        self._folder = folder
        self._config = config
        self._counts = counts
        self._videos = videos
        self._origin = origin
        self._balance = LetterBalance(config.selection.seed)
        self._frames: Sequence[bytes] = ()
        self._video = Path()
        makers: Mapping[str, Callable[[], _Writer]] = {
            "llava": lambda: LlavaWriter(folder, config.selection.seed),
            "messages": lambda: MessagesWriter(folder, config.selection.seed, lambda _: self._frames),
            "hf": lambda: HfWriter(folder, self._make_card),
            "webdataset": lambda: WebDatasetWriter(folder, config.clips_per_shard, lambda _: self._video),
        }
        self._writer = makers[config.format]()

    def add(self, clip: Row, chosen: ChosenClip) -> None:
        """Writes a clip, or counts its rows under the reason why it has no video."""
        try:
            ready = self._prepare(clip, chosen)
        except (VideoUnreadable, UndecodableClip) as error:
            self._counts.left_out[f"video: {error.reason}"] += chosen.num_rows
            return
        placed = self._balance.place(ready)
        self._writer.add(placed)
        self._counts.add(placed)

    def close(self) -> None:
        """Finishes the files."""
        self._writer.close()
        content = {"format": self._config.format, "settings": _describe(self._config), "counts": self._counts.to_json()}
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
        (self._folder / REPORT_FILE).write_text(text + "\n", encoding="utf-8")

    def _prepare(self, clip: Row, chosen: ChosenClip) -> ChosenClip:
        if self._config.format == "hf" and not self._config.has_videos:
            return chosen
        source = self._videos.find(clip)
        if self._config.format == "messages":
            indices = take_evenly(clip["frame_indices"], self._config.max_frames)
            self._frames = read_frames(source, indices, self._config.max_side_px)
            return chosen
        is_packed = self._config.format == "webdataset"
        # 256 folders: millions of files in one are slow everywhere. No dot in a key, so that no suffix is cut off.
        place = self._videos.scratch / "clip" if is_packed else self._folder / "videos" / chosen.key[-2:] / chosen.key
        place.parent.mkdir(parents=True, exist_ok=True)
        self._video, cut = _write_video(source, TimeWindow(clip["start_s"], clip["end_s"]), place)
        self._counts.videos[cut.value] += 1
        path = None if is_packed else self._video.relative_to(self._folder).as_posix()
        return replace(chosen, video=path)

    def _make_card(self, splits: Mapping[str, Sequence[str]]) -> str:
        filters = (f"{name} {json.dumps(value)}" for name, value in _describe(self._config).items())
        return write_export_card(splits, self._counts, self._origin, filters, self._config.has_videos)


def _write_video(source: Path, window: TimeWindow, place: Path) -> tuple[Path, Cut]:
    try:
        return write_clip_video(source, window, place)
    except UndecodableClip:
        for leftover in place.parent.glob(f"{place.name}.*"):
            leftover.unlink()
        raise


def _describe(config: ExportConfig) -> dict[str, Any]:
    """Returns the settings as JSON, without the names of files of this machine."""
    settings = {**asdict(config.selection), **asdict(config)}
    settings["decisions"] = config.decisions is not None
    del settings["selection"], settings["format"]
    return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in sorted(settings.items())}


def check_target(store: OutputStore, target: Path) -> None:
    """Raises `CannotExport` where the target has contents, or lies in the run's own output."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CannotExport(f"{target} is there already: choose another --to, or remove it")
    local = store.local_path
    if local is not None and target.resolve().is_relative_to(local.resolve()):
        raise CannotExport(f"{target} lies inside of the run's own output {local}: choose another --to")


def _check_types(tables: PublishedTables, selection: Selection) -> None:
    if selection.question_types is None:
        return
    there = {str(row["question_type"]) for row in tables.rows("qa", ("question_type",))}
    if unknown := sorted(selection.question_types - there):
        raise CannotExport(
            f"no row of qa has the type {unknown[0]!r} (--types); there are: {', '.join(sorted(there)) or 'none'}"
        )


def _check_counts(counts: ExportCounts) -> None:
    if counts.num_exported + counts.left_out.total() != counts.num_rows:
        raise AssertionError(f"rows do not add up: {counts}")
    if not counts.num_exported:
        raise CannotExport(f"no row is left to export; {describe_left_out(counts.left_out)}")


def describe_left_out(left_out: Counter[str]) -> str:
    """Returns the reasons with their rows on one line, the most frequent first."""
    ordered = sorted(left_out.items(), key=lambda entry: (-entry[1], entry[0]))
    return "left out: " + (", ".join(f"{reason} {number:,}" for reason, number in ordered) or "nothing")


def describe_export(report: ExportReport) -> str:
    """Returns what an export wrote and left out, in a few lines."""
    counts = report.counts
    exported = ", ".join(f"{kind} {number:,}" for kind, number in sorted(counts.exported.items()))
    splits = ", ".join(f"{split} {counts.clips[split]:,}" for split in SPLITS if counts.clips[split])
    videos = ", ".join(f"{how} {number:,}" for how, number in sorted(counts.videos.items()))
    lines = [
        f"exported {counts.num_exported:,} of {counts.num_rows:,} rows: {exported}",
        describe_left_out(counts.left_out),
        f"clips: {splits}",
        *([f"videos: {videos}"] if videos else []),
    ]
    return "\n".join(lines)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder beside the target, which takes its name at the end, and is removed at an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        folder.chmod(0o755)
        yield folder
        folder.replace(target)  # onto nothing, or an empty folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
