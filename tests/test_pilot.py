"""`framescribe pilot`: what it tries, what its page shows in Chromium, and the full run that takes its answers."""

from __future__ import annotations

import asyncio
import html
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import aiohttp
import pyarrow.parquet as pq
import pytest

from pipeline.pilot_flags import parse_frame_setting, write_full_command
from run_pipeline import main
from tests.support.run_fixtures import ROOT
from tests.test_review import Browser, chromium_port  # noqa: F401  # a fixture

DEMO = ROOT / "demo"
MARKUP = "<img src=x onerror='window.isHit = 1'>"
SMALL = ("--model", str(DEMO / "checkpoint"), "--device", "cpu", "--decoder-processes", "1", "--canary-every", "0")
SETTINGS = ("--recipe", "detailed", "--num-frames", "8", "1/s")


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "set"
    folder.mkdir()
    for name, source in (("a", "01_left"), (MARKUP, "02_right_up"), ("c", "03_grows_left"), ("d", "06_shrinks_up")):
        shutil.copy(next((DEMO / "clips").glob(f"{source[:2]}_*.mp4")), folder / f"{name}.mp4")
    (folder / "broken.mp4").write_bytes(b"no video" * 100)
    return folder


@pytest.fixture(scope="module")
def output(tmp_path_factory, videos) -> Path:
    """A pilot of four clips of five; with this seed the broken one is among them."""
    folder = tmp_path_factory.mktemp("out") / "pilot"
    assert run_pilot(videos, folder) == 0
    return folder


def run_pilot(videos: Path, output: Path, *flags: str) -> int:
    where = ("--input", str(videos), "--output", str(output))
    return main(["pilot", *where, "--clips", "4", "--seed", "3", *SMALL, *SETTINGS, *flags])


def read_figures(output: Path) -> dict[str, Any]:
    return json.loads((output / "pilot.json").read_text())


def read_command(output: Path, number: int) -> list[str]:
    page = (output / "pilot.html").read_text()
    return shlex.split(html.unescape(re.findall(r'<pre class="command">(.*?)</pre>', page, re.S)[number]))


def test_every_setting_has_the_same_clips_and_its_own_frames(output):
    tables = {name: pq.read_table(output / name / "clips").to_pylist() for name in ("detailed-8", "detailed-1-per-s")}
    ids = [[row["clip_id"] for row in rows] for rows in tables.values()]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 3
    assert all(len(row["frame_indices"]) == 8 for row in tables["detailed-8"])
    assert all(
        round(row["duration_s"]) in (len(row["frame_indices"]), len(row["frame_indices"]) - 1)
        for row in tables["detailed-1-per-s"]
    )
    figures = read_figures(output)
    assert (figures["clips"], figures["of"]) == (4, 5)
    assert [one["frames"] for one in figures["settings"]] == ["8 frames", "1 frame per second, at most 64"]
    assert all(one["figures"]["Clips annotated"] == "3 of 4" for one in figures["settings"])
    assert all(one["full_run_here"] for one in figures["settings"])


def test_the_command_on_the_page_annotates_everything_and_takes_the_pilots_answers(output, capsys):
    command = read_command(output, 0)
    assert command[0] == "framescribe"
    assert main([*command[1:], "--canary-every", "0"]) == 0
    said = capsys.readouterr().err
    assert "of 5 clips, 3 are in the earlier run" in said
    assert "taken from an earlier run, for 3 clips" in said
    full, pilot = ({row["clip_id"]: row for row in pq.read_table(one / "qa").to_pylist()} for one in _outputs(output))
    assert len(full) == 4
    assert {name: full[name]["completion"] for name in pilot} == {name: pilot[name]["completion"] for name in pilot}


def _outputs(output: Path) -> tuple[Path, Path]:
    return output.parent / "pilot_full", output / "detailed-8"


