"""Sampled frames are those of a plain decode in order, at their true times, whatever the container and the codec."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from framescribe.decoding.config import SamplingConfig, TimeWindow, UndecodableClip
from framescribe.decoding.sample import probe_duration_s, sample_video
from framescribe.decoding.sampling import SampledFrames
from tests.support.decoding_fixtures import (
    decode_plainly,
    list_media,
    make_video,
    needs_encoder,
    numbered_frame,
    read_number,
)

SIZE = 64
OPEN_GOP = {"x265-params": "keyint=12:open-gop=1:log-level=none:pools=1"}
QUIET_AV1 = {"svtav1-params": "lp=1", "preset": "12"}
MADE = {
    "h264.mp4": {},
    "h264_long_gop.mkv": {"num_frames": 120, "options": {"bf": "3"}},
    "h264_short_gop.flv": {"options": {"g": "5"}},
    "h264_open_gop.mp4": {"num_frames": 60, "options": {"x264-params": "keyint=12:open-gop=1:bframes=3"}},
    "fragmented.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "transport_stream.ts": {},
    "mpeg2.ts": {"codec": "mpeg2video", "rate": 25},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "vp8_hidden_frames.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "vp9_odd_size.webm": {"codec": "libvpx-vp9", "size": (131, 97)},
    "no_duration.webm": {"codec": "libvpx-vp9", "container_options": {"live": "1"}},
    "hevc_open_gop.mp4": {"codec": "libx265", "num_frames": 60, "options": OPEN_GOP},
    "hevc_10_bit.mkv": {"codec": "libx265", "pix_fmt": "yuv420p10le", "options": OPEN_GOP},
    "av1.mp4": {"codec": "libsvtav1", "options": QUIET_AV1},
    "h264_10_bit.mkv": {"pix_fmt": "yuv420p10le"},
    "ffv1_444.mkv": {"codec": "ffv1", "pix_fmt": "yuv444p"},
    "picture.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "variable_rate.mp4": {"pts": [i * i * 7 for i in range(30)]},
    "variable_rate.webm": {"codec": "libvpx-vp9", "pts": [i * i * 7 for i in range(30)]},
    "late_start.mkv": {"pts": [5000 + 40 * i for i in range(30)]},
    "one_frame.mp4": {"num_frames": 1},
    "tape.dv": {"codec": "dvvideo", "size": (720, 576), "rate": 25, "num_frames": 8},
}
EXACT_BY_DECORD = ("h264.mp4", "h264_long_gop.mkv", "h264_short_gop.flv", "fragmented.mp4", "vp8_hidden_frames.webm",
                   "variable_rate.mp4", "variable_rate.webm", "late_start.mkv", "one_frame.mp4")  # fmt: skip
needs_decord = pytest.mark.skipif(find_spec("decord") is None, reason="decord has no wheel here")

WINDOWED = ("h264.mp4", "h264_short_gop.flv", "h264_open_gop.mp4", "fragmented.mp4", "transport_stream.ts",
            "vp8_hidden_frames.webm", "no_duration.webm", "hevc_open_gop.mp4", "av1.mp4", "mpeg4.avi")  # fmt: skip


def sample(path: Path, window: TimeWindow = TimeWindow(), **settings: object) -> tuple[SampledFrames, str]:
    return sample_video(str(path), window, SamplingConfig(**({"image_size": SIZE} | settings)))


def assert_plain_frames(path: Path, sampled: SampledFrames) -> None:
    times_s, pictures = decode_plainly(path, SIZE)
    assert [times_s[i] for i in sampled.frame_indices] == pytest.approx(sampled.timestamps_s, abs=1e-6)
    assert [i for i in set(sampled.frame_indices) if not np.array_equal(sampled.frames[i], pictures[i])] == []


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=needs_encoder(str(MADE[n].get("codec", "libx264")))) for n in sorted(MADE)]
)
def test_frames_and_times_are_those_of_a_plain_decode(tmp_path, name):
    path = make_video(tmp_path / name, **MADE[name])
    sampled, decoder = sample(path, max_frames=16)
    assert decoder == f"pyav {av.__version__}"
    assert len(sampled.frame_indices) == 16
    assert sampled.decoded_fraction == 1.0
    assert_plain_frames(path, sampled)


@needs_decord
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=needs_encoder(str(MADE[n].get("codec", "libx264")))) for n in EXACT_BY_DECORD]
)
def test_where_decord_is_called_exact_its_frames_and_times_are_the_same(tmp_path, name):
    path = make_video(tmp_path / name, **MADE[name])
    sampled, decoder = sample(path, max_frames=16, decoder="decord")
    assert decoder == "decord 0.6.0"
    assert_plain_frames(path, sampled)


@pytest.mark.parametrize("decoder", ["pyav", pytest.param("decord", marks=needs_decord)])
@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_rotated_video_is_turned_upright(tmp_path, rotation, decoder):
    path = make_video(tmp_path / "phone.mp4", rotation=rotation)
    sampled, _ = sample(path, max_frames=4, decoder=decoder)
    assert_plain_frames(path, sampled)
    assert (sampled.width_px, sampled.height_px) == ((128, 96) if rotation == 180 else (96, 128))


# How FFmpeg's own player shows a frame under each display matrix (a, b, c, d): a pixel at (x, y) goes to
# (a x + c y, b x + d y). Its filters: none, hflip, vflip, both, clock, cclock, cclock_flip, clock_flip.
SHOWN = {
    (1, 0, 0, 1): lambda stored: stored,
    (-1, 0, 0, 1): np.fliplr,
    (1, 0, 0, -1): np.flipud,
    (-1, 0, 0, -1): lambda stored: np.rot90(stored, 2),
    (0, 1, -1, 0): lambda stored: np.rot90(stored, -1),
    (0, -1, 1, 0): lambda stored: np.rot90(stored, 1),
    (0, 1, 1, 0): lambda stored: stored.transpose(1, 0, 2),
    (0, -1, -1, 0): lambda stored: np.rot90(stored, 2).transpose(1, 0, 2),
}


@pytest.mark.parametrize("matrix", SHOWN)
def test_a_video_is_shown_as_its_whole_display_matrix_says(tmp_path, matrix):
    stored = make_video(tmp_path / "stored.mp4", num_frames=4)
    sampled, _ = sample(set_display_matrix(stored, tmp_path / "phone.mp4", matrix), max_frames=4)
    with av.open(str(stored)) as container:
        frames = [SHOWN[matrix](frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    resized = [Image.fromarray(np.ascontiguousarray(f)).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for f in frames]
    assert [np.array_equal(sampled.frames[i], np.asarray(resized[i])) for i in range(4)] == [True] * 4
    assert (sampled.width_px, sampled.height_px) == ((128, 96) if matrix[0] else (96, 128))


@needs_decord
@pytest.mark.parametrize("matrix", [(-1, 0, 0, 1), (0, 1, 1, 0)])
def test_decord_by_name_says_that_it_does_not_mirror(tmp_path, matrix):
    path = set_display_matrix(make_video(tmp_path / "stored.mp4"), tmp_path / "phone.mp4", matrix)
    _, decoder = sample(path, max_frames=4, decoder="decord")
    assert decoder.endswith("; decord does not mirror")


def set_display_matrix(source: Path, target: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Writes (a, b, c, d) into the track header, in 16.16 fixed point."""
    content = bytearray(source.read_bytes())
    place = content.index(b"tkhd") + 4 + 40
    for offset, value in zip((0, 4, 12, 16), matrix, strict=True):
        content[place + offset : place + offset + 4] = (value << 16).to_bytes(4, "big", signed=True)
    target.write_bytes(content)
    return target


