"""A video cannot hurt, block or exhaust the process that asks for its frames."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from framescribe.decoding.config import SamplingConfig, TimeWindow, UndecodableClip
from framescribe.decoding.pool import DecoderPool
from framescribe.decoding.sampling import ClipFrames
from framescribe.digests import digest_frames
from tests.support import faulty_decoders as faults
from tests.support.decoding_fixtures import make_video, read_number
from tests.support.source_tree import ROOT

CONFIG = SamplingConfig(max_frames=4, image_size=64, deadline_s=60.0, memory_limit_bytes=600 << 20)
IMPATIENT = replace(CONFIG, deadline_s=5.0)
FAULTY = ("--sample-with", "tests.support.faulty_decoders:sample_or_fail")


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return make_video(tmp_path_factory.mktemp("videos") / "clip.mp4")


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    pool = DecoderPool(1, CONFIG, FAULTY)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def impatient_pool() -> Iterator[DecoderPool]:
    pool = DecoderPool(1, IMPATIENT, FAULTY)
    yield pool
    pool.close()


def children_of_this_process() -> set[psutil.Process]:
    return set(psutil.Process().children())


def test_a_clip_comes_back_as_its_resized_frames_with_times_and_digest(pool, video):
    sampled = pool.submit(video).result()
    assert sampled.frames.shape == (4, 64, 64, 3)
    assert sampled.frames.dtype == np.uint8
    assert [read_number(frame) for frame in sampled.frames] == [0, 9, 19, 29]
    assert sampled.sampling.frame_indices == (0, 9, 19, 29)
    assert sampled.sampling.timestamps_s == pytest.approx((0.0, 0.9, 1.9, 2.9))
    assert sampled.sampling.duration_s == pytest.approx(3.0)
    assert (sampled.sampling.width_px, sampled.sampling.height_px) == (128, 96)
    assert sampled.sampling.frames_digest == digest_frames(sampled.frames)


def test_bytes_and_a_path_give_the_same_record(pool, video):
    by_path, by_bytes = pool.submit(video), pool.submit(video.read_bytes())
    assert by_path.result().sampling == by_bytes.result().sampling


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (faults.SEGFAULT, "decoder crashed"),
        (faults.EAT_MEMORY, "memory limit exceeded"),
        (faults.RAISE, "decoder crashed"),
    ],
)
def test_a_fault_ends_as_one_failed_clip_and_its_neighbours_are_untouched(pool, video, fault, reason):
    before, faulty, after = (pool.submit(video, TimeWindow(start_s)) for start_s in (None, fault, None))
    assert isinstance(before.result(), ClipFrames)
    assert isinstance(faulty.result(), UndecodableClip)
    assert faulty.result().reason == reason
    assert isinstance(after.result(), ClipFrames)


@pytest.mark.parametrize("fault", [faults.HANG, faults.SPIN])
def test_a_decoder_that_never_returns_is_killed_at_the_deadline(impatient_pool, video, fault):
    hanging, after = (impatient_pool.submit(video, TimeWindow(start_s)) for start_s in (fault, None))
    assert isinstance(hanging.result(), UndecodableClip)
    assert hanging.result().reason == "deadline exceeded"
    assert isinstance(after.result(), ClipFrames)


def test_the_message_of_a_crash_tells_how_the_process_died(pool, video):
    assert "SIGSEGV" in pool.submit(video, TimeWindow(faults.SEGFAULT)).result().message
    assert "ZeroDivisionError: a bug of the decoder" in pool.submit(video, TimeWindow(faults.RAISE)).result().message


@pytest.mark.skipif(sys.platform != "linux", reason="looks at the process's files in /proc")
def test_a_decoder_that_floods_its_log_goes_on_and_fills_no_disk(video):
    known = children_of_this_process()
    pool = DecoderPool(1, CONFIG, FAULTY)
    results = [pool.submit(video, TimeWindow(faults.FLOOD_LOG)).result() for _ in range(3)]
    (child,) = children_of_this_process() - known
    assert [isinstance(result, ClipFrames) for result in results] == [True] * 3
    assert 0 < os.stat(f"/proc/{child.pid}/fd/2").st_size <= 1 << 20
    pool.close()


def test_a_decoder_process_gets_no_credentials(monkeypatch, video):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted")
    monkeypatch.setenv("HF_TOKEN", "planted")
    pool = DecoderPool(1, CONFIG, FAULTY)
    told = pool.submit(video, TimeWindow(faults.TELL_ENVIRONMENT)).result().sampling.decoder
    pool.close()
    assert "PYTHONPATH" in told
    assert "AWS_SECRET_ACCESS_KEY" not in told
    assert "HF_TOKEN" not in told


def test_a_process_that_is_killed_from_outside_costs_one_clip(video):
    known = children_of_this_process()
    pool = DecoderPool(1, CONFIG, FAULTY)
    pool.submit(video).result()
    hanging = pool.submit(video, TimeWindow(faults.HANG))
    (child,) = children_of_this_process() - known
    child.kill()
    assert hanging.result().reason == "decoder crashed"
    assert isinstance(pool.submit(video).result(), ClipFrames)
    pool.close()


def test_closing_the_pool_ends_its_processes_in_the_middle_of_a_clip(video):
    known = children_of_this_process()
    pool = DecoderPool(2, CONFIG, FAULTY)
    pool.submit(video).result()
    hanging = pool.submit(video, TimeWindow(faults.HANG))
    pool.close()
    with pytest.raises(RuntimeError, match="the decoder pool is closed"):
        hanging.result()
    assert children_of_this_process() == known


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child ends with its connection, between two clips")
def test_a_decoder_process_dies_with_its_parent_even_in_the_middle_of_a_hang(video):
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT_OF_A_HANG.format(video=str(video))],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


_PARENT_OF_A_HANG = """
import time, psutil
from pathlib import Path
from framescribe.decoding.config import SamplingConfig
from framescribe.decoding.pool import DecoderPool
from framescribe.decoding.config import TimeWindow
from tests.support.faulty_decoders import SPIN
pool = DecoderPool(1, SamplingConfig(), ("--sample-with", "tests.support.faulty_decoders:sample_or_fail"))
pool.submit(Path({video!r})).result()
pool.submit(Path({video!r}), TimeWindow(SPIN))
time.sleep(0.3)
print(psutil.Process().children()[0].pid, flush=True)
time.sleep(60)
"""


def test_a_process_is_replaced_after_its_number_of_clips(monkeypatch, video):
    monkeypatch.setattr("framescribe.decoding.pool.CLIPS_PER_CHILD", 2)
    known = children_of_this_process()
    pool = DecoderPool(1, CONFIG)
    pool.submit(video).result()
    (first,) = children_of_this_process() - known
    pool.submit(video).result()
    pool.submit(video).result()
    assert first not in children_of_this_process()
    pool.close()


def test_without_memory_files_bytes_go_through_a_temporary_file_that_is_gone_afterwards(
    pool, video, monkeypatch, tmp_path
):
    monkeypatch.setattr("framescribe.decoding.child_process.HAS_MEMORY_FILES", False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    by_file = pool.submit(video.read_bytes()).result()
    assert by_file.sampling == pool.submit(video).result().sampling
    assert list(tmp_path.iterdir()) == []


def test_no_descriptor_and_no_memory_is_left_behind(pool, video):
    pool.submit(video.read_bytes()).result()
    before = psutil.Process().num_fds()
    for _ in range(20):
        pool.submit(video.read_bytes()).result()
    assert _wait_for_descriptors(before) <= before  # fewer where those of a test before went meanwhile


def _wait_for_descriptors(number: int) -> int:
    """Returns the open files, once at most `number`: the pool's thread lets go of a clip after its future is done."""
    deadline_s = time.monotonic() + 5
    while psutil.Process().num_fds() > number and time.monotonic() < deadline_s:
        time.sleep(0.01)
    return psutil.Process().num_fds()


