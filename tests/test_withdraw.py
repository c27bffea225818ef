"""A clip that is withdrawn is in no byte of the output any more, and no later start annotates it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from framescribe.storage.journal import set_part_aside
from framescribe.storage.output import open_output
from framescribe.storage.withdrawn import add_withdrawn
from run_pipeline import main
from tests.support.run_fixtures import annotate_arguments, annotate_with, checkpoint_revision, read_tables, tiny_clip
from tests.support.shards_fixtures import write
from tests.support.talking_engine import TalkingEngine

GONE = "videos/b"


def make_folder(folder: Path, names: str = "abcd") -> str:
    """Writes a clip for each letter, and a table beside them that says something of each."""
    for number, name in enumerate(names):
        if not (folder / "videos" / f"{name}.mp4").exists():
            write(folder / "videos" / f"{name}.mp4", tiny_clip(number))
    lines = [f"{name}.mp4,secret-of-{name}" for name in names]
    write(folder / "videos" / "metadata.csv", "\n".join(["file_name,about", *lines, ""]))
    return str(folder / "videos")


def annotate(folder: Path, *flags: str, output: str = "out") -> list[str]:
    """Runs a whole start and returns the ids of the clips that the model was asked about."""
    engine = TalkingEngine(checkpoint_revision())
    arguments = annotate_arguments(folder, [str(folder / "videos")], folder / output, "--canary-every", "0", *flags)
    assert annotate_with(engine, arguments) == 0
    return sorted({clip_id for clip_id, _ in engine.asked})


def withdraw(folder: Path, *flags: str, ids: str = f"{GONE}\n") -> int:
    return main(["withdraw", "--output", str(folder / "out"), "--ids", write(folder / "ids.txt", ids), *flags])


def spell_out(folder: Path) -> str:
    """Returns all that a folder holds as text, Parquet decompressed."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    tables = [str(pq.read_table(path).to_pylist()) for path in paths if path.suffix == ".parquet"]
    return "\n".join([*tables, *(path.read_bytes().decode("latin-1") for path in paths)])


@pytest.fixture
def run(tmp_path):
    make_folder(tmp_path)
    assert annotate(tmp_path) == ["videos/a", GONE, "videos/c", "videos/d"]
    return tmp_path


def texts_of(folder: Path, clip_id: str) -> list[str]:
    (row,) = [row for row in read_tables(folder / "out")["captions"] if row["clip_id"] == clip_id]
    return [row["text"], "secret-of-b"]


def test_nothing_of_a_withdrawn_clip_is_left_in_any_byte_of_the_output(run):
    texts = texts_of(run, GONE)
    assert all(text in spell_out(run / "out") for text in texts)
    assert withdraw(run) == 0
    assert not [text for text in texts if text in spell_out(run / "out")]


def test_its_row_says_that_it_was_withdrawn_and_the_others_stay_as_they_were(run):
    before = read_tables(run / "out")
    assert withdraw(run) == 0
    after = read_tables(run / "out")
    assert [(row["clip_id"], row["reason"], row["metadata"]) for row in after["failures"]] == [
        (GONE, "withdrawn", "{}")
    ]
    for table in ("captions", "qa", "clips"):
        assert after[table] == [row for row in before[table] if row["clip_id"] != GONE]
    success = json.loads((run / "out" / "_SUCCESS").read_text())
    assert (success["num_annotated"], success["num_failed"], success["num_withdrawn"]) == (3, 1, 1)


@pytest.mark.parametrize("flags", [(), ("--retry-failed",), ("--overwrite",)])
def test_no_later_start_annotates_it_again(run, flags):
    texts = texts_of(run, GONE)
    assert withdraw(run) == 0
    assert GONE not in annotate(run, *flags)
    assert not [text for text in texts if text in spell_out(run / "out")]
    assert [row["clip_id"] for row in read_tables(run / "out")["failures"]] == [GONE]


def test_a_run_that_takes_its_answers_keeps_it_out_too(run):
    assert withdraw(run) == 0
    assert annotate(run, "--reuse-from", str(run / "out"), output="new") == []
    assert [row["reason"] for row in read_tables(run / "new")["failures"]] == ["withdrawn"]
    assert "secret-of-b" not in spell_out(run / "new")


def test_a_part_that_was_set_aside_is_cleared_as_well(run):
    store = open_output(str(run / "out"))
    (unit_id, *_) = [row["unit_id"] for row in read_tables(run / "out")["clips"] if row["clip_id"] == GONE]
    text, _ = texts_of(run, GONE)
    set_part_aside(store, unit_id)
    assert withdraw(run) == 0
    assert text not in spell_out(run / "out")


def test_a_worker_that_did_not_know_yet_is_put_right_when_the_run_publishes(run):
    text, _ = texts_of(run, GONE)
    add_withdrawn(open_output(str(run / "out")), [GONE])
    assert main(["publish", "--output", str(run / "out")]) == 0
    assert text not in spell_out(run / "out")


def test_exports_and_pages_are_removed_where_they_are_named(run, capsys):
    assert main(["review", str(run / "out"), "--to", str(run / "page"), "--thumbnails", "1"]) == 0
    assert withdraw(run, "--exports", str(run / "page")) == 0
    assert f"removed {run / 'page'}" in capsys.readouterr().out
    assert not (run / "page").exists()


def test_a_folder_that_is_no_export_is_left_alone_and_nothing_is_withdrawn(run, capsys):
    assert withdraw(run, "--exports", str(run / "videos")) == 1
    assert "is no folder that `export` or `review` wrote; nothing was changed" in capsys.readouterr().err
    assert "secret-of-b" in spell_out(run / "out")


def test_an_id_that_is_not_there_yet_is_kept_out_of_what_comes(run, capsys):
    assert withdraw(run, ids="videos/e\n") == 0
    assert "0 clips taken out of 0 parts" in capsys.readouterr().out
    make_folder(run, "abcde")
    assert "videos/e" not in annotate(run)


@pytest.mark.parametrize(("ids", "said"), [("\n \n", "is empty"), ("", "is empty")])
def test_a_file_without_ids_is_refused(run, ids, said, capsys):
    assert withdraw(run, ids=ids) == 1
    assert said in capsys.readouterr().err


def test_what_others_put_beside_the_plan_is_left_alone(run):
    other = run / "out" / "_framescribe" / "plan" / "notes.parquet"
    other.write_bytes(b"mine")
    assert withdraw(run) == 0
    assert other.read_bytes() == b"mine"