def test_frames_that_an_edit_list_hides_are_not_sampled(tmp_path):
    path = cut_without_decoding(make_video(tmp_path / "whole.mp4"), tmp_path / "cut.mp4", hidden_frames=7)
    sampled, _ = sample(path, max_frames=23)
    assert [read_number(sampled.frames[i]) for i in sampled.frame_indices] == list(range(7, 30))
    assert sampled.timestamps_s[0] == 0.0
    assert sampled.duration_s == pytest.approx(2.3, abs=0.05)


def cut_without_decoding(source: Path, target: Path, hidden_frames: int) -> Path:
    """Copies packets with the first frames before time zero, which MP4 stores as an edit list."""
    with (
        av.open(str(source)) as whole,
        av.open(str(target), "w", options={"avoid_negative_ts": "disabled", "use_editlist": "1"}) as cut,
    ):
        stream = whole.streams.video[0]
        copied = cut.add_stream_from_template(stream)
        offset = round(hidden_frames / 10 / stream.time_base)
        for packet in whole.demux(stream):
            if packet.size:
                packet.pts, packet.dts, packet.stream = packet.pts - offset, packet.dts - offset, copied
                cut.mux(packet)
    return target


FILM = ("libx264", (128, 96), 10)
PICTURE = ("mjpeg", (256, 192), 1)
NOTHING, DEFAULT, ATTACHED = Disposition(0), Disposition.default, Disposition.attached_pic
FILM_SECOND = {
    "thumbnail.mkv": [(PICTURE, NOTHING), (FILM, DEFAULT)],
    "thumbnail_without_a_default.mkv": [(PICTURE, NOTHING), (FILM, NOTHING)],
    "thumbnail_called_default.mp4": [(PICTURE, DEFAULT), (FILM, NOTHING)],
    "cover.mp4": [(PICTURE, ATTACHED), (FILM, DEFAULT)],
    "other_angle.mkv": [(("libx264", (256, 192), 10), NOTHING), (FILM, DEFAULT)],
}