def test_a_pilot_that_was_stopped_goes_on_with_what_is_missing(output, videos, tmp_path, capsys):
    again = Path(shutil.copytree(output, tmp_path / "pilot"))
    (again / "pilot.html").unlink()
    next((again / "detailed-1-per-s" / "_framescribe" / "parts").iterdir()).unlink()
    assert run_pilot(videos, again) == 0
    said = capsys.readouterr().err
    assert "setting 2 of 2: detailed, 1 frame per second, at most 64" in said
    before, after = read_figures(output), read_figures(again)
    assert [one["figures"] for one in after["settings"]] == [one["figures"] for one in before["settings"]]
    assert (again / "pilot.html").read_text().count("writing the answers") == 2


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--num-frames", "many"), "'many' is no setting of frames: wanted a number such as 64, or a rate such as 1/s"),
        (("--num-frames", "0/s"), "'0/s' is no setting of frames"),
        (("--fps", "1"), "pilot takes no --fps"),
        (("--recipe", "nothing"), "nothing"),
        (("--num-frames", "8", "8"), "two settings of this pilot would be"),
        (("--clips", "0"), "wanted a whole number of at least 1"),
    ],
)
def test_a_wrong_setting_is_one_line_and_nothing_is_written(tmp_path, videos, capsys, flags, said):
    try:
        status = run_pilot(videos, tmp_path / "out", *flags)
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("usage:")]
    assert status in (1, 2)
    assert len([line for line in lines if "framescribe" in line]) == 1
    assert said in lines[-1]
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_settings_is_refused_before_the_first_setting_starts(output, videos, tmp_path, capsys):
    again = Path(shutil.copytree(output, tmp_path / "pilot"))
    shutil.rmtree(again / "detailed-8")
    assert run_pilot(videos, again, "--split-seconds", "2") == 1
    assert "detailed-1-per-s holds a run with other settings" in capsys.readouterr().err
    assert not (again / "detailed-8").exists()


def test_the_command_keeps_what_was_typed_and_repeats_no_credentials():
    typed = ["pilot", "--input", "s3://a/*.tar", "https://me:secret@b.org/x.tar?sig=1", "--output=p", "--clips=9"]
    typed += ["--recipe", "captions", "my.yaml", "--storage-options", '{"key": "secret"}', "--device", "cuda"]
    command = write_full_command(
        [*typed, "--retry-failed", "--flink_master=h:1"], "my.yaml", parse_frame_setting("2/s"), "p"
    )
    assert "secret" not in command
    assert "sig=1" not in command
    assert shlex.split(command) == [
        *("framescribe", "annotate", "--input", "s3://a/*.tar", "https://b.org/x.tar", "--storage-options", "@FILE"),
        *("--device", "cuda", "--flink_master=h:1", "--recipe", "my.yaml", "--num-frames", "64", "--fps", "2"),
        *("--output", "p_full", "--reuse-from", "p/my-2-per-s"),
    ]
    of_file = write_full_command(["pilot", "--storage-options", "@o.json"], "full", parse_frame_setting("16"), "p")
    assert "--storage-options @o.json" in of_file


async def open_page(port: int, page: Path) -> dict[str, Any]:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
            address = next(one for one in await response.json() if one["type"] == "page")["webSocketDebuggerUrl"]
        async with session.ws_connect(address, max_msg_size=0) as socket:
            browser = Browser(socket)
            for domain in ("Runtime", "Log", "Network", "Page"):
                await browser.call(f"{domain}.enable")
            await browser.call("Page.navigate", url=page.as_uri())
            await browser.wait_for("document.querySelectorAll('article.clip').length === 3")
            await browser.run("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
            await browser.wait_for("[...document.images].every(image => image.complete && image.naturalWidth > 100)")
            seen = {
                "images": await browser.run("document.images.length"),
                "names": await browser.run("[...document.querySelectorAll('.clip h3')].map(h => h.firstChild.data)"),
                "opened": await browser.run("document.querySelectorAll('details[open] ul > li').length"),
                "colours": await browser.run("getComputedStyle(document.querySelector('.bar span')).backgroundColor"),
                "wide": await browser.run("document.documentElement.scrollWidth > innerWidth"),
                "is_inert": await browser.run("window.isHit === undefined && !document.querySelector('img[src=x]')"),
            }
            return {**seen, "events": browser.events}


def test_the_page_shows_the_clips_in_a_browser_and_asks_nobody_for_anything(chromium_port, output):  # noqa: F811
    seen = asyncio.run(open_page(chromium_port, output / "pilot.html"))
    assert seen["images"] == 3
    assert f"set/{MARKUP} " in seen["names"]
    assert seen["opened"] > 10
    assert seen["colours"] == "rgb(26, 127, 55)"
    assert seen["wide"] is False
    assert seen["is_inert"] is True
    asked = [one["params"]["request"]["url"] for one in seen["events"] if one["method"] == "Network.requestWillBeSent"]
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
    assert [one for one in seen["events"] if one["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")] == []