def test_a_pipe_is_refused_without_opening_it(pool, tmp_path):
    os.mkfifo(tmp_path / "endless.mp4")
    assert pool.submit(tmp_path / "endless.mp4").result().reason == "not a regular file"


def test_an_endless_device_is_refused(pool):
    assert pool.submit(Path("/dev/zero")).result().reason == "not a regular file"


def test_a_missing_file_is_a_failed_clip(pool, tmp_path):
    assert pool.submit(tmp_path / "gone.mp4").result().reason == "file cannot be read"


def test_the_length_of_a_video_is_told_without_decoding_it(pool, video):
    assert pool.probe_duration_s(video) == pytest.approx(3.0)
    with pytest.raises(UndecodableClip, match="empty file"):
        pool.probe_duration_s(b"")


def test_a_decoder_process_that_cannot_start_stops_the_run_with_its_last_words(video):
    pool = DecoderPool(1, CONFIG, ("--sample-with", "framescribe.decoding.sample:no_such_function"))
    with pytest.raises(RuntimeError, match="a decoder process does not start: .*no_such_function"):
        pool.submit(video).result()
    pool.close()


def test_a_pyav_of_another_interface_stops_the_run_and_fails_no_clip(video):
    pool = DecoderPool(1, CONFIG, ("--sample-with", "tests.support.other_pyav:sample_video"))
    with pytest.raises(RuntimeError, match=r"a decoder process does not start: .*unexpected keyword argument"):
        pool.submit(video).result()
    pool.close()


def test_a_clip_that_hangs_does_not_hold_up_the_others(video):
    pool = DecoderPool(2, CONFIG, FAULTY)
    hanging = pool.submit(video, TimeWindow(faults.HANG))
    assert isinstance(pool.submit(video).result(), ClipFrames)
    assert not hanging.done()
    pool.close()
