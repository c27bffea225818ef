"""Damaged and hostile files end as frames or as a failed clip with a reason, and never as another file's content."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition

from decoding.config import SamplingConfig
from decoding.errors import UndecodableClip
from decoding.pool import DecoderPool
from decoding.sample import sample_video
from decoding.sampled import SampledFrames
from decoding.timeline import Span
from schemas.records import Clip, ClipRef, FailedClip, SampledClip
from tests.decoding_fixtures import SHARED_MEDIA, make_video, needs_shared_media, numbered_frame, read_number

CONFIG = SamplingConfig(max_frames=8, image_size=64, deadline_s=100.0)
# What a reason may look like: a few words for a person, nothing of FFmpeg's own language.
REASONS = (
    "no video stream", "encrypted", "truncated after ", "truncated before its ", "codec not supported", "dimensions ",
    "empty file", "not a readable video", "damaged", "no frame can be decoded", "no frames", "cover picture only",
    "container not allowed",
)  # fmt: skip


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    pool = DecoderPool(1, CONFIG)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return make_large_video(tmp_path_factory.mktemp("videos") / "clip.mp4", container_options={"movflags": "faststart"})


def make_large_video(path: Path, **settings: Any) -> Path:
    """Six seconds of which nearly every byte is picture."""
    return make_video(path, 60, is_noisy=True, options={"g": "10"}, **settings)


def result_of(pool: DecoderPool, video: bytes | Path) -> SampledClip | FailedClip:
    return pool.submit(Clip(ClipRef("clip", "unit", "clip"), video)).result()


def sample(path: Path, **settings: object) -> SampledFrames:
    config = SamplingConfig(**({"max_frames": 8, "image_size": 64} | settings))
    return sample_video(str(path), Span(), config)[0]


def cut(video: Path, share: float, target: Path) -> Path:
    content = video.read_bytes()
    target.write_bytes(content[: int(len(content) * share)])
    return target


MANIFEST = SHARED_MEDIA / "broken" / "manifest.jsonl"
BROKEN = [json.loads(line) for line in MANIFEST.read_text().splitlines()] if MANIFEST.exists() else []


@needs_shared_media
@pytest.mark.parametrize("entry", [pytest.param(e, id=e["file"]) for e in BROKEN])
def test_every_broken_file_ends_in_time_as_frames_or_as_a_reason_for_people(pool, entry):
    result = result_of(pool, SHARED_MEDIA / "broken" / entry["file"])
    outcome = result.reason if isinstance(result, FailedClip) else f"{result.sampling.decoded_share:.2f} decoded"
    assert outcome.startswith(REASONS) or (isinstance(result, SampledClip) and result.sampling.decoded_share >= 0.9)


@needs_shared_media
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("moviepy__result.webm", "empty file"),
        ("nestegg__detodos.webm", "no video stream"),
        ("mp4parse-rust__av1-clearkey-cbcs-video.mp4", "encrypted"),
        ("nestegg__seek_encrypted.webm", "encrypted"),
        ("go-mp4__sample_init.encv.mp4", "encrypted"),
        ("web-platform-tests__invalid-codec.webm", "codec not supported"),
        ("libwebm__invalid_vp9_bitstream-bug_1416.webm", "dimensions 12336x12336 over the limit"),
        ("go-mp4__sample_qt.mp4", "truncated before its first frame"),
        ("firefox-esr__1765842.webm", "damaged"),
    ],
)
def test_the_reason_names_what_is_wrong(pool, name, reason):
    result = result_of(pool, SHARED_MEDIA / "broken" / name)
    assert isinstance(result, FailedClip)
    assert result.reason == reason


@pytest.mark.parametrize(
    ("suffix", "settings"),
    [(".mp4", {"container_options": {"movflags": "faststart"}}), (".mkv", {}), (".avi", {"codec": "mpeg4"})],
)
def test_a_file_cut_in_the_middle_fails_and_says_when_it_ends(tmp_path, suffix, settings):
    whole = make_large_video(tmp_path / f"whole{suffix}", **settings)
    with pytest.raises(UndecodableClip, match=r"truncated after [123]\.\d s"):
        sample(cut(whole, 0.5, tmp_path / f"half{suffix}"))


@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html>\n<html>404 Not Found</html>\n" * 50, b"some text\n", bytes(5000)]
)
def test_a_file_that_never_was_a_video_is_not_taken_for_a_truncated_one(tmp_path, content):
    (tmp_path / "page.mp4").write_bytes(content)
    with pytest.raises(UndecodableClip) as raised:
        sample(tmp_path / "page.mp4")
    assert raised.value.reason == "not a readable video"
    assert raised.value.message.endswith(f"moov atom not found; the file starts with {content[:24]!r}")


def test_a_file_cut_near_its_end_is_sampled_and_its_share_recorded(video, tmp_path):
    sampled = sample(cut(video, 0.97, tmp_path / "most.mp4"), min_decoded_share=0.8)
    assert 0.8 <= sampled.decoded_share < 1.0
    numbers = [read_number(sampled.pictures[i]) for i in sampled.frame_indices]
    assert numbers == list(sampled.frame_indices)
    assert sampled.timestamps_s == pytest.approx([number / 10 for number in numbers])


def test_the_wanted_share_decides_whether_a_cut_file_is_annotated(video, tmp_path):
    half = cut(video, 0.6, tmp_path / "half.mp4")
    assert sample(half, min_decoded_share=0.2).decoded_share < 0.9
    with pytest.raises(UndecodableClip, match="truncated after"):
        sample(half, min_decoded_share=0.9)


def test_a_file_without_its_index_says_so(tmp_path):
    whole = make_large_video(tmp_path / "whole.mp4")  # the index is at the end
    with pytest.raises(UndecodableClip, match="truncated before its index"):
        sample(cut(whole, 0.7, tmp_path / "cut.mp4"))
    with pytest.raises(UndecodableClip, match="truncated before its index"):
        sample(cut(whole, 0.7, tmp_path / "another.mp4"))


def test_a_hole_in_the_middle_never_passes_for_a_sound_clip(video, tmp_path):
    content = bytearray(video.read_bytes())
    content[len(content) // 3 : 2 * len(content) // 3] = bytes(len(content) // 3)
    (tmp_path / "hole.mp4").write_bytes(content)
    with pytest.raises(UndecodableClip, match="damaged"):
        sample(tmp_path / "hole.mp4")


def test_frames_predicted_from_a_lost_one_are_never_sampled(video, tmp_path):
    with av.open(str(video)) as container:
        lost = next(p for p in container.demux(video=0) if p.pts and p.pts * p.time_base > 2.1 and not p.is_keyframe)
    content = bytearray(video.read_bytes())
    content[lost.pos : lost.pos + 8] = b"\xff" * 8
    (tmp_path / "scratched.mp4").write_bytes(content)
    settings = {"max_frames": 60, "min_decoded_share": 0.5, "decoder": "pyav"}
    sound, scratched = sample(video, **settings), sample(tmp_path / "scratched.mp4", **settings)
    assert 0.8 <= scratched.decoded_share < 1.0
    assert (scratched.frame_indices[0], scratched.frame_indices[-1]) == (0, 59)
    assert [i for i in scratched.frame_indices if not np.array_equal(scratched.pictures[i], sound.pictures[i])] == []


def test_giant_pictures_are_refused_by_their_header(video):
    with pytest.raises(UndecodableClip, match="dimensions 128x96 over the limit"):
        sample(video, max_pixels=100 * 100)


def test_a_cover_picture_is_no_video(tmp_path):
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=8000)
        cover = container.add_stream("mjpeg")
        cover.width, cover.height, cover.pix_fmt = 128, 96, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(numbered_frame(1, 128, 96), format="rgb24")
        container.mux([*cover.encode(picture), *cover.encode(None)])
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), dtype=np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        container.mux([*sound.encode(silence), *sound.encode(None)])
    with pytest.raises(UndecodableClip, match="cover picture only"):
        sample(tmp_path / "song.mp4")


@pytest.mark.parametrize("box", [b"stsz", b"stts", b"stsc", b"stco", b"ctts"])
def test_a_table_that_declares_billions_of_frames_costs_one_clip(pool, video, box):
    content = bytearray(video.read_bytes())
    place = content.index(box) + (12 if box == b"stsz" else 8)
    content[place : place + 4] = b"\x7f\xff\xff\xff"
    assert isinstance(result_of(pool, bytes(content)), SampledClip | FailedClip)


@pytest.mark.parametrize("seed", range(12))
def test_flipped_bytes_end_as_frames_or_as_a_failed_clip(pool, video, seed):
    random = np.random.default_rng(seed)
    content = np.frombuffer(video.read_bytes(), dtype=np.uint8).copy()
    content[random.integers(0, len(content), 1 + seed * 4)] = random.integers(0, 256, 1 + seed * 4)
    assert isinstance(result_of(pool, content.tobytes()), SampledClip | FailedClip)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mmaction2__demo.mp4", "media__bear-vp9-odd-dimensions.webm", "mmaction2__test.avi"])
@needs_shared_media
def test_flipped_bytes_of_real_clips_end_as_frames_or_as_a_failed_clip(pool, name):
    whole = np.frombuffer((SHARED_MEDIA / "clips" / name).read_bytes(), dtype=np.uint8)
    for seed in range(40):
        random = np.random.default_rng(seed)
        content = whole.copy()
        content[random.integers(0, len(content), 1 + seed)] = random.integers(0, 256, 1 + seed)
        assert isinstance(result_of(pool, content.tobytes()), SampledClip | FailedClip)


class Listener:
    """A local server that only counts who calls."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.num_calls = 0
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        while True:
            try:
                self._socket.accept()[0].close()
            except OSError:
                return
            self.num_calls += 1

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


