"""Clips become sampled clips inside a pipeline, within one budget of memory for a worker process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions

from framescribe.decoding.config import SamplingConfig
from schemas.records import Clip, ClipRef, FailedClip, SampledClip, Stage, UnitEnd
from tests.support.decoding_fixtures import make_video, read_number
from transforms.sample_frames import SampleFrames, SampleFramesConfig, SampleFramesFn
from transforms.worker import Worker, WorkerConfig

CONFIG = SamplingConfig(max_frames=4, image_size=64)
MEMORY = 5 * CONFIG.frames_bytes // 2


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return make_video(tmp_path_factory.mktemp("videos") / "clip.mp4")


def clip_of(video: Path | bytes, clip_id: str = "clip") -> Clip:
    return Clip(ClipRef(clip_id, "unit", "clip.mp4"), video)


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


def configure(num_decoder_processes: int, prefetch_clips: int) -> SampleFramesConfig:
    return SampleFramesConfig(CONFIG, WorkerConfig(num_decoder_processes, MEMORY, prefetch_clips))


def run(
    worker: Worker, elements: list[object], threads: int = 1, prefetch_clips: int = 16
) -> tuple[list[object], dict[str, int]]:
    """Runs the step over elements and returns its outputs, as they were written down, and its counters."""
    with _lock:
        _written.clear()
    options = PipelineOptions(runner="FnApiRunner", direct_num_workers=threads, direct_running_mode="multi_threading")
    pipeline = beam.Pipeline(options=options)
    _ = (
        pipeline
        | beam.Create(elements)
        | beam.Reshuffle()
        | SampleFrames(configure(2, prefetch_clips), worker)
        | beam.Map(_write_down, worker)
    )
    result = pipeline.run()
    result.wait_until_finish()
    counters = result.metrics().query(MetricsFilter().with_namespace("framescribe"))["counters"]
    return list(_written), {counter.key.metric.name: counter.committed for counter in counters}


_written: list[object] = []
_lock = threading.Lock()


def _write_down(element: object, worker: Worker) -> None:
    if isinstance(element, SampledClip):
        # As AnnotateClips does once the engine has taken the frames.
        worker.get_frame_budget(MEMORY).release(element.frames.nbytes)
    with _lock:
        _written.append(element)


def test_clips_are_sampled_and_everything_else_passes_through(video, worker):
    failed = FailedClip(ClipRef("bad", "unit", "bad.mp4"), Stage.READ, "unreadable", "no such member")
    end = UnitEnd("unit", 3)
    written, counters = run(worker, [clip_of(video, "good"), failed, clip_of(b"no video", "broken"), end])
    sampled = [element for element in written if isinstance(element, SampledClip)]
    assert failed in written
    assert end in written
    assert [clip.ref.clip_id for clip in sampled] == ["good"]
    assert [read_number(frame) for frame in sampled[0].frames] == [0, 9, 19, 29]
    assert [clip.ref.clip_id for clip in written if isinstance(clip, FailedClip) and clip.stage is Stage.DECODE] == [
        "broken"
    ]
    assert counters["clips_sampled"] == 1
    assert counters["clips_failed_to_decode"] == 1
    assert counters["decode_milliseconds"] > 0


def test_every_clip_has_the_frames_of_its_own_video_whichever_is_decoded_first(video, worker, tmp_path):
    short = make_video(tmp_path / "short.mp4", num_frames=4)
    videos = {f"clip-{number}": short if number % 2 else video for number in range(8)}
    written, _ = run(worker, [clip_of(path, clip_id) for clip_id, path in videos.items()], prefetch_clips=8)
    last_frames = {clip.ref.clip_id: clip.sampling.frame_indices[-1] for clip in written}
    assert last_frames == {clip_id: 3 if path == short else 29 for clip_id, path in videos.items()}


def test_a_window_of_a_video_has_the_frames_of_its_time(video, worker):
    window = replace(clip_of(video), ref=ClipRef("clip@0.5-1", "unit", "clip.mp4", start_s=0.5, end_s=1.0))
    ((sampled,), _) = run(worker, [window])
    assert [sampled.sampling.timestamps_s[0], sampled.sampling.duration_s] == pytest.approx([0, 0.5], abs=0.05)
    assert [read_number(frame) for frame in sampled.frames] == list(sampled.sampling.frame_indices)
    assert min(sampled.sampling.frame_indices) > 0


def test_more_bundle_threads_than_the_budget_has_room_for_finish_all_the_same(video, worker):
    clips = [clip_of(video, f"clip-{i}") for i in range(24)]
    written, counters = run(worker, clips, threads=4, prefetch_clips=8)
    assert sorted(clip.ref.clip_id for clip in written) == sorted(clip.ref.clip_id for clip in clips)
    assert counters["clips_sampled"] == 24
    assert worker.get_frame_budget(MEMORY).held == 0


def test_what_a_failed_bundle_sampled_is_given_back(video, worker):
    step = SampleFramesFn(configure(1, prefetch_clips=8), worker)
    step.setup()
    step.start_bundle()
    list(step.process(clip_of(video)))
    step.teardown()
    worker.get_decoder_pool(CONFIG, 1).submit(video).result()  # the only decoder is past the abandoned clip now
    assert worker.get_frame_budget(MEMORY).held == 0
