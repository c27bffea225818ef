"""`framescribe report`: what the page counts, and that its precision is the truth where the truth is known."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from demo.answers import all_pairs
from demo.world import Actor, Scene
from framescribe.publish.decisions import DECISIONS_KIND, DecisionsError, read_decisions, row_digest
from framescribe.publish.export import CannotExport
from framescribe.publish.quality import Precision, Quality, place_of
from framescribe.publish.quality_page import report
from framescribe.recipes.annotation import Status
from run_pipeline import main
from tests.support.output_fixtures import make_caption, make_failed, make_pair
from tests.support.run_fixtures import ROOT, read_tables
from tests.test_export_rows import annotate, export_texts, publish_run, read_rows

CLIPS = ROOT / "demo" / "clips"
HTML = "<script>alert(1)</script>"
OPEN = replace(make_pair(), kind="open_ended", options=(), answer_letter=None, question_type="Binary")


def measure(output: str, folder: Path, **arguments) -> Quality:
    return report(output, folder / "quality.html", **arguments).quality


@pytest.fixture(scope="module")
def scenes() -> dict[str, Scene]:
    """What the demo clips show, by clip id; where things stand is not asked for."""
    lines = [json.loads(line) for line in (CLIPS / "truth.jsonl").read_text().splitlines()]
    return {
        f"clips/{line['file'].removesuffix('.mp4')}": Scene(
            line["background"],
            tuple(Actor(**actor, start=(0, 0, 0), end=(0, 0, 0), turn_at=1) for actor in line["objects"]),
            line["duration_s"],
            0,
        )
        for line in lines
    }


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory) -> Path:
    """The demo clips, of which the model sees 2 frames in place of 8, and every pair asked again."""
    output = tmp_path_factory.mktemp("run") / "out"
    command = [sys.executable, "run_pipeline.py", "annotate", "--input", str(CLIPS), "--model", "demo/checkpoint"]
    small = ["--recipe", "full", "--num-frames", "2", "--device", "cpu", "--kv-cache-gib", "0.3"]
    done = subprocess.run(
        [*command, "--output", str(output), *small], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    return output


def is_right(row: dict, scenes: dict[str, Scene]) -> bool:
    return (row["question"], row["answer"]) in all_pairs(scenes[row["clip_id"]])


@pytest.fixture(scope="module")
def pairs(demo_run) -> list[dict]:
    return [row for row in read_tables(demo_run)["qa"] if row["status"] == "ok"]


def test_precision_on_the_demo_world_is_the_truth_and_consistency_raises_it(demo_run, pairs, scenes, tmp_path):
    decisions = [
        {
            "clip_id": row["clip_id"],
            "row": f"qa {row['qa_index']}",
            "digest": row_digest(row["question"], row["answer"]),
            "verdict": "accept" if is_right(row, scenes) else "reject",
        }
        for row in pairs
    ]
    (tmp_path / "decisions.json").write_text(json.dumps({"kind": DECISIONS_KIND, "decisions": decisions}))
    judged = measure(str(demo_run), tmp_path, decisions=tmp_path / "decisions.json").judged
    confirmed = [row for row in pairs if row["is_consistent"]]
    num_right, num_confirmed = (sum(is_right(row, scenes) for row in rows) for rows in (pairs, confirmed))
    assert judged["all"] == Precision(num_right, len(pairs))
    assert judged["questions, confirmed by a second look: yes"] == Precision(num_confirmed, len(confirmed))
    print(f"of all {num_right} of {len(pairs)} are right, of the confirmed {num_confirmed} of {len(confirmed)}")
    assert num_confirmed / len(confirmed) > num_right / len(pairs)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_sample_that_is_judged_gives_an_interval_that_holds_the_truth(demo_run, pairs, scenes, tmp_path, suffix):
    page = tmp_path / "quality.html"
    assert main(["report", str(demo_run), "--to", str(page), "--sample", "40%"]) == 0
    sheet = tmp_path / f"quality.sample{suffix}"
    rows = read_sheet(sheet)
    drawn = [row for row in rows if row["kind"] != "caption"]
    assert len(pairs) * 0.25 < len(drawn) < len(pairs) * 0.65
    for row in drawn:
        row["verdict"] = "accept" if is_right({**row, "answer": row["shown"]}, scenes) else "Reject"
    write_sheet(sheet, rows)
    judged = measure(str(demo_run), tmp_path / "judged", decisions=sheet).judged
    assert judged["all"].num_judged == len(drawn)
    low, high = judged["all"].interval
    assert low <= sum(is_right(row, scenes) for row in pairs) / len(pairs) <= high


def read_sheet(path: Path) -> list[dict]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return [*csv.DictReader(text.splitlines(keepends=True))]


def write_sheet(path: Path, rows: list[dict]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_every_type_is_in_the_sample_however_small_it_is(demo_run, pairs, tmp_path):
    report(str(demo_run), tmp_path / "quality.html", sample=0.001)
    drawn = {(row["kind"], row["question_type"]) for row in read_sheet(tmp_path / "quality.sample.csv")}
    assert {(row["kind"], row["question_type"]) for row in pairs} <= drawn


def test_status_letters_baselines_and_repeats_are_counted(tmp_path):
    choices = [
        replace(make_pair(), question="Long?", options=("a", "b", "a long one", "d"), answer_letter="C"),
        replace(make_pair(), question="Short?", options=("a", "b", "a long one", "d"), answer_letter="A"),
        replace(make_pair(), question="Equal?", options=("aa", "bb"), answer_letter="A", blind_score=0.7),
        make_pair(Status.LOOPED),
    ]
    answers = [replace(OPEN, question=f"Is it {n}?", answer=answer) for n, answer in enumerate(("Yes.", "yes", "No."))]
    clip = annotate(
        "a", *choices, *answers, replace(OPEN, question="is it 0"), captions=[make_caption("one two three")]
    )
    cut = annotate("b", captions=[make_caption("cut off", Status.LENGTH), make_caption("One two  three")])
    quality = measure(publish_run(tmp_path / "out", clip, cut, make_failed("c")), tmp_path)
    counts = quality.types["multiple_choice", "Count"]
    assert counts.statuses == {"ok": 3, "looped": 1}
    assert counts.letters == {"A": 2, "C": 1}
    assert (counts.longest, counts.guessing, counts.num_blind) == (1.5, 1.0, 1)
    assert quality.types["open_ended", "Binary"].answers.most_common(1) == [("yes", 2)]
    assert (quality.repeated_questions, quality.repeated_captions) == (1, 1)
    assert quality.statuses["length"] == 1
    assert quality.failure_reasons == {"no video stream": 1}
    assert quality.caption_words == {"clip": {3: 2}}
    page = (tmp_path / "quality.html").read_text()
    assert "<td>open_ended: Binary</td><td></td><td></td><td></td><td>50.0%</td><td>25.0%</td><td>50.0%</td>" in page


def test_scored_pairs_are_counted_by_probability_and_rotation(tmp_path):
    scored = replace(
        make_pair(is_consistent=None), answer_logprob=-0.1, num_answer_tokens=1, is_rotation_consistent=True
    )
    doubted = replace(scored, question="Doubted?", answer_logprob=-3.0, is_rotation_consistent=False)
    quality = measure(publish_run(tmp_path / "out", annotate("a", scored, doubted)), tmp_path)
    counts = quality.types["multiple_choice", "Count"]
    assert counts.confirmed == {"yes": 1, "no": 1}
    assert [place for place, number in enumerate(counts.scores) if number] == [0, 9]


def test_captions_of_other_clips_in_nearly_the_same_words_are_found(tmp_path):
    pytest.importorskip("datasketch")
    text = " ".join(f"word{n}" for n in range(60))
    captions = (text, f"{text} more", "Something else is said about this one.", text)
    clips = [annotate(f"c{n}", captions=[make_caption(one)]) for n, one in enumerate(captions)]
    near = measure(publish_run(tmp_path / "out", *clips), tmp_path).near_duplicates
    assert near is not None
    assert (near.num_compared, near.num_found) == (4, 2)
    assert near.examples == [(text, f"{text} more")]


def test_without_datasketch_the_page_says_what_was_not_looked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    assert measure(publish_run(tmp_path / "out", annotate("a")), tmp_path).near_duplicates is None
    assert "pip install &#x27;framescribe[report]&#x27;" in (tmp_path / "quality.html").read_text()


def test_no_text_of_the_data_becomes_markup_and_nothing_is_loaded_from_elsewhere(tmp_path):
    failed = make_failed("c")
    failed = replace(
        failed, ref=replace(failed.ref, source=f"s3://key:secret@bucket/{HTML}/a.mp4?token=1"), reason=HTML
    )
    clip = annotate(
        "a", replace(OPEN, question=HTML, question_type=HTML), captions=[replace(make_caption(), level=HTML)]
    )
    measure(publish_run(tmp_path / "out", clip, failed), tmp_path)
    page = (tmp_path / "quality.html").read_text()
    assert "secret@" not in page
    assert "token=" not in page
    found: list[tuple[str, dict[str, str | None]]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, dict(attributes)))  # type: ignore[method-assign]
    parser.feed(page)
    assert not [one for one in found if "src" in one[1] or "href" in one[1] or one[0] == "script"]
    assert "://" not in page


def test_cells_of_a_sample_are_no_formulas_and_come_back_as_they_were(tmp_path):
    clip = replace(annotate("a", captions=[make_caption("=1+1")]), ref=replace(annotate("x").ref, clip_id="=cmd"))
    output = publish_run(tmp_path / "out", clip)
    report(output, tmp_path / "q.html", sample=1.0)
    (row,) = read_sheet(tmp_path / "q.sample.csv")
    assert (row["clip_id"], row["shown"]) == ("'=cmd", "'=1+1")
    write_sheet(tmp_path / "q.sample.csv", [{**row, "verdict": "fix", "text": "=2"}])
    assert read_decisions(tmp_path / "q.sample.csv").keys() == {("=cmd", "caption 0")}
    export_texts(output, tmp_path / "hf", decisions=tmp_path / "q.sample.csv")
    assert [row["text"] for row in read_rows(tmp_path / "hf", "captions")] == ["=2"]


def test_a_decision_about_another_text_does_not_count(tmp_path):
    output = publish_run(tmp_path / "out", annotate("a", OPEN))
    row = {"clip_id": "a", "row": "qa 0", "digest": "0" * 16, "verdict": "accept", "text": ""}
    write_sheet(tmp_path / "d.csv", [row])
    quality = measure(output, tmp_path, decisions=tmp_path / "d.csv")
    assert (quality.judged, quality.num_outdated) == ({}, 1)


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "clip_id,row,digest,verdict,text\na,qa 0,0,perhaps,\n"])
def test_a_sheet_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "d.csv").write_text(content)
    if content:
        with pytest.raises(DecisionsError, match="column `verdict`"):
            read_decisions(tmp_path / "d.csv")
    else:
        assert read_decisions(tmp_path / "d.csv") == {}


@pytest.mark.parametrize(
    ("right", "judged", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_intervals_are_those_of_wilson(right, judged, low, high):
    assert Precision(right, judged).interval == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("/data/videos/day1/a.mp4", "videos/day1"),
        ("a.mp4", "."),
        ("s3://bucket/a.mp4?version=1", "bucket"),
        ("https://me:key@host.org/x/y/z/000.tar?sig=1", "z/000.tar"),
        ("https://me:key@host.org/000.tar", "host.org/000.tar"),
    ],
)
def test_places_of_sources_hold_no_credentials(source, place):
    assert place_of({"source": source}) == place


def test_nothing_is_written_over_or_into_the_run(tmp_path):
    output = publish_run(tmp_path / "out", annotate("a"))
    (tmp_path / "mine.html").write_text("mine")
    for target in (tmp_path / "mine.html", tmp_path / "out" / "quality.html", tmp_path):
        with pytest.raises(CannotExport):
            report(output, target)
    assert (tmp_path / "mine.html").read_text() == "mine"


@pytest.mark.parametrize("share", ["0", "101%", "x", "2"])
def test_a_share_that_is_none_is_refused(share, capsys):
    with pytest.raises(SystemExit):
        main(["report", "out", "--to", "q.html", "--sample", share])
    assert "a percentage such as 1%" in capsys.readouterr().err