DISGUISES = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n",
    "hls_after_a_mark": "\ufeff#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{target}'\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    'mediaPresentationDuration="PT3S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" '
    'bandwidth="1"><BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "smil": '<smil><body><video src="{target}"/></body></smil>',
    "playlist": "[playlist]\nFile1={target}\nNumberOfEntries=1\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
}


@pytest.mark.parametrize("decoder", ["auto", "decord", "pyav"])
@pytest.mark.parametrize("disguise", sorted(DISGUISES))
def test_a_playlist_posing_as_a_video_opens_neither_a_file_nor_an_address(tmp_path, video, listener, disguise, decoder):
    secret = f"subfile,,start,0,end,0,,:{video}" if disguise == "concat" else str(video)
    for target in (secret, f"file://{video}", f"http://127.0.0.1:{listener.port}/x.mp4"):
        path = tmp_path / "clip.mp4"
        path.write_text(DISGUISES[disguise].format(target=target, port=listener.port))
        with pytest.raises(UndecodableClip, match="playlist, not a video|container not allowed|not a readable video"):
            sample(path, decoder=decoder)
    assert listener.num_calls == 0


def test_a_name_that_reads_like_a_protocol_is_only_a_name(tmp_path, video, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = Path("concat:a|b.mp4")
    name.write_bytes(video.read_bytes())
    assert len(sample(name).frame_indices) == 8


def test_a_playlist_with_words_before_it_is_no_video_either(tmp_path, video):
    path = tmp_path / "clip.mp4"
    path.write_text(f"\n\n  #EXTM3U\n#EXTINF:9,\n{video}\n")
    with pytest.raises(UndecodableClip, match="playlist, not a video"):
        sample(path)
