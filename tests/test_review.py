"""`framescribe review`: what the page holds, and, where Chromium is installed, what it does."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from PIL import Image

from framescribe.publish.decisions import Verdict, read_decisions
from framescribe.publish.export import CannotExport
from framescribe.publish.review import PAGE, review
from run_pipeline import main
from tests.support.output_fixtures import make_caption, make_failed, make_pair
from tests.test_export_rows import VIDEOS, annotate, export_texts, publish_run, read_rows

MARKUP = "</script><script>window.isHit = 1</script><img src=x onerror='window.isHit = 1'>"
NUM_CLIPS = 60
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> str:
    pairs = [
        replace(make_pair(), question=f"What {MARKUP}?"),
        replace(make_pair(is_consistent=False), recheck_answer=MARKUP, question_type=MARKUP),
    ]
    clips = [annotate("c/000", *pairs, captions=[make_caption(f"needle {MARKUP}")])]
    clips += [annotate(f"c/{n:03d}", make_pair(), source=VIDEOS / "gone.mp4") for n in range(1, NUM_CLIPS)]
    return publish_run(tmp_path_factory.mktemp("run") / "out", *clips, make_failed("c/broken"))


@pytest.fixture(scope="module")
def page(tmp_path_factory, output) -> Path:
    folder = tmp_path_factory.mktemp("page") / "page"
    assert main(["review", output, "--to", str(folder), "--thumbnails", "3"]) == 0
    return folder


def read_script(path: Path, call: str) -> Any:
    text = path.read_text(encoding="ascii")
    return json.loads(f"[{text.removeprefix(call + '(').rstrip().removesuffix(');')}]")


def test_every_clip_is_on_a_page_of_data_and_in_the_index(page):
    (index,) = read_script(page / "data" / "index.js", "takeIndex")
    shown = [clip for path in sorted(page.glob("data/page-*.js")) for clip in read_script(path, "takePage")[1]]
    assert len(list(page.glob("data/page-*.js"))) == 2
    assert [clip["clip_id"] for clip in shown] == [*(f"c/{n:03d}" for n in range(NUM_CLIPS)), "c/broken"]
    assert len(index["clips"]) == len(shown)
    assert index["clips"][-1]["statuses"] == ["failed"]


def test_no_markup_of_the_data_is_in_any_script(page):
    assert not [path for path in page.glob("data/*.js") if "<" in path.read_text() or ">" in path.read_text()]


def test_the_page_loads_nothing_from_elsewhere_and_labels_its_inputs():
    found: list[tuple[str, dict[str, str | None]]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, dict(attributes)))  # type: ignore[method-assign]
    parser.feed(PAGE.read_text(encoding="utf-8"))
    assert not [one for one in found if "src" in one[1] or "href" in one[1]]
    assert "://" not in PAGE.read_text(encoding="utf-8")
    tags = [tag for tag, _ in found]
    assert all(tags[place - 1] == "label" for place, tag in enumerate(tags) if tag in ("input", "select"))
    assert ("html", {"lang": "en"}) in found


def test_contact_sheets_hold_as_many_frames_as_times(page):
    first = read_script(page / "data" / "page-00000.js", "takePage")[1][0]
    with Image.open(page / first["sheet"]) as sheet:
        assert sheet.width % len(first["times"]) == 0
    assert len(first["times"]) == 3
    assert [*page.rglob("thumbs/*/*.jpg")] == [page / first["sheet"]]


def test_a_page_is_not_written_over_anything(output, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(CannotExport, match="is there already"):
        review(output, tmp_path)


class Browser:
    """A page in Chromium, driven by its debugging protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self.events: list[dict[str, Any]] = []

    async def call(self, method: str, **parameters: object) -> dict[str, Any]:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while (message := await self._socket.receive_json()).get("id") != self._number:
            self.events.append(message)
        return message["result"]

    async def run(self, code: str) -> Any:
        answer = await self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def wait_for(self, code: str) -> None:
        for _ in range(200):
            if await self.run(code):
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"never true: {code}")

    async def press(self, *keys: str) -> None:
        for key in keys:
            text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
            await self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
            await self.call("Input.dispatchKeyEvent", type="keyUp", key=key)


