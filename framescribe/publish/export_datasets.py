"""Writes chosen clips as folders that `datasets.load_dataset` opens, and as WebDataset shards."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from framescribe.publish.export_config import MULTIPLE_CHOICE
from framescribe.publish.export_llava import ask_multiple_choice
from framescribe.publish.export_questions import neutralise, neutralise_question
from framescribe.publish.export_rows import SPLITS, ChosenClip, ExportCounts

_ROWS_PER_FILE = {"captions": 100_000, "qa": 500_000}
_CHATS_PER_FILE = 100_000
_BYTES_PER_FILE = 400 << 20  # of pictures
_ROWS_PER_GROUP = 50  # a row holds dozens of pictures, and readers take a whole group
_FEATURES_OF_MESSAGES = {
    "clip_id": {"dtype": "string", "_type": "Value"},
    "messages": {
        "feature": {name: {"dtype": "string", "_type": "Value"} for name in ("role", "content")},
        "_type": "List",
    },
    "images": {"feature": {"_type": "Image"}, "_type": "List"},
}
_MESSAGES_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
    ],
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES_OF_MESSAGES}}, sort_keys=True)},
)
_CLIP_FIELDS = (("clip_id", pa.string()), ("video", pa.string()), ("duration_s", pa.float64()))
_HF_SCHEMAS = {
    "captions": pa.schema([*_CLIP_FIELDS, ("request", pa.string()), ("text", pa.string())]),
    "qa": pa.schema(
        [
            *_CLIP_FIELDS,
            *((name, pa.string()) for name in ("kind", "question_type", "question", "answer")),
            ("options", pa.list_(pa.string())),
            ("answer_letter", pa.string()),
            ("recheck_score", pa.float64()),
            ("blind_score", pa.float64()),
            ("is_consistent", pa.bool_()),
            *((name, pa.float64()) for name in ("answer_logprob", "blind_logprob", "video_gain_per_token")),
            ("num_answer_tokens", pa.int32()),
            ("is_rotation_consistent", pa.bool_()),
        ]
    ),
}


class MessagesWriter:
    """Writes `data/SPLIT-00000.parquet`: one chat per clip, and the frames that the model saw as `images`.

    Texts hold no marks for pictures: TRL puts those of all images before the words of the first user turn.
    """

    def __init__(self, folder: Path, seed: int, read_frames: Callable[[ChosenClip], Sequence[bytes]]) -> None:
        self._seed = seed
        self._read_frames = read_frames
        self._files = _ParquetFiles(folder / "data", _MESSAGES_SCHEMA, _CHATS_PER_FILE, _ROWS_PER_GROUP)

    def add(self, clip: ChosenClip) -> None:
        """Writes a clip; raises `UndecodableClip` where its frames cannot be had, and writes nothing then."""
        frames = self._read_frames(clip)
        images = [{"bytes": frame, "path": f"{number:03d}.jpg"} for number, frame in enumerate(frames)]
        messages = [
            {"role": role, "content": text}
            for request, answer in make_turns(clip, self._seed)
            for role, text in (("user", request), ("assistant", answer))
        ]
        row = {"clip_id": clip.clip_id, "messages": messages, "images": images}
        self._files.write(clip.split, row, sum(map(len, frames)))

    def close(self) -> None:
        """Finishes the files."""
        self._files.close()


def make_turns(clip: ChosenClip, seed: int) -> Iterator[tuple[str, str]]:
    """Yields request and answer of the captions of a clip, then of its questions, neutralised."""
    yield from ((caption.request, neutralise(caption.text)) for caption in clip.captions)
    for place, question in enumerate(map(neutralise_question, clip.questions)):
        if question.kind == MULTIPLE_CHOICE:
            yield ask_multiple_choice(question, f"{seed} closing {clip.clip_id} {place}")
        else:
            yield question.question, question.answer


class HfWriter:
    """Writes `captions/SPLIT-00000.parquet`, `qa/SPLIT-00000.parquet` and the card, which names them as configs."""

    def __init__(self, folder: Path, make_card: Callable[[Mapping[str, Sequence[str]]], str]) -> None:
        self._folder = folder
        self._make_card = make_card
        self._files = {
            name: _ParquetFiles(folder / name, schema, _ROWS_PER_FILE[name], 10_000)
            for name, schema in _HF_SCHEMAS.items()
        }

    def add(self, clip: ChosenClip) -> None:
        """Writes the rows of a clip."""
        common = {"clip_id": clip.clip_id, "video": clip.video, "duration_s": clip.duration_s}
        for caption in clip.captions:
            self._files["captions"].write(clip.split, {**common, **asdict(caption)})
        for question in clip.questions:
            self._files["qa"].write(clip.split, {**common, **asdict(question)})

    def close(self) -> None:
        """Finishes the files and writes the card."""
        for files in self._files.values():
            files.close()
        splits = {name: files.splits for name, files in self._files.items() if files.splits}
        (self._folder / "README.md").write_text(self._make_card(splits), encoding="utf-8")


class WebDatasetWriter:
    """Writes `SPLIT-000000.tar`: of each clip its video and a JSON object under one key without dots.

    Args:
        take_video: returns the local file of a clip's video, which is removed once it is in the tar.
    """

    def __init__(self, folder: Path, clips_per_shard: int, take_video: Callable[[ChosenClip], Path]) -> None:
        self._folder = folder
        self._clips_per_shard = clips_per_shard
        self._take_video = take_video
        self._tars: dict[str, tarfile.TarFile] = {}
        self._num_clips: dict[str, int] = {}

    def add(self, clip: ChosenClip) -> None:
        """Writes a clip."""
        number = self._num_clips.get(clip.split, 0)
        if number % self._clips_per_shard == 0:
            self._close(clip.split)
            path = self._folder / f"{clip.split}-{number // self._clips_per_shard:06d}.tar"
            self._tars[clip.split] = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self._num_clips[clip.split] = number + 1
        video = self._take_video(clip)
        self._add_member(clip, f"{clip.key}{video.suffix.lower()}", video.read_bytes())
        self._add_member(clip, f"{clip.key}.json", describe_clip(clip))
        video.unlink()

    def close(self) -> None:
        """Finishes the tars."""
        for split in [*self._tars]:
            self._close(split)

    def _close(self, split: str) -> None:
        if split in self._tars:
            self._tars.pop(split).close()

    def _add_member(self, clip: ChosenClip, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)  # of nobody, at no time: the same bytes again
        member.size, member.mode = len(content), 0o644
        self._tars[clip.split].addfile(member, io.BytesIO(content))


def describe_clip(clip: ChosenClip) -> bytes:
    """Returns the JSON object of a clip: its exact `clip_id`, `duration_s`, `captions` and `qa`."""
    content = {
        "clip_id": clip.clip_id,
        "duration_s": clip.duration_s,
        "captions": [asdict(caption) for caption in clip.captions],
        "qa": [asdict(question) for question in clip.questions],
    }
    return (json.dumps(content, ensure_ascii=False) + "\n").encode("utf-8")


class _ParquetFiles:
    """Writes rows into `SPLIT-00000.parquet` and so on; a new file is begun where one is full."""

    def __init__(self, folder: Path, schema: pa.Schema, rows_per_file: int, rows_per_group: int) -> None:
        self._folder = folder
        self._schema = schema
        self._rows_per_file = rows_per_file
        self._rows_per_group = rows_per_group
        self._waiting: dict[str, list[Mapping[str, Any]]] = {}  # Any: cells
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._written: dict[str, tuple[int, int]] = {}  # rows and bytes in the file that is open
        self._num_files: dict[str, int] = {}

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that have rows."""
        return tuple(split for split in SPLITS if split in self._num_files)

    def write(self, split: str, row: Mapping[str, Any], num_bytes: int = 0) -> None:
        waiting = self._waiting.setdefault(split, [])
        waiting.append(row)
        rows, size = self._written.get(split, (0, 0))
        self._written[split] = rows + 1, size + num_bytes
        self._num_files.setdefault(split, 0)
        is_full = rows + 1 >= self._rows_per_file or size + num_bytes >= _BYTES_PER_FILE
        if is_full or len(waiting) >= self._rows_per_group:
            self._flush(split)
        if is_full:
            self._end_file(split)

    def close(self) -> None:
        for split in self.splits:
            self._flush(split)
            self._end_file(split)

    def _flush(self, split: str) -> None:
        if not self._waiting.get(split):
            return
        if split not in self._writers:
            self._folder.mkdir(exist_ok=True)
            path = self._folder / f"{split}-{self._num_files[split]:05d}.parquet"
            self._writers[split] = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._writers[split].write_table(pa.Table.from_pylist(self._waiting.pop(split), schema=self._schema))

    def _end_file(self, split: str) -> None:
        if split in self._writers:
            self._writers.pop(split).close()
            self._num_files[split] += 1
        self._written.pop(split, None)