@pytest.mark.parametrize("name", FILM_SECOND)
def test_the_stream_that_a_player_shows_is_sampled(tmp_path, name):
    sampled, _ = sample(make_streams(tmp_path / name, FILM_SECOND[name]), max_frames=10)
    assert (sampled.width_px, sampled.height_px) == (128, 96)
    assert [read_number(sampled.frames[i]) for i in sampled.frame_indices] == list(range(10))


def test_of_two_like_streams_the_first_is_sampled(tmp_path):
    streams = [(FILM, NOTHING), (("libx264", (128, 72), 10), NOTHING)]
    sampled, _ = sample(make_streams(tmp_path / "two.mp4", streams), max_frames=4)
    assert (sampled.width_px, sampled.height_px) == (128, 96)


@needs_decord
def test_decord_by_name_says_that_it_may_take_the_other_video_stream(tmp_path):
    path = make_streams(tmp_path / "two.mp4", FILM_SECOND["other_angle.mkv"])
    _, decoder = sample(path, max_frames=4, decoder="decord")
    assert decoder.endswith("; decord may take another of the video streams")


def make_streams(path: Path, streams: Sequence[tuple[tuple[str, tuple[int, int], int], Disposition]]) -> Path:
    """Writes numbered frames into streams given as ((codec, size, number of frames), disposition)."""
    with av.open(str(path), "w") as container:
        made = []
        for (codec, size, num_frames), disposition in streams:
            stream = container.add_stream(codec, rate=10)
            stream.width, stream.height = size
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.disposition = disposition
            made.append((stream, num_frames))
        for number in range(10):
            for stream, num_frames in made:
                if number < num_frames:
                    frame = numbered_frame(number, stream.width, stream.height)
                    frame = av.VideoFrame.from_ndarray(frame, format="rgb24")
                    frame.pts, frame.time_base = number, Fraction(1, 10)
                    container.mux(stream.encode(frame))
        for stream, _ in made:
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec"),
    [("raw.h264", "libx264"), pytest.param("raw.hevc", "libx265", marks=needs_encoder("libx265"))],
)
def test_a_stream_without_a_container_is_timed_by_its_own_rate(tmp_path, name, codec):
    options = {"x265-params": "log-level=none:pools=1"} if codec == "libx265" else {}
    sampled, _ = sample(make_video(tmp_path / name, 60, rate=30, codec=codec, options=options), max_frames=60)
    assert sampled.timestamps_s == pytest.approx([i / 30 for i in range(60)])
    assert sampled.duration_s == pytest.approx(2.0)


