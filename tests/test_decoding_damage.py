"""Damaged and hostile files end as frames or as a failed clip with a reason, and never as another file's content."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import av.error
import av.logging
import numpy as np
import pytest
from av.stream import Disposition

from framescribe.decoding.config import SamplingConfig, TimeWindow, UndecodableClip
from framescribe.decoding.damage import DecodeTally, match_decoded_frames
from framescribe.decoding.decode import read_video_timeline
from framescribe.decoding.pool import DecoderPool
from framescribe.decoding.sample import sample_video
from framescribe.decoding.sampling import ClipFrames, SampledFrames
from tests.support.decoding_fixtures import (
    list_media,
    make_video,
    media_file,
    needs_encoder,
    numbered_frame,
    read_number,
)

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


def result_of(pool: DecoderPool, video: bytes | Path) -> ClipFrames | UndecodableClip:
    return pool.submit(video).result()


def sample(path: Path, **settings: object) -> SampledFrames:
    config = SamplingConfig(**({"max_frames": 8, "image_size": 64} | settings))
    return sample_video(str(path), TimeWindow(), config)[0]


def cut(video: Path, fraction: float, target: Path) -> Path:
    content = video.read_bytes()
    target.write_bytes(content[: int(len(content) * fraction)])
    return target


@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in list_media("broken")])
def test_every_broken_file_ends_in_time_as_frames_or_as_a_reason_for_people(pool, path):
    result = result_of(pool, path)
    outcome = (
        result.reason if isinstance(result, UndecodableClip) else f"{result.sampling.decoded_fraction:.2f} decoded"
    )
    assert outcome.startswith(REASONS) or (isinstance(result, ClipFrames) and result.sampling.decoded_fraction >= 0.9)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        media_file("broken", "moviepy__result.webm", "empty file"),
        media_file("broken", "nestegg__detodos.webm", "no video stream"),
        media_file("broken", "mp4parse-rust__av1-clearkey-cbcs-video.mp4", "encrypted"),
        media_file("broken", "nestegg__seek_encrypted.webm", "encrypted"),
        media_file("broken", "go-mp4__sample_init.encv.mp4", "encrypted"),
        media_file("broken", "web-platform-tests__invalid-codec.webm", "codec not supported"),
        media_file("broken", "libwebm__invalid_vp9_bitstream-bug_1416.webm", "dimensions 12336x12336 over the limit"),
        media_file("broken", "go-mp4__sample_qt.mp4", "truncated before its first frame"),
        media_file("broken", "firefox-esr__1765842.webm", "damaged"),
        media_file("broken", "mp4ff__2xSencNoMdat.mp4", "encrypted"),
        media_file("broken", "firefox-esr__encrypted-track-without-tenc.mp4", "encrypted"),
    ],
)
def test_the_reason_names_what_is_wrong(pool, path, reason):
    result = result_of(pool, path)
    assert isinstance(result, UndecodableClip)
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
    sampled = sample(cut(video, 0.97, tmp_path / "most.mp4"), min_decoded_fraction=0.8)
    assert 0.8 <= sampled.decoded_fraction < 1.0
    numbers = [read_number(sampled.frames[i]) for i in sampled.frame_indices]
    assert numbers == list(sampled.frame_indices)
    assert sampled.timestamps_s == pytest.approx([number / 10 for number in numbers])


def test_the_wanted_share_decides_whether_a_cut_file_is_annotated(video, tmp_path):
    half = cut(video, 0.6, tmp_path / "half.mp4")
    assert sample(half, min_decoded_fraction=0.2).decoded_fraction < 0.9
    with pytest.raises(UndecodableClip, match="truncated after"):
        sample(half, min_decoded_fraction=0.9)


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
    settings = {"max_frames": 60, "min_decoded_fraction": 0.5, "decoder": "pyav"}
    sound, scratched = sample(video, **settings), sample(tmp_path / "scratched.mp4", **settings)
    assert 0.8 <= scratched.decoded_fraction < 1.0
    assert (scratched.frame_indices[0], scratched.frame_indices[-1]) == (0, 59)
    assert [i for i in scratched.frame_indices if not np.array_equal(scratched.frames[i], sound.frames[i])] == []


SCRATCHED = {
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "keyint=10:log-level=none:pools=1"}},
    "h264.mkv": {"options": {"g": "10", "bf": "3", "x264-params": "cabac=0"}},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"g": "10", "bf": "2"}},
}
# Offset and byte that HEVC's arithmetic decoder stumbles over, most others it reads; behind the tables of a JPEG.
SCRATCHES = {"hevc.mp4": (20, b"\xff"), "mjpeg.avi": (900, b"\x33")}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=needs_encoder(str(SCRATCHED[n].get("codec", "libx264")))) for n in SCRATCHED]
)
def test_a_frame_of_which_the_decoder_logs_an_error_is_never_sampled(tmp_path, name):
    whole = make_video(tmp_path / name, 30, is_noisy=True, **SCRATCHED[name])
    pictures = {picture.tobytes() for picture in sample(whole, max_frames=30).frames.values()}
    offset, byte = SCRATCHES.get(name, (50, b"\x33"))
    scratched = [scratch(whole, tmp_path / f"{tenth}_{name}", tenth, offset, byte) for tenth in range(10)]
    noticed = [path for path in scratched if logs_an_error(path)]
    sampled = [sample(path, max_frames=30, min_decoded_fraction=0.0) for path in noticed]
    assert len(noticed) >= 3
    assert [clip.decoded_fraction for clip in sampled if clip.decoded_fraction == 1.0] == []
    assert [i for clip in sampled for i, p in clip.frames.items() if p.tobytes() not in pictures] == []


def scratch(video: Path, target: Path, tenth: int, offset: int, byte: bytes) -> Path:
    """Overwrites up to 200 bytes of one frame."""
    with av.open(str(video)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size > 100]
    packet = packets[tenth * len(packets) // 10]
    start, stop = packet.pos + offset, packet.pos + min(offset + 200, packet.size - 20)
    content = bytearray(video.read_bytes())
    content[start:stop] = byte * (stop - start)
    target.write_bytes(content)
    return target


def logs_an_error(path: Path) -> bool:
    """Whether a plain decode says so, or ends for it."""
    av.logging.set_level(av.logging.ERROR)
    with av.open(str(path)) as container, av.logging.Capture() as lines:
        container.streams.video[0].codec_context.thread_count = 1
        try:
            for _ in container.decode(video=0):
                pass
        except av.error.InvalidDataError:
            return True
        finally:
            av.logging.set_level(None)
    return bool(lines)


def test_a_frame_that_lacks_a_slice_is_not_sampled_though_the_decoder_logs_nothing(tmp_path):
    whole = make_video(tmp_path / "whole.mp4", 30, is_noisy=True, options={"g": "10", "x264-params": "slices=4"})
    content = bytearray(whole.read_bytes())
    with av.open(str(whole)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][14]
    place = packet.pos
    while place < packet.pos + packet.size:  # each NAL unit behind its length; the last is a slice
        last, place = place, place + 4 + int.from_bytes(content[place : place + 4], "big")
    content[last + 4] = content[last + 4] & 0xE0 | 12  # filler, which decoders pass over
    path = tmp_path / "lost.mp4"
    path.write_bytes(content)
    sound, sampled = sample(whole, max_frames=30), sample(path, max_frames=30, min_decoded_fraction=0.5)
    assert not logs_an_error(path)
    assert sampled.decoded_fraction < 1.0
    assert [i for i in sampled.frames if not np.array_equal(sampled.frames[i], sound.frames[i])] == []


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.7])
def test_a_hole_in_a_matroska_file_is_counted_and_what_borders_on_it_not_sampled(tmp_path, fraction):
    whole = make_large_video(tmp_path / "whole.mkv")
    content = bytearray(whole.read_bytes())
    place = int(len(content) * fraction)
    content[place : place + len(content) // 6] = np.random.default_rng(0).bytes(len(content) // 6)
    path = tmp_path / "hole.mkv"
    path.write_bytes(content)
    pictures = {picture.tobytes() for picture in sample(whole, max_frames=60).frames.values()}
    with pytest.raises(UndecodableClip, match="damaged"):
        sample(path)
    sampled = sample(path, max_frames=60, min_decoded_fraction=0.3)
    assert 0.5 < sampled.decoded_fraction < 0.9
    assert [i for i, picture in sampled.frames.items() if picture.tobytes() not in pictures] == []


def test_frames_that_the_index_of_an_avi_file_lists_are_missed(tmp_path):
    whole = make_large_video(tmp_path / "whole.avi", codec="mpeg4")
    content = bytearray(whole.read_bytes())
    place = len(content) // 2
    content[place : place + len(content) // 6] = np.random.default_rng(0).bytes(len(content) // 6)
    (tmp_path / "hole.avi").write_bytes(content)
    with av.open(str(tmp_path / "hole.avi")) as container:
        num_packets = sum(1 for packet in container.demux(video=0) if packet.size)
    with pytest.raises(UndecodableClip, match="damaged"):
        sample(tmp_path / "hole.avi")
    assert sample(tmp_path / "hole.avi", min_decoded_fraction=0.5).decoded_fraction <= num_packets / 60 < 0.9


LATE = {
    "clip.ts": {"options": {"g": "24", "sc_threshold": "0"}},
    "clip.h264": {"options": {"g": "24", "sc_threshold": "0"}},
    "clip.hevc": {
        "codec": "libx265",
        "options": {"x265-params": "keyint=24:min-keyint=24:scenecut=0:open-gop=0:log-level=none:pools=1"},
    },
    "mpeg2.ts": {"codec": "mpeg2video", "rate": 25, "options": {"g": "24", "sc_threshold": "1000000000"}},
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=needs_encoder(str(LATE[n].get("codec", "libx264")))) for n in LATE]
)
def test_what_precedes_the_first_key_frame_of_a_file_is_counted_as_lost(tmp_path, name):
    whole = make_video(tmp_path / name, 60, is_noisy=True, **LATE[name])
    content = whole.read_bytes()
    late = tmp_path / f"late_{name}"
    late.write_bytes(content[len(content) // 5 // 188 * 188 :])
    with pytest.raises(UndecodableClip, match="damaged.*begins in the middle of a group of pictures"):
        sample(late)
    sampled = sample(late, max_frames=60, min_decoded_fraction=0.5)
    assert [read_number(sampled.frames[i]) for i in sorted(sampled.frames)] == list(range(24, 60))
    assert 0.6 < sampled.decoded_fraction < 0.8


def test_frames_before_the_first_key_frame_are_not_sampled_even_if_the_decoder_shows_something(tmp_path):
    whole = make_video(tmp_path / "whole.avi", 60, codec="mpeg4", options={"g": "24", "sc_threshold": "1000000000"})
    with av.open(str(whole)) as container, av.open(str(tmp_path / "late.avi"), "w") as late:
        copied = late.add_stream_from_template(container.streams.video[0])
        for packet in [packet for packet in container.demux(video=0) if packet.size][12:]:
            packet.stream = copied
            late.mux(packet)
    sampled = sample(tmp_path / "late.avi", max_frames=60, min_decoded_fraction=0.5)
    assert [read_number(sampled.frames[i]) for i in sorted(sampled.frames)] == list(range(24, 60))
    assert sampled.decoded_fraction == pytest.approx(36 / 48)


@pytest.mark.parametrize("path", [media_file("broken", "firefox-esr__bug556821.ogv")])
def test_a_first_frame_that_is_no_key_frame_is_not_sampled_where_the_decoder_only_warns(path):
    sampled = sample(path, max_frames=200)
    assert 0.9 < sampled.decoded_fraction < 1.0
    assert sampled.frame_indices[0] == 1


@pytest.mark.parametrize(("is_bad", "fraction"), [(False, 1.0), (True, 60 / 61)])
def test_a_packet_without_a_frame_and_without_a_gap_is_a_loss_only_where_the_decoder_says_so(video, is_bad, fraction):
    whole = read_video_timeline(str(video), CONFIG.max_pixels)
    extra = int(whole.pts[30]) + round(0.04 / whole.tick_s)
    pts = np.sort(np.append(whole.pts, extra))
    timeline = replace(whole, pts=pts, times_s=(pts - pts[0]) * whole.tick_s)
    tally = DecodeTally(list(enumerate(whole.pts.tolist())), frozenset([extra] if is_bad else []))
    assert match_decoded_frames(timeline, tally, TimeWindow(), 0.5).decoded_fraction == fraction


def test_a_packet_without_a_frame_that_leaves_a_gap_is_a_loss(video):
    timeline = read_video_timeline(str(video), CONFIG.max_pixels)
    good = [(ordinal, pts) for ordinal, pts in enumerate(timeline.pts.tolist()) if ordinal != 30]
    assert match_decoded_frames(timeline, DecodeTally(good), TimeWindow(), 0.5).decoded_fraction == 59 / 60


@pytest.mark.parametrize("container_options", [{"movflags": "faststart"}, {}])
@pytest.mark.parametrize(
    ("box", "offset", "value"),
    [
        (b"stsz", 16, 0x7FFFFFFF),
        (b"stsz", 36, 0x01FFFFFF),
        (b"stsz", 8, 0x0001FFFF),
        (b"stco", 12, 0x7FFFFFFF),
        (b"ftyp", -4, 0x00001003),
        (b"moov", 0, 0x6D6F587B),
    ],
)
def test_a_damaged_table_or_box_of_a_whole_file_is_not_called_a_truncation(
    tmp_path, container_options, box, offset, value
):
    content = bytearray(make_large_video(tmp_path / "clip.mp4", container_options=container_options).read_bytes())
    place = content.index(box) + offset
    content[place : place + 4] = value.to_bytes(4, "big")
    (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(UndecodableClip) as raised:
        sample(tmp_path / "clip.mp4")
    assert raised.value.reason in ("damaged", "no frame can be decoded")


@pytest.mark.parametrize("size", [3, 0x7FFFFFFF])
def test_a_damaged_free_box_before_the_index_is_not_called_a_truncation(tmp_path, size):
    content = bytearray(make_large_video(tmp_path / "clip.mp4").read_bytes())
    place = content.index(b"free") - 4
    content[place : place + 4] = size.to_bytes(4, "big")
    (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(UndecodableClip, match="damaged.*do not lead to its moov box"):
        sample(tmp_path / "clip.mp4")


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
    assert_failed_or_in_order(result_of(pool, bytes(content)))


def assert_failed_or_in_order(result: ClipFrames | UndecodableClip) -> None:
    numbers = [read_number(frame) for frame in result.frames] if isinstance(result, ClipFrames) else []
    assert numbers == sorted(numbers)
    assert all(number < 60 for number in numbers)


@pytest.mark.parametrize("seed", range(12))
def test_flipped_bytes_end_as_right_frames_or_as_a_failed_clip(pool, video, seed, tmp_path):
    random = np.random.default_rng(seed)
    content = np.frombuffer(video.read_bytes(), dtype=np.uint8).copy()
    content[random.integers(0, len(content), 1 + seed * 4)] = random.integers(0, 256, 1 + seed * 4)
    (tmp_path / "flipped.mp4").write_bytes(content.tobytes())
    result = result_of(pool, content.tobytes())
    assert_failed_or_in_order(result)
    # What FFmpeg does not notice, nobody can. What it does is worth a fraction, or was not needed for these frames.
    assert (
        isinstance(result, UndecodableClip)
        or result.sampling.decoded_fraction < 1.0
        or not logs_an_error(tmp_path / "flipped.mp4")
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        media_file("clips", name)
        for name in ("mmaction2__demo.mp4", "media__bear-vp9-odd-dimensions.webm", "mmaction2__test.avi")
    ],
)
def test_flipped_bytes_of_real_clips_end_as_frames_or_as_a_failed_clip(pool, path):
    whole = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    for seed in range(40):
        random = np.random.default_rng(seed)
        content = whole.copy()
        content[random.integers(0, len(content), 1 + seed)] = random.integers(0, 256, 1 + seed)
        assert isinstance(result_of(pool, content.tobytes()), ClipFrames | UndecodableClip)


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


def test_a_playlist_that_no_mark_gives_away_is_refused_by_ffmpegs_own_list(tmp_path, video):
    path = tmp_path / "clip.mp4"
    manifest = DISGUISES["dash"].format(target=video).partition("?>")[2]
    profiles = 'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011" '  # by which FFmpeg knows it
    path.write_text("<!-- a film -->" + manifest.replace("<MPD ", f"<MPD {profiles}"))
    with pytest.raises(UndecodableClip, match="not a readable video"):
        sample(path)


def test_ffmpeg_is_told_to_open_one_file_and_no_container_that_refers_to_others(monkeypatch, video):
    options = []
    real_open = av.open
    monkeypatch.setattr(
        "av.open", lambda *args, **kwargs: (options.append(kwargs["options"]), real_open(*args, **kwargs))[1]
    )
    sample(video)
    assert {given["protocol_whitelist"] for given in options} == {"file"}
    allowed = {name for given in options for name in given["format_whitelist"].split(",")}
    assert allowed.isdisjoint(
        {"hls", "dash", "concat", "sdp", "rtsp", "imf", "image2", "tee", "lavfi", "webm_dash_manifest"}
    )
    assert "mov" in allowed


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