def write_export_card(
    splits: Mapping[str, Sequence[str]], counts: ExportCounts, origin: str, filters: Iterable[str], has_videos: bool
) -> str:
    """Returns the card of an `hf` export as Markdown, with the YAML header that the hub and `datasets` read."""
    header = [
        "---",
        "license: other",
        "language:",
        "- en",
        "task_categories:",
        "- video-text-to-text",
        "- visual-question-answering",
        "configs:",
    ]
    for place, (table, names) in enumerate(splits.items()):
        header += [f"- config_name: {table}", *(["  default: true"] if place == 0 else []), "  data_files:"]
        header += [line for name in names for line in (f"  - split: {name}", f"    path: {table}/{name}-*.parquet")]
    left_out = [f"- {number:,} rows: {reason}" for reason, number in sorted(counts.left_out.items())] or ["- none"]
    videos = "`video` is the path of the clip in this folder." if has_videos else "Videos are not part of this export."
    return "\n".join(
        (
            *header,
            "---",
            "",
            "# Video captions and questions",
            "",
            f"{counts.num_exported:,} captions and question-answer pairs of {counts.clips.total():,} clips, written"
            f" {origin} with FrameScribe. {videos}",
            "",
            "Clips of one source video are in one split. Settings of the export: " + "; ".join(filters) + ".",
            "",
            f"Of {counts.num_rows:,} rows these were left out:",
            "",
            *left_out,
            "",
            "## Limits",
            "",
            "- Texts are a model's. `is_consistent` says that it gave the same answer when it was asked again from the",
            "  frames; that is no proof that the answer is true.",
            "- Faces, licence plates, speech and unsafe contents were not screened.",
            "- The licence of every source video, and the terms of the model and of its training data, go on to apply.",
            "",
        )
    )