@needs_encoder("libvpx-vp9")
@pytest.mark.parametrize("num_packets", [80, 17])
def test_alternate_references_of_vp9_in_packets_of_their_own_are_no_frames(tmp_path, num_packets):
    whole = make_video(tmp_path / "whole.webm", 72, codec="libvpx-vp9", options={"g": "9"})
    path = hide_copies_of_key_frames(whole, tmp_path / "hidden.webm", num_packets)
    sampled, _ = sample(path, max_frames=72)
    assert sampled.decoded_fraction == 1.0
    assert sorted(sampled.frames) == list(range(num_packets * 9 // 10))
    assert_plain_frames(path, sampled)


def hide_copies_of_key_frames(source: Path, target: Path, num_packets: int) -> Path:
    """Copies a VP9 video; after each key frame comes the same once more, 40 ms later and not to be shown."""
    with av.open(str(source)) as whole, av.open(str(target), "w", options={"fflags": "-autobsf"}) as copy:
        stream = copy.add_stream_from_template(whole.streams.video[0])
        packets = []
        for packet in whole.demux(video=0):
            if packet.size:
                packets.append(packet)
            if packet.size and packet.is_keyframe:
                hidden = av.Packet(bytes([bytes(packet)[0] & ~2]) + bytes(packet)[1:])
                hidden.pts = hidden.dts = packet.pts + 40
                hidden.time_base = packet.time_base
                packets.append(hidden)
        for packet in packets[:num_packets]:
            packet.stream = stream
            copy.mux(packet)
    return target


def test_metadata_in_no_known_encoding_does_not_matter(tmp_path):
    path = tmp_path / "title.mp4"
    with av.open(str(make_video(tmp_path / "plain.mp4"))) as plain, av.open(str(path), "w") as titled:
        titled.metadata["title"] = "QQQQQQQQ"
        copied = titled.add_stream_from_template(plain.streams.video[0])
        for packet in plain.demux(plain.streams.video[0]):
            if packet.size:
                packet.stream = copied
                titled.mux(packet)
    path.write_bytes(path.read_bytes().replace(b"QQQQQQQQ", b"\xfe\xff\xfe\xc0\xfe\xff\xfe\xc0"))
    sampled, _ = sample(path, max_frames=4)
    assert_plain_frames(path, sampled)


def test_a_length_that_the_header_exaggerates_does_not_matter(tmp_path):
    path = make_video(tmp_path / "clip.avi", codec="mpeg4")
    content = bytearray(path.read_bytes())
    total_frames, length = content.index(b"avih") + 8 + 16, content.index(b"strh") + 8 + 32
    content[total_frames : total_frames + 4] = content[length : length + 4] = (3000).to_bytes(4, "little")
    path.write_bytes(content)
    sampled, _ = sample(path, max_frames=8)
    assert sampled.frame_indices[-1] == 29
    assert_plain_frames(path, sampled)


@needs_decord
@needs_encoder("libx265")
def test_decord_by_name_says_where_it_may_be_wrong(tmp_path):
    path = make_video(tmp_path / "clip.mp4", codec="libx265", options=OPEN_GOP)
    _, decoder = sample(path, max_frames=4, decoder="decord")
    assert decoder == "decord 0.6.0; decord is not exact for hevc in mov"


@needs_decord
def test_decord_by_name_is_not_let_near_a_container_it_hangs_on(tmp_path):
    path = make_video(tmp_path / "clip.ts")
    with pytest.raises(UndecodableClip, match="decord cannot read this container"):
        sample(path, max_frames=4, decoder="decord")


def test_without_decord_pyav_decodes_and_the_row_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "decord", None)
    _, decoder = sample(make_video(tmp_path / "clip.mp4"), max_frames=4, decoder="decord")
    assert decoder == f"pyav {av.__version__}; decord is not installed"


@pytest.mark.parametrize("decoder", ["pyav", pytest.param("decord", marks=needs_decord)])
def test_a_window_of_a_longer_video_is_a_clip_of_its_own(tmp_path, decoder):
    path = make_video(tmp_path / "long.mp4", num_frames=60, options={"g": "10"})
    sampled, _ = sample(path, TimeWindow(2.0, 3.0), max_frames=10, decoder=decoder)
    assert sampled.frame_indices == tuple(range(20, 30))
    assert [read_number(sampled.frames[i]) for i in sampled.frame_indices] == list(range(20, 30))
    assert sampled.timestamps_s == pytest.approx([i / 10 for i in range(10)])
    assert sampled.duration_s == pytest.approx(1.0)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=needs_encoder(str(MADE[n].get("codec", "libx264")))) for n in WINDOWED]
)
def test_a_window_far_into_a_video_shows_the_frames_of_a_plain_decode(tmp_path, name):
    path = make_video(tmp_path / name, **(MADE[name] | {"num_frames": 90, "rate": 10, "pts": None}))
    times_s, pictures = decode_plainly(path, SIZE)
    for start_s in (0.0, 1.1, 3.0, 4.7, 6.2):
        sampled, _ = sample(path, TimeWindow(start_s, start_s + 2.0), max_frames=7, decoder="pyav")
        assert times_s[sampled.frame_indices[0]] >= start_s - 1e-6
        assert [i for i in sampled.frame_indices if not np.array_equal(sampled.frames[i], pictures[i])] == []


