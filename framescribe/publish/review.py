"""Writes a page that shows what a run published: clips, captions, questions, failures; it opens from disk."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from framescribe.decoding.config import UndecodableClip
from framescribe.publish.decisions import row_digest
from framescribe.publish.export import PublishedTables, SourceVideos, check_target, new_folder
from framescribe.publish.export_config import NUM_THUMBNAILS
from framescribe.publish.export_questions import Row, read_question
from framescribe.publish.export_rows import file_key
from framescribe.publish.export_videos import read_frames, take_evenly
from framescribe.shards.lookup import VideoLookup
from framescribe.storage.access import Store
from framescribe.storage.addresses import StorageOptions
from framescribe.storage.config import ReadConfig
from framescribe.storage.errors import VideoUnreadable
from framescribe.storage.journal import read_run
from framescribe.storage.output import open_output

PAGE = Path(__file__).with_name("review_page.html")
_CLIPS_A_FILE = 50
_FRAME_PX = 160
INDEX_FILE = "data/index.js"
_BYTES_A_FRAME = 6_000  # of a frame in a contact sheet, for the size that is stated before
_SEARCHED_CHARACTERS = 400
_FAILURE_COLUMNS = ("clip_id", "stage", "reason", "message")

JsonObject = Mapping[str, Any]  # Any: JSON


@dataclass(frozen=True, slots=True)
class ReviewReport:
    """How many clips the page shows, how many of them failed, and of how many annotated ones no frame could be had."""

    num_clips: int
    num_failed: int
    num_without_frames: int


def review(
    output: str,
    target: Path,
    num_frames: int = NUM_THUMBNAILS,
    storage_options: StorageOptions | None = None,
    reading: ReadConfig | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> ReviewReport:
    """Writes `index.html`, `data/` and `thumbs/` to a new local folder, whole or not at all.

    Args:
        num_frames: of each clip, evenly taken from those that the model saw; 0 reads no video.
        say: is told the size before anything is written.

    Raises:
        CannotExport: no tables, or `target` is there already.
    """
    store = open_output(output, storage_options)
    check_target(store, target)
    tables = PublishedTables(store)
    num_clips = sum(1 for _ in tables.rows("clips", ("clip_id",)))
    say(f"about {num_clips * (num_frames * _BYTES_A_FRAME + 8_000) / 1e6:,.1f} MB for {num_clips:,} clips in {target}")
    run = read_run(store)
    with new_folder(target) as folder, tempfile.TemporaryDirectory(prefix="framescribe-") as scratch:
        videos = SourceVideos(VideoLookup(Store(storage_options or {}, reading or ReadConfig()), output), Path(scratch))
        pages = _Pages(folder)
        num_without = 0
        for clip, captions, pairs in tables.clips():
            sheet, times_s = _write_sheet(folder, videos, clip, num_frames)
            num_without += sheet is None
            pages.add(_describe_clip(clip, captions, pairs, sheet, times_s), _index_clip(clip, captions, pairs))
        videos.close()
        num_failed = 0
        for failure in tables.rows("failures", _FAILURE_COLUMNS):
            num_failed += 1
            pages.add({name: failure[name] for name in _FAILURE_COLUMNS}, _index_failure(failure))
        pages.close("" if run is None else run.fingerprint)
        shutil.copyfile(PAGE, folder / "index.html")
        tables.check_unchanged()
    return ReviewReport(num_clips + num_failed, num_failed, num_without)


class _Pages:
    """Writes `data/page-00000.js` and so on, a few clips each, and `data/index.js` with what is searched.

    They are scripts with one call each: a page from disk may not fetch JSON.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "data"
        self._folder.mkdir()
        self._waiting: list[JsonObject] = []
        self._index: list[JsonObject] = []
        self._num_files = 0

    def add(self, shown: JsonObject, searched: JsonObject) -> None:
        """Takes the next clip."""
        self._waiting.append(shown)
        self._index.append(searched)
        if len(self._waiting) == _CLIPS_A_FILE:
            self._flush()

    def close(self, fingerprint: str) -> None:
        """Writes what is left, and the index."""
        if self._waiting:
            self._flush()
        content = {"fingerprint": fingerprint, "clipsPerFile": _CLIPS_A_FILE, "clips": self._index}
        (self._folder / Path(INDEX_FILE).name).write_text(f"takeIndex({_to_script(content)});\n", encoding="utf-8")

    def _flush(self) -> None:
        text = f"takePage({self._num_files}, {_to_script(self._waiting)});\n"
        (self._folder / f"page-{self._num_files:05d}.js").write_text(text, encoding="utf-8")
        self._waiting = []
        self._num_files += 1


