"""What is exported of hostile, odd and reviewed rows, and how videos of other kinds are cut."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from framescribe.decoding.config import SamplingConfig, TimeWindow, UndecodableClip
from framescribe.decoding.decode import read_video_timeline
from framescribe.decoding.sample import sample_frames
from framescribe.publish.decisions import DecisionsError, read_decisions, row_digest
from framescribe.publish.export import CannotExport, ExportReport, export
from framescribe.publish.export_config import ExportConfig, Selection
from framescribe.publish.export_questions import neutralise
from framescribe.publish.export_rows import assign_splits, file_key
from framescribe.publish.export_videos import Cut, read_frames, write_clip_video
from framescribe.publish.publish import publish
from framescribe.recipes.annotation import ScoreStatus, Status
from framescribe.storage.journal import record_start
from framescribe.storage.output import open_output
from framescribe.storage.plan import add_to_plan
from run_pipeline import main
from schemas.records import ClipAnnotation
from tests.support.output_fixtures import RUN_RECORD, commit, make_annotation, make_caption, make_pair, make_units

MEDIA = Path(__file__).parent / "media" / "clips"
VIDEOS = Path(__file__).parent / "golden" / "videos"
OPEN = replace(make_pair(), kind="open_ended", options=(), answer_letter=None)


def publish_run(output: Path, *annotations: ClipAnnotation) -> str:
    store = open_output(str(output))
    record_start(store, RUN_RECORD, None)
    add_to_plan(store, make_units("unit-0"))
    commit(str(output), "unit-0", list(annotations))
    publish(str(output))
    return str(output)


def annotate(
    clip_id: str, *pairs, captions=(make_caption(),), source=VIDEOS / "clip_a.mp4", **window
) -> ClipAnnotation:
    annotation = make_annotation(clip_id)
    bounds = {"start_s": None, "end_s": None, **window}
    ref = replace(annotation.ref, source=str(source), member=None, **bounds)
    return replace(annotation, ref=ref, captions=tuple(captions), qa_pairs=tuple(pairs))


def export_texts(output: str, folder: Path, decisions: Path | None = None, **selection) -> ExportReport:
    config = ExportConfig("hf", Selection(**selection), decisions=decisions, has_videos=False)
    return export(output, folder, config)


def read_rows(folder: Path, table: str) -> list[dict]:
    return [row for path in sorted(folder.glob(f"{table}/*.parquet")) for row in pq.read_table(path).to_pylist()]


def read_turns(folder: Path) -> list[str]:
    lists = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json")) if path.name != "export.json"]
    return [turn["value"] for records in lists for record in records for turn in record["conversations"]]


@pytest.mark.parametrize(
    "mark", ["<image>", "<video>", "<|im_end|>", "<|vision_start|>", "</s>", "<IMAGE>", "<im_start>"]
)
def test_marks_in_texts_become_neither_pictures_nor_turns(tmp_path, mark):
    texts = [f"{mark} a ball{mark}", f"What {mark}?", f"one {mark}"]
    pairs = [
        replace(OPEN, question=texts[1], answer=texts[2]),
        replace(
            make_pair(), question=texts[1], options=("a", f"b {mark}", "c", "d"), answer=f"b {mark}", answer_letter="B"
        ),
    ]
    output = publish_run(tmp_path / "out", annotate("c", *pairs, captions=[make_caption(texts[0])]))
    export(output, tmp_path / "llava", ExportConfig("llava"))
    turns = read_turns(tmp_path / "llava")
    assert not [turn for turn in turns if mark in turn.removeprefix("<image>\n")]
    assert sum("ball" in turn for turn in turns) == 1


def test_ordinary_marks_of_less_than_stay():
    assert neutralise("3 < 4, a <b> and <3") == "3 < 4, a <b> and <3"


def test_answers_that_say_the_video_does_not_specify_are_left_out_whatever_their_status(tmp_path):
    vague = replace(OPEN, answer="The video does not specify the colour.")
    report = export_texts(publish_run(tmp_path / "out", annotate("c", vague, OPEN)), tmp_path / "hf")
    assert report.counts.left_out == {"says that the video does not specify it": 1}
    assert [row["answer"] for row in read_rows(tmp_path / "hf", "qa")] == [OPEN.answer]


def test_captions_of_parts_empty_texts_and_other_statuses_are_left_out(tmp_path):
    captions = [
        replace(make_caption(), level="segment"),
        make_caption(" "),
        make_caption("cut off", Status.LENGTH),
        make_caption("whole"),
    ]
    report = export_texts(publish_run(tmp_path / "out", annotate("c", captions=captions)), tmp_path / "hf")
    assert report.counts.left_out == {"caption of a part of the clip": 1, "empty text": 1, "status length": 1}
    assert [row["text"] for row in read_rows(tmp_path / "hf", "captions")] == ["whole"]


def test_scores_filter_questions_and_a_missing_score_is_no_high_one(tmp_path):
    pairs = [
        replace(OPEN, question="good"),
        replace(OPEN, question="blind", blind_score=0.7),
        replace(OPEN, question="low", recheck_score=0.4),
        replace(OPEN, question="unasked", recheck_score=None, is_consistent=None, blind_score=None),
        replace(OPEN, question="other", is_consistent=False),
    ]
    output = publish_run(tmp_path / "out", annotate("c", *pairs))
    report = export_texts(output, tmp_path / "hf", only_consistent=True, min_score=0.5, max_blind_score=0.5)
    assert [row["question"] for row in read_rows(tmp_path / "hf", "qa")] == ["good"]
    assert report.counts.left_out == {
        "answered without the video": 1,
        "score too low": 1,
        "no score": 1,
        "not consistent": 1,
    }


SCORED = replace(
    OPEN,
    recheck_answer=None,
    recheck_score=None,
    blind_answer=None,
    blind_score=None,
    is_consistent=None,
    answer_logprob=-0.4,
    blind_logprob=-8.0,
    num_answer_tokens=2,
    video_gain_per_token=3.8,
    score_status=ScoreStatus.OK,
)  # a probability of 0.82 for each token
FAILED_SCORE = replace(
    SCORED,
    answer_logprob=None,
    blind_logprob=None,
    num_answer_tokens=None,
    video_gain_per_token=None,
    score_status=ScoreStatus.TOO_LONG,
)
CHOICE = replace(
    SCORED,
    kind="multiple_choice",
    options=("one", "two"),
    answer_letter="A",
    num_answer_tokens=1,
    answer_logprob=-0.4,
    option_probabilities=(0.67, 0.33),
    is_rotation_consistent=True,
)


@pytest.mark.parametrize(
    ("selection", "kept", "left_out"),
    [
        ({}, ["likely", "choice", "turned", "giveaway", "failed", "blind"], {"score too low": 2}),
        (
            {"min_score": 0.0},
            ["likely", "unlikely", "choice", "unlikely choice", "turned", "giveaway", "blind"],
            {"no score": 1},
        ),
        ({"min_score": 0.7}, ["likely", "blind"], {"score too low": 5, "no score": 1}),
        (
            {"max_blind_score": 0.5},
            ["likely", "choice", "turned", "giveaway", "failed"],
            {"score too low": 2, "answered without the video": 1},
        ),
        (
            {"only_consistent": True},
            ["likely", "choice", "giveaway", "blind"],
            {"score too low": 2, "no score": 1, "not consistent": 1},
        ),
        (
            {"drop_giveaways": True},
            ["likely", "choice", "turned", "failed", "blind"],
            {"score too low": 2, "giveaway": 1},
        ),
    ],
    ids=["default", "all", "bar", "blind", "consistent", "giveaways"],
)
def test_scored_questions_are_filtered_by_how_likely_their_answers_are(tmp_path, selection, kept, left_out):
    pairs = [
        replace(SCORED, question="likely"),
        replace(SCORED, question="unlikely", answer_logprob=-2.0),
        replace(CHOICE, question="choice"),
        replace(CHOICE, question="unlikely choice", answer_logprob=-1.2),
        replace(CHOICE, question="turned", is_rotation_consistent=False),
        replace(CHOICE, question="giveaway", giveaway="longest"),
        replace(FAILED_SCORE, question="failed"),
        replace(SCORED, question="blind", blind_logprob=-1.0),
    ]
    output = publish_run(tmp_path / "out", annotate("c", *pairs))
    report = export_texts(output, tmp_path / "hf", **selection)
    assert [row["question"] for row in read_rows(tmp_path / "hf", "qa")] == kept
    assert report.counts.left_out == left_out


def test_a_question_that_was_not_scored_needs_no_score_by_default(tmp_path):
    unknown = replace(SCORED, **dict.fromkeys(("answer_logprob", "num_answer_tokens", "score_status")))
    pairs = [unknown, replace(unknown, recheck_score=0.1)]
    export_texts(publish_run(tmp_path / "out", annotate("c", *pairs)), tmp_path / "hf")
    assert len(read_rows(tmp_path / "hf", "qa")) == 2


def test_an_export_for_datasets_has_the_scores(tmp_path):
    export_texts(publish_run(tmp_path / "out", annotate("c", SCORED)), tmp_path / "hf")
    (row,) = read_rows(tmp_path / "hf", "qa")
    assert (row["answer_logprob"], row["blind_logprob"], row["num_answer_tokens"]) == (-0.4, -8.0, 2)
    assert (row["video_gain_per_token"], row["is_rotation_consistent"]) == (3.8, None)


def test_multiple_choice_without_a_right_option_is_left_out(tmp_path):
    pairs = [replace(make_pair(), answer_letter=letter) for letter in (None, "", "E", "AB")]
    report = export_texts(publish_run(tmp_path / "out", annotate("c", *pairs)), tmp_path / "hf")
    assert report.counts.left_out == {"options that cannot be used": 4}


def test_options_that_speak_of_places_stay_where_they_are(tmp_path):
    options = ("a dog", "a cat", "both A and B", "none of the above")
    pairs = [replace(make_pair(), options=options, answer="both A and B", answer_letter="C")] * 5
    export_texts(publish_run(tmp_path / "out", annotate("c", *pairs)), tmp_path / "hf")
    rows = read_rows(tmp_path / "hf", "qa")
    assert {(tuple(row["options"]), row["answer_letter"]) for row in rows} == {(options, "C")}


def write_decisions(path: Path, *decisions: dict) -> Path:
    path.write_text(json.dumps({"kind": "framescribe-decisions", "decisions": decisions}))
    return path


def decide(row: str, verdict: str, question: str, shown: str, **fix: str) -> dict:
    return {"clip_id": "c", "row": row, "verdict": verdict, "digest": row_digest(question, shown), **fix}


def test_decisions_reject_fix_and_keep_rows_in_spite_of_their_scores(tmp_path):
    pairs = [
        replace(OPEN, question="kept", is_consistent=False),
        replace(OPEN, question="bad"),
        replace(OPEN, question="fixed", answer="wrong"),
        replace(make_pair(), question="choice", answer="one", answer_letter="A"),
    ]
    decisions = write_decisions(
        tmp_path / "decisions.json",
        decide("qa 0", "accept", "kept", "one"),
        decide("qa 1", "reject", "bad", "one"),
        decide("qa 2", "fix", "fixed", "wrong", text="right"),
        decide("qa 3", "fix", "choice", "one", text="seven"),
        decide("caption 0", "fix", "", "A red ball rolls.", text="A blue ball rolls."),
    )
    output = publish_run(tmp_path / "out", annotate("c", *pairs))
    report = export_texts(output, tmp_path / "hf", decisions, only_consistent=True)
    rows = {row["question"]: row for row in read_rows(tmp_path / "hf", "qa")}
    assert {name: row["answer"] for name, row in rows.items()} == {"kept": "one", "fixed": "right", "choice": "seven"}
    assert rows["choice"]["options"]["ABCD".index(rows["choice"]["answer_letter"])] == "seven"
    assert [row["text"] for row in read_rows(tmp_path / "hf", "captions")] == ["A blue ball rolls."]
    assert report.counts.left_out == {"rejected by a person": 1}


def test_a_decision_about_another_text_does_not_count(tmp_path):
    decisions = write_decisions(tmp_path / "decisions.json", decide("qa 0", "reject", "q", "what it said before"))
    output = publish_run(tmp_path / "out", annotate("c", replace(OPEN, question="q")))
    export_texts(output, tmp_path / "hf", decisions)
    assert len(read_rows(tmp_path / "hf", "qa")) == 1


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"kind": "framescribe-decisions", "decisions": [{"row": 1}]}', "null"]
)
def test_a_file_that_is_no_file_of_decisions_is_refused(tmp_path, text):
    (tmp_path / "decisions.json").write_text(text)
    with pytest.raises(DecisionsError, match="no file of decisions"):
        read_decisions(tmp_path / "decisions.json")


def test_a_video_that_is_gone_takes_its_rows_out_and_the_others_stay(tmp_path):
    gone = annotate("gone", OPEN, source=tmp_path / "gone.mp4")
    output = publish_run(tmp_path / "out", annotate("c", OPEN), gone)
    report = export(output, tmp_path / "llava", ExportConfig("llava"))
    assert report.counts.left_out == {"video: video not found": 2}
    assert report.counts.num_exported == 2


def test_a_source_that_is_no_video_is_not_copied(tmp_path):
    (tmp_path / "secret.mp4").write_text("no video")
    output = publish_run(tmp_path / "out", annotate("c", OPEN, source=tmp_path / "secret.mp4"))
    with pytest.raises(CannotExport, match="no row is left"):
        export(output, tmp_path / "llava", ExportConfig("llava"))
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("out", "secret.mp4")] == []


def test_an_output_without_tables_is_an_error(tmp_path):
    with pytest.raises(CannotExport, match="has no tables"):
        export(str(tmp_path / "none"), tmp_path / "hf", ExportConfig("hf"))


def test_the_windows_that_a_manifest_takes_from_one_file_are_in_one_split():
    rows = [{"clip_id": f"mine-{n}", "source": "/v/a.mp4", "member": f"row {n}"} for n in range(40)]
    splits = assign_splits(rows, Selection(validation_fraction=0.3, test_fraction=0.3))
    assert len(set(splits.values())) == 1


def test_about_the_share_that_is_asked_for_goes_to_each_split():
    rows = [{"clip_id": f"v/{n}", "source": f"/v/{n}.mp4", "member": None} for n in range(2000)]
    splits = list(assign_splits(rows, Selection(validation_fraction=0.2, test_fraction=0.1)).values())
    assert splits.count("validation") == pytest.approx(400, abs=60)
    assert splits.count("test") == pytest.approx(200, abs=45)


def test_names_of_files_differ_where_clip_ids_do_and_hold_nothing_odd():
    clip_ids = ["a/b.c", "a/b-c", "A/b.c", "../../etc/passwd", "shareVideoGPTV/x", "größe", "x" * 500]
    keys = [file_key(clip_id) for clip_id in clip_ids]
    assert len(set(keys)) == len(keys)
    assert all(set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_") and len(key) < 100 for key in keys)


def sample(video: Path, window: TimeWindow | None = None) -> np.ndarray:
    return sample_frames(video, SamplingConfig(max_frames=8, min_decoded_fraction=0.5), window).stack()


SMALL = (
    "decord__video_90.mov",
    "media__bear-vp9-odd-dimensions.webm",
    "media__sample.flv",
    "mmaction2__test.avi",
    "torchcodec__h264_10bits.mp4",
)


def assert_window_shows_what_the_pipeline_saw(video: Path, tmp_path: Path) -> None:
    times_s = read_video_timeline(str(video), SamplingConfig().max_pixels).times_s
    low, length = len(times_s) // 3, max(1, len(times_s) // 4)
    window = TimeWindow(float(times_s[low]), float(times_s[low + length]))
    path, _ = write_clip_video(video, window, tmp_path / "clip")
    expected, found = sample(video, window).astype(float), sample(path).astype(float)
    assert np.abs(expected - found).mean() < 6


@pytest.mark.parametrize("name", SMALL)
def test_a_window_of_odd_clips_shows_what_the_pipeline_saw(name, tmp_path):
    assert_window_shows_what_the_pipeline_saw(MEDIA / name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in MEDIA.iterdir() if path.suffix != ".jsonl"))
def test_a_window_of_every_real_clip_shows_what_the_pipeline_saw(name, tmp_path):
    assert_window_shows_what_the_pipeline_saw(MEDIA / name, tmp_path)


def test_a_window_that_begins_at_a_key_frame_is_cut_without_loss(tmp_path):
    video = MEDIA / "LLaVA-NeXT__xU25MMA2N4aVtYay.mp4"
    timeline = read_video_timeline(str(video), SamplingConfig().max_pixels)
    keys = timeline.times_s[np.isin(timeline.pts, timeline.key_pts)]
    window = TimeWindow(float(keys[1]), float(keys[2]))
    path, cut = write_clip_video(video, window, tmp_path / "clip")
    assert cut is Cut.COPIED
    assert np.array_equal(sample(video, window), sample(path))


def test_frames_are_upright_and_keep_their_shape(tmp_path):
    video = MEDIA / "decord__video_90.mov"
    jpeg = read_frames(video, [0, 2, 2, 99], 448)
    (tmp_path / "frame.jpg").write_bytes(jpeg[0])
    with Image.open(tmp_path / "frame.jpg") as picture:
        shown = sample_frames(video, SamplingConfig(max_frames=1))
        assert (picture.width > picture.height) == (shown.width_px > shown.height_px)
    assert len(jpeg) == 2


def test_a_window_beyond_the_end_is_an_error(tmp_path):
    with pytest.raises(UndecodableClip, match="window outside"):
        write_clip_video(VIDEOS / "clip_a.mp4", TimeWindow(1e4, 2e4), tmp_path / "clip")


@pytest.mark.parametrize("command", ["export", "review"])
def test_the_page_on_exports_names_every_flag(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    flags = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    page = (Path(__file__).parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
    assert flags - set(re.findall(r"--[a-z-]+", page)) == set()