def test_a_window_is_decoded_from_the_key_frame_before_it_whatever_lies_further_back(tmp_path):
    path = make_video(
        tmp_path / "long.mp4", 120, is_noisy=True, options={"g": "10"}, container_options={"movflags": "faststart"}
    )
    content = bytearray(path.read_bytes())
    content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 4)
    path.write_bytes(content)
    sampled, _ = sample(path, TimeWindow(10.0, 11.0), max_frames=10, decoder="pyav")
    assert sampled.decoded_fraction == 1.0
    assert [read_number(sampled.frames[i]) for i in sampled.frame_indices] == list(range(100, 110))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=needs_encoder(str(MADE[n].get("codec", "libx264")))) for n in WINDOWED]
)
def test_frames_far_apart_are_those_of_a_plain_decode(tmp_path, name):
    path = make_video(tmp_path / name, **(MADE[name] | {"num_frames": 260, "rate": 10, "pts": None}))
    sampled, _ = sample(path, max_frames=4)
    _, pictures = decode_plainly(path, SIZE)
    assert [i for i in sampled.frame_indices if not np.array_equal(sampled.frames[i], pictures[i])] == []


def test_what_lies_between_frames_far_apart_is_not_decoded(tmp_path):
    path = make_video(
        tmp_path / "long.mp4", 120, is_noisy=True, options={"g": "10"}, container_options={"movflags": "faststart"}
    )
    content = bytearray(path.read_bytes())
    content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 4)
    path.write_bytes(content)
    sampled, _ = sample(path, max_frames=2)
    assert [read_number(sampled.frames[i]) for i in sampled.frame_indices] == [0, 119]
    assert sampled.decoded_fraction == 1.0


def test_windows_side_by_side_share_no_frame_and_miss_none(tmp_path):
    path = make_video(tmp_path / "long.mp4", num_frames=47)
    windows = [sample(path, TimeWindow(start_s, start_s + 1.5), fps=10.0)[0] for start_s in (0.0, 1.5, 3.0, 4.5)]
    assert [i for window in windows for i in window.frame_indices] == list(range(47))


def test_a_window_past_the_end_of_the_video_is_a_failed_clip(tmp_path):
    with pytest.raises(UndecodableClip, match="window outside of the video"):
        sample(make_video(tmp_path / "short.mp4"), TimeWindow(60.0, 70.0))


def test_another_video_of_the_same_size_under_the_same_path_is_read_anew(tmp_path):
    videos = [make_video(tmp_path / "ten.mp4", num_frames=10), make_video(tmp_path / "thirty.mp4", num_frames=30)]
    size = max(path.stat().st_size for path in videos) + 100
    padded = [
        content + (size - len(content)).to_bytes(4, "big") + b"free" + bytes(size - len(content) - 8)
        for content in (path.read_bytes() for path in videos)
    ]
    lasts = []
    for content in padded:
        (tmp_path / "clip.mp4").write_bytes(content)
        lasts.append(sample(tmp_path / "clip.mp4", max_frames=4)[0].frame_indices[-1])
    assert len(padded[0]) == len(padded[1])
    assert lasts == [9, 29]


def test_the_length_of_a_video_is_from_its_first_frame_to_the_end_of_its_last(tmp_path):
    path = make_video(tmp_path / "late.mkv", pts=[5000 + 100 * i for i in range(30)])
    assert probe_duration_s(str(path), SamplingConfig()) == pytest.approx(3.0, abs=0.01)


QUICK_CLIPS = {
    "decord__video_90.mov", "ExoPlayer__video_desks.3gp", "mmaction2__test.avi", "media__bear-vp9-odd-dimensions.webm",
    "web-platform-tests__RGB_Circles.mov", "torchcodec__nasa_13013.mp4", "torchcodec__av1_video.mkv",
    "torchcodec__h264_10bits.mp4",
}  # fmt: skip


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.name, marks=() if path.name in QUICK_CLIPS else pytest.mark.slow)
        for path in list_media("clips")
    ],
)
def test_frames_of_a_real_clip_are_those_of_a_plain_decode(path):
    sampled, _ = sample(path, max_frames=16)
    times_s, pictures = decode_plainly(path, SIZE)
    assert [i for i in set(sampled.frame_indices) if not np.array_equal(sampled.frames[i], pictures[i])] == []
    # FFmpeg swaps the times of AVI's B-frames: there the order of the frames is what can be checked.
    tolerance_s = 0.07 if path.suffix == ".avi" else 1e-6
    assert [times_s[i] for i in sampled.frame_indices] == pytest.approx(sampled.timestamps_s, abs=tolerance_s)