def _to_script(content: object) -> str:
    # Nothing of it is ever taken for markup, whatever a server or an editor makes of the file.
    return json.dumps(content, ensure_ascii=True).replace("<", "\\u003c").replace(">", "\\u003e")


def _write_sheet(folder: Path, videos: SourceVideos, clip: Row, num_frames: int) -> tuple[str | None, list[float]]:
    """Returns the path of the contact sheet of a clip, and the times of its frames; None where there is none."""
    sheet, times_s = make_sheet(videos, clip, num_frames, _FRAME_PX)
    if sheet is None:
        return None, []
    key = file_key(str(clip["clip_id"]))
    path = folder / "thumbs" / key[-2:] / f"{key}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sheet)
    return path.relative_to(folder).as_posix(), times_s


def make_sheet(videos: SourceVideos, clip: Row, num_frames: int, frame_px: int) -> tuple[bytes | None, list[float]]:
    """Returns some of the frames that the model saw, side by side as one JPEG, and their times in seconds.

    Args:
        clip: a row of the table `clips`.
        frame_px: longer side of a frame, at most.

    Returns:
        None for the sheet where no frame can be had or none is wanted; no times where some frames are missing.
    """
    if not num_frames:
        return None, []
    wanted = take_evenly(clip["frame_indices"], num_frames)
    try:
        frames = read_frames(videos.find(clip), wanted, frame_px)
    except (VideoUnreadable, UndecodableClip):
        return None, []
    time_of = dict(zip(clip["frame_indices"], clip["timestamps_s"], strict=True))
    times_s = [round(time_of[index], 3) for index in wanted] if len(wanted) == len(frames) else []
    return _join(frames), times_s


def _join(frames: Sequence[bytes]) -> bytes:
    pictures = [Image.open(io.BytesIO(frame)) for frame in frames]
    width, height = max(picture.width for picture in pictures), max(picture.height for picture in pictures)
    sheet = Image.new("RGB", (width * len(pictures), height))
    for place, picture in enumerate(pictures):
        sheet.paste(picture, (place * width, 0))
    stream = io.BytesIO()
    sheet.save(stream, "JPEG", quality=80)
    return stream.getvalue()


def _describe_clip(
    clip: Row, captions: Sequence[Row], pairs: Sequence[Row], sheet: str | None, times_s: Sequence[float]
) -> JsonObject:
    return {
        **{name: clip[name] for name in ("clip_id", "duration_s", "start_s", "end_s")},
        "sheet": sheet,
        "times": times_s,
        "rows": [*map(_describe_caption, captions), *map(_describe_pair, pairs)],
    }


def _describe_caption(row: Row) -> JsonObject:
    return {
        "row": f"caption {row['caption_index']}",
        "kind": f"caption {row['level']}",
        "bounds": [row["caption_start_s"], row["caption_end_s"]],
        "text": row["text"],
        "status": row["status"],
        "digest": row_digest("", str(row["text"])),
    }


def _describe_pair(row: Row) -> JsonObject:
    names = ("kind", "question", "options", "status", "recheck_answer", "blind_answer", "is_consistent")
    second_look = read_question(row)
    return {
        "row": f"qa {row['qa_index']}",
        "type": row["question_type"],
        "text": row["answer"],
        "letter": row["answer_letter"],
        "digest": row_digest(str(row["question"]), str(row["answer"])),
        "probability": second_look.probability,
        "blind": second_look.blind,
        "is_rotation_consistent": second_look.is_rotation_consistent,
        **{name: row[name] for name in names},
    }


def _index_clip(clip: Row, captions: Sequence[Row], pairs: Sequence[Row]) -> JsonObject:
    verdicts = [row[name] for row in pairs for name in ("is_consistent", "is_rotation_consistent")]
    looked_at = [verdict for verdict in verdicts if verdict is not None]
    words = " ".join((str(clip["clip_id"]), *(str(row["text"]) for row in captions)))
    return {
        "text": words[:_SEARCHED_CHARACTERS].lower(),
        "statuses": _distinct(row["status"] for row in (*captions, *pairs)),
        "types": _distinct(row["question_type"] for row in pairs if row["status"] == "ok"),
        "recipe": clip["recipe"],
        "disagreement": round(looked_at.count(False) / len(looked_at), 3) if looked_at else 0.0,
    }


def _index_failure(row: Row) -> JsonObject:
    words = f"{row['clip_id']} {row['reason']}".lower()
    return {"text": words, "statuses": ["failed"], "types": [], "recipe": "", "disagreement": 2.0}


def _distinct(values: Iterable[str]) -> list[str]:
    return sorted(set(values))
