"""What `make demo` prints, and what makes `.ci/run` refuse a demo run."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from demo.show import describe, find_faults, main, read_promised_fraction, read_shown_clips, summarise

RED = "A red square moves left on a black background."
BLUE = "A blue disc stands still on a white background."


def write_table(output: Path, name: str, rows: list[dict[str, object]], columns: tuple[str, ...]) -> None:
    (output / name).mkdir(parents=True)
    schema = pa.schema([(column, pa.bool_() if column == "is_consistent" else pa.string()) for column in columns])
    pq.write_table(pa.Table.from_pylist(rows, schema), output / name / "part-0.parquet")


def write_run(output: Path, captions: dict[str, str], failures: dict[str, str]) -> Path:
    sources = {name: f"/data/demo/clips/{name}" for name in captions}
    texts = [{"source": sources[name], "text": text} for name, text in captions.items()]
    pairs = [("What moves?", "it", None), ("Does it move?", "yes", True)]
    asked = [
        {"source": source, "status": "ok", "question": question, "answer": answer, "is_consistent": is_consistent}
        for source in sources.values()
        for question, answer, is_consistent in pairs
    ]
    write_table(output, "captions", texts, ("source", "text"))
    write_table(output, "qa", asked, ("source", "status", "question", "answer", "is_consistent"))
    write_table(output, "clips", [{"source": source} for source in sources.values()], ("source",))
    failed = [{"clip_id": name, "message": message} for name, message in failures.items()]
    write_table(output, "failures", failed, ("clip_id", "message"))
    (output / "_SUCCESS").touch()
    return output


@pytest.fixture
def clips(tmp_path):
    truth = [{"file": "red.mp4", "caption": RED}, {"file": "blue.mp4", "caption": BLUE}]
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "truth.jsonl").write_text("".join(json.dumps(row) + "\n" for row in truth))
    return tmp_path / "clips"


def test_a_clip_is_shown_with_its_truth_its_caption_and_its_answers(tmp_path, clips):
    output = write_run(tmp_path / "out", {"red.mp4": RED, "blue.mp4": BLUE}, {})
    shown = read_shown_clips(output, clips)
    assert describe(shown[0]).splitlines() == [
        "red.mp4",
        f"  shows    {RED}",
        f"  caption  {RED}",
        "  Q        Does it move?",
        "  A        yes  (consistent)",
        "  Q        What moves?",
        "  A        it",
    ]


def test_the_summary_counts_right_captions_and_names_the_tables(tmp_path, clips):
    output = write_run(tmp_path / "out", {"red.mp4": RED.upper(), "blue.mp4": RED}, {})
    summary = summarise(read_shown_clips(output, clips), output)
    assert summary.startswith("1 of 2 captions say what the clip shows.")
    assert f"{output}/captions/  2 rows" in summary


def test_a_good_run_has_no_faults(tmp_path, clips):
    output = write_run(tmp_path / "out", {"red.mp4": RED, "blue.mp4": BLUE}, {})
    assert find_faults(read_shown_clips(output, clips), output, 0.96) == []


def test_wrong_missing_and_failed_clips_are_faults(tmp_path, clips):
    output = write_run(tmp_path / "out", {"red.mp4": BLUE}, {"blue": "no video stream"})
    assert find_faults(read_shown_clips(output, clips), output, 0.96) == [
        "blue.mp4 has no caption",
        "blue.mp4 has no QA pair",
        "blue failed: no video stream",
        "only 0 of 2 captions are right, wanted 2: the model card promises 96%",
    ]


def test_a_weak_model_is_held_to_no_more_than_its_card_promises(tmp_path, clips):
    output = write_run(tmp_path / "out", {"red.mp4": RED, "blue.mp4": RED}, {})
    assert find_faults(read_shown_clips(output, clips), output, 0.4) == []


def test_the_promise_is_read_from_the_model_card(tmp_path):
    (tmp_path / "README.md").write_text("| kind | right | asked |\n|---|---|---|\n| caption | 24 | 25 | 96 % |\n")
    assert read_promised_fraction(tmp_path / "README.md") == 0.96


def test_an_unfinished_run_is_a_fault(tmp_path, clips):
    output = write_run(tmp_path / "out", {"red.mp4": RED, "blue.mp4": BLUE}, {})
    (output / "_SUCCESS").unlink()
    assert find_faults(read_shown_clips(output, clips), output, 0.96)[0].endswith(
        "_SUCCESS is missing: the run did not finish"
    )


def test_the_check_of_a_run_without_captions_fails(tmp_path, clips, monkeypatch, capsys):
    monkeypatch.setattr("demo.show.CLIPS", clips)
    assert main([str(write_run(tmp_path / "out", {}, {})), "--check"]) == 1
    assert "red.mp4 has no caption" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [[], ["--check"]])
def test_a_folder_without_tables_is_refused_with_what_is_wanted(tmp_path, capsys, flags):
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "nowhere"), *flags])
    assert f"{tmp_path}/nowhere holds no tables: wanted the --output of" in capsys.readouterr().err