@pytest.fixture
def chromium_port(tmp_path) -> Iterator[int]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    flags = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}")
    process = subprocess.Popen(
        [CHROMIUM, *flags, "--remote-debugging-port=0", "about:blank"], stderr=subprocess.DEVNULL
    )
    try:
        told = tmp_path / "profile" / "DevToolsActivePort"
        deadline_s = time.monotonic() + 60
        while not (told.exists() and told.read_text().count("\n")):
            assert time.monotonic() < deadline_s, "Chromium does not start"
            time.sleep(0.1)
        yield int(told.read_text().split("\n")[0])
    finally:
        process.terminate()
        process.wait(timeout=20)


async def use_page(port: int, page: Path) -> dict[str, Any]:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
            address = next(one for one in await response.json() if one["type"] == "page")["webSocketDebuggerUrl"]
        async with session.ws_connect(address, max_msg_size=0) as socket:
            browser = Browser(socket)
            for domain in ("Runtime", "Log", "Network", "Page"):
                await browser.call(f"{domain}.enable")
            await browser.call("Page.navigate", url=(page / "index.html").as_uri())
            await browser.wait_for("document.querySelectorAll('article').length === 20")
            seen = {"place": await browser.run("byId('place').textContent")}
            await browser.press("j", "r", "f")
            await browser.run("document.querySelector('textarea').value = 'mended'")
            await browser.press("Enter")
            seen["decisions"] = await browser.run("listDecisions()")
            await browser.run("byId('search').value = 'NEEDLE'; byId('search').dispatchEvent(new Event('input'))")
            await browser.wait_for("document.querySelectorAll('article').length === 1")
            seen["found"] = await browser.run("document.querySelector('h2').textContent")
            await browser.run("byId('search').value = ''; byId('order').value = 'disagreement'; filter()")
            await browser.wait_for("document.querySelectorAll('article').length === 20")
            seen["first"] = await browser.run(
                "[...document.querySelectorAll('h2')].slice(0, 2).map(h => h.textContent)"
            )
            await browser.run("byId('status').value = 'failed'; filter()")
            await browser.wait_for("document.querySelectorAll('article').length === 1")
            seen["failed"] = await browser.run("document.querySelector('article').textContent")
            seen["is_inert"] = await browser.run("window.isHit === undefined && !document.querySelector('img[src=x]')")
            return {**seen, "events": browser.events}


def test_the_page_searches_sorts_filters_and_takes_decisions_by_keys(chromium_port, page, output, tmp_path):
    seen = asyncio.run(use_page(chromium_port, page))
    assert seen["place"] == f"page 1 of 4, {NUM_CLIPS + 1} of {NUM_CLIPS + 1} clips"
    assert seen["found"] == "c/000"
    assert seen["first"] == ["c/broken", "c/000"]
    assert "no video stream" in seen["failed"]
    asked = [
        one["params"]["request"]["url"] for one in seen["events"] if one.get("method") == "Network.requestWillBeSent"
    ]
    assert {url.partition(":")[0] for url in asked} == {"file"}
    complaints = [one for one in seen["events"] if one.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]
    assert complaints == []
    assert seen["is_inert"] is True
    (tmp_path / "decisions.json").write_text(json.dumps(seen["decisions"]))
    verdicts = {key: one.verdict for key, one in read_decisions(tmp_path / "decisions.json").items()}
    assert verdicts == {("c/000", "qa 0"): Verdict.REJECT, ("c/000", "qa 1"): Verdict.FIX}
    report = export_texts(output, tmp_path / "hf", tmp_path / "decisions.json")
    assert report.counts.left_out["rejected by a person"] == 1
    assert "mended" in [row["answer"] for row in read_rows(tmp_path / "hf", "qa")]
