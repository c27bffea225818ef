"""The stages of the acceptance run, but for the kernels; `benchmarks/gpu_acceptance.py` runs and judges them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.acceptance_setting import (
    QUESTIONS,
    Check,
    NotHere,
    Setting,
    StageResult,
    at_least,
    at_most,
    make_loop,
)
from benchmarks.engine import run_engine, run_full, run_model_card_loop
from benchmarks.model_card_loop import ModelCardLoop
from benchmarks.workload import MadeClip, make_workload
from framescribe.llava_video.engine.engine import Engine
from framescribe.llava_video.engine.generation import Completion, GenerationConfig
from framescribe.llava_video.engine.runner import ModelRunner

_MARGIN, _LEAST_POSITIONS = 0.1, 200
_ANSWER_S = 300
_NUM_CLIPS = 3
_BATCH = [(clip, question) for clip in range(_NUM_CLIPS) for question in QUESTIONS]


def measure_machine(setting: Setting) -> StageResult:
    """Measures what everything else is to be seen beside: products, memory, launches."""
    size, dtype = (256, torch.float32) if setting.is_small else (8192, torch.bfloat16)
    a, b = torch.randn(2, size, size, device=setting.device).to(dtype)
    flops = 2 * size**3 / _seconds_each(setting, lambda: a @ b, 10)
    source = torch.zeros((1 << 20) if setting.is_small else (1 << 30), dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    bytes_per_s = 2 * source.nbytes / _seconds_each(setting, lambda: target.copy_(source), 10)
    one = torch.zeros(1, device=setting.device)
    launch_s = _seconds_each(setting, lambda: one.add_(1), 1000)
    measured = {"tflops": flops / 1e12, "gb_per_s": bytes_per_s / 1e9, "launch_us": launch_s * 1e6}
    return StageResult([at_least(name, value, 1e-9) for name, value in measured.items()], measured)


def check_ids(setting: Setting) -> StageResult:
    """Asks the same in float32 through graphs, fixed steps, plain steps and `generate`; all ids must be equal."""
    num_layers = None if setting.is_small else 2
    answers: dict[str, list[list[int]]] = {}
    graphs = 0
    with _exact_float32():
        model, checkpoint = setting.make_model(torch.float32, num_layers)
        for name, static, captures in (("graphs", True, True), ("fixed", True, False), ("plain", False, False)):
            if name == "graphs" and setting.device.type == "cpu":
                continue
            with setting.start_engine(model, checkpoint, static=static, graphs=captures) as engine:
                answers[name] = _ask_batch(setting, engine)
                if name == "graphs":
                    graphs = engine.thread.runner.static.num_replays  # type: ignore[union-attr]  # it is static
            del engine
            setting.release()
        loop, clips = make_loop(model, checkpoint), setting.make_clips(_NUM_CLIPS)
        answers["generate"] = [_ask_loop(loop, clips[clip], question, setting) for clip, question in _BATCH]
    expected = answers.pop("generate")
    num_ids = sum(map(len, expected))
    checks = [at_most(f"{name}: ids that differ", _count_different(ids, expected), 0) for name, ids in answers.items()]
    checks.append(at_least("ids compared", num_ids, 90))
    if setting.device.type == "cuda":
        checks.append(at_least("steps that were replayed", graphs, 10))
    return StageResult(checks, {"ids": num_ids})


def check_logprobs(setting: Setting) -> StageResult:
    """Scores given answers by transformers in float32 and bfloat16, and by the engine's own steps in bfloat16."""
    clips, num_tokens = setting.make_clips(2), 60 if setting.is_small else 96
    model, checkpoint = setting.make_model(torch.float32)
    forced = [_draw_answer(seed, num_tokens, model.language.num_ids) for seed in range(len(QUESTIONS))]
    cases = [(clip, question) for clip in range(len(clips)) for question in range(len(QUESTIONS))]
    with _exact_float32():
        exact = [_score_by_loop(make_loop(model, checkpoint), clips[c], QUESTIONS[q], forced[q]) for c, q in cases]
    del model
    setting.release()
    model, checkpoint = setting.make_model(torch.bfloat16)
    loop = make_loop(model, checkpoint)
    theirs = [_score_by_loop(loop, clips[c], QUESTIONS[q], forced[q]) for c, q in cases]
    ours: list[Completion] = []
    with setting.start_engine(model, checkpoint) as engine:
        for clip in range(len(clips)):
            frames, times, duration_s = (getattr(clips[clip], n) for n in ("frames", "timestamps_s", "duration_s"))
            with engine.open(frames, times, duration_s) as video:
                futures = [video.force(question, ids) for question, ids in zip(QUESTIONS, forced, strict=True)]
                ours += [future.result(_ANSWER_S) for future in futures]
        static = engine.thread.runner.static
        replays = 0 if static is None else static.num_replays
    result = _compare_scores(exact, theirs, ours, forced, cases)
    return StageResult(result.checks, {**result.measured, "replays": replays})


def _compare_scores(
    exact: list[Tensor],
    theirs: list[Tensor],
    ours: list[Completion],
    forced: list[list[int]],
    cases: list[tuple[int, int]],
) -> StageResult:
    our_errors, their_errors, agreeing, decided = [], [], 0, 0
    for wanted, other, done, (_, question) in zip(exact, theirs, ours, cases, strict=True):
        ids = torch.tensor(forced[question], device=wanted.device)[:, None]
        true = wanted.gather(1, ids)[:, 0]
        our_errors.append((torch.tensor([score.logprob for score in done.scores], device=true.device) - true).abs())
        their_errors.append((other.gather(1, ids)[:, 0] - true).abs())
        best, likeliest = wanted.topk(2, dim=1)
        is_decided = best[:, 0] - best[:, 1] > _MARGIN
        tops = torch.tensor([score.likeliest_id for score in done.scores], device=true.device)
        decided += int(is_decided.sum())
        agreeing += int((tops == likeliest[:, 0])[is_decided].sum())
    us, them = torch.cat(our_errors), torch.cat(their_errors)
    checks = [
        at_most("mean error of log-probabilities", float(us.mean()), 1.5 * float(them.mean())),
        at_most("largest error of log-probabilities", float(us.max()), 1.5 * float(them.max())),
        at_least(f"positions with a margin over {_MARGIN}", decided, _LEAST_POSITIONS),
        at_most("likeliest ids that differ there", decided - agreeing, 0),
    ]
    return StageResult(checks, {"positions": us.numel(), "transformers_mean_error": float(them.mean())})


def check_graphs(setting: Setting) -> StageResult:
    """Asks the same with and without graphs; ids must be equal bit for bit, and a replay should pay."""
    if setting.device.type == "cpu":
        raise NotHere("a processor has no CUDA graphs")
    model, checkpoint = setting.make_model(torch.bfloat16)
    with setting.start_engine(model, checkpoint, graphs=False) as engine:
        expected = _ask_batch(setting, engine)
    del engine
    setting.release()
    with setting.start_engine(model, checkpoint) as engine:
        before = torch.cuda.memory_reserved()
        for _ in range(2):
            captured = _ask_batch(setting, engine)
        decoder = engine.thread.runner.static
        assert decoder is not None, "asked for"
        steps = [step for step in decoder._steps.values() if step.graph is not None][:6]
        times = [_time_step(setting, decoder, step) for step in steps]
    checks = [
        at_most("ids that differ", _count_different(captured, expected), 0),
        at_least("shapes that were captured", len(steps), 1),
        at_least("steps that were replayed", decoder.num_replays, 10),
    ]
    measured = {
        "capture_ms": 1e3 * decoder.capture_s / max(1, decoder.num_captures),
        "graph_bytes": torch.cuda.memory_reserved() - before,
        "shapes": times,
    }
    return StageResult(checks, measured)


def _time_step(setting: Setting, decoder: Any, step: Any) -> dict[str, float]:
    """Times a step kernel by kernel and as a graph; both write to pages that nobody reads any more."""

    def run_eagerly() -> None:
        with torch.inference_mode():
            decoder.decoder.run(step.numbers, step.penalties, step.shape)

    return {
        "rows": step.shape.rows,
        "eager_ms": 1e3 * _seconds_each(setting, run_eagerly, 10),
        "replay_ms": 1e3 * _seconds_each(setting, step.graph.replay, 10),
    }


def check_memory(setting: Setting) -> StageResult:
    """Lets memory run out, and breaks a capture; every question must end, and all memory must come back."""
    checks: list[Check] = []
    measured: dict[str, object] = {}
    with setting.make_engine(torch.bfloat16) as engine:
        calm = _ask_batch(setting, engine)
        with _failing_now_and_then(engine):
            shaken = _ask_batch(setting, engine)
        checks.append(at_least("memory faults that were undone", engine.stats.oom_recoveries, 2))
        checks.append(at_least("answers that begin alike after faults", _count_alike(shaken, calm), len(calm) * 2 // 3))
        if setting.device.type == "cuda":
            for left_gb in (2, 1, 0.5):
                checks.append(_check_ballast(setting, engine, calm, left_gb))
            checks += _check_broken_capture(engine)
        checks.append(at_most("prefix bytes held in the end", engine.stats.kv_prefix_bytes, 0))
    return StageResult(checks, measured)


@contextmanager
def _failing_now_and_then(engine: Engine) -> Iterator[None]:
    """Lets starts and steps of an engine run out of memory, as cuBLAS says it."""
    runner, counts = engine.thread.runner, {"start": 0, "decode": 0}

    def fail(name: str, run: Callable[..., list[int]], *arguments: Any) -> list[int]:
        counts[name] += 1
        if counts[name] in (2, 9):
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)` (injected)")
        return run(*arguments)

    for name in counts:
        setattr(runner, name, lambda *args, name=name: fail(name, getattr(ModelRunner, name), runner, *args))
    try:
        yield
    finally:
        for name in counts:
            delattr(runner, name)


def _check_ballast(setting: Setting, engine: Engine, calm: list[list[int]], left_gb: float) -> Check:
    allocated = torch.cuda.memory_allocated()
    torch.cuda.empty_cache()
    free_bytes, _ = torch.cuda.mem_get_info()
    ballast = torch.empty(max(0, free_bytes - int(left_gb * (1 << 30))), dtype=torch.uint8, device=setting.device)
    answers = _ask_batch(setting, engine)
    del ballast
    torch.cuda.empty_cache()
    kept = torch.cuda.memory_allocated() - allocated
    alike = _count_alike(answers, calm)
    return Check(
        f"with {left_gb} GB left",
        {"alike": alike, "bytes_kept": kept},
        f"at least {len(calm) * 2 // 3} answers that begin alike, less than 256 MB kept",
        alike >= len(calm) * 2 // 3 and kept < 256 << 20,
    )


def _check_broken_capture(engine: Engine) -> list[Check]:
    decoder = engine.thread.runner.static
    assert decoder is not None, "asked for"
    step = next(iter(decoder._steps.values()))
    run, graph, step.graph = decoder.decoder.run, step.graph, None
    decoder.decoder.run = lambda *_: step.numbers.ids[0].item()  # type: ignore[method-assign]  # asks while capturing
    try:
        with torch.inference_mode():
            decoder._capture(step)
    finally:
        decoder.decoder.run = run  # type: ignore[method-assign]
        step.graph = graph
    spare = torch.empty(1 << 30, dtype=torch.uint8, device=decoder._device)
    reserved = torch.cuda.memory_reserved()
    del spare
    torch.cuda.empty_cache()
    return [
        Check("the shape whose capture broke", step.may_be_captured, "captured no more", not step.may_be_captured),
        at_least("bytes given back after a broken capture", reserved - torch.cuda.memory_reserved(), 1 << 29),
    ]


def measure_workload(setting: Setting) -> StageResult:
    """Runs the mix of the recipe full and the benchmark's, and a little of the model card's loop."""
    num_full, num_captions, num_new, shorten = (1, 1, (4, 2), 16) if setting.is_small else (48, 24, (128, 32), 1)
    with setting.make_engine(torch.bfloat16) as engine:
        clips = setting.make_clips(4)
        if not setting.is_small:  # kernels are planned and graphs captured meanwhile
            run_full(engine, clips, 4)
        stats, before = engine.stats, (engine.stats.generated_tokens, engine.stats.decode_steps, engine.stats.busy_s)
        side, answers = run_full(engine, [clips[i % 4] for i in range(num_full)], 48, shorten)
        tokens, steps, busy_s = (
            after - then
            for after, then in zip((stats.generated_tokens, stats.decode_steps, stats.busy_s), before, strict=True)
        )
        plain = make_workload(num_captions, setting.num_frames, 384, *num_new)
        captions, plain_answers = run_engine(engine, plain)
        loop, loop_answers = run_model_card_loop(engine, plain, 1, num_questions=3)
        decoder = engine.thread.runner.static
    measured = {
        "full_clips_per_s": side.clips_per_s,
        "full_answers": answers,
        "rows_per_step": tokens / max(1, steps),
        "idle_fraction": 1 - busy_s / side.wall_s,
        "interpreter_wait_s": stats.interpreter_wait_s,
        "phases_s": {name: getattr(stats, name) for name in ("encode_s", "prefill_s", "question_s", "decode_s")},
        "caption_8_clips_per_s": captions.clips_per_s,
        "model_card_loop_s_per_3_answers": loop.wall_s,
        "replayed_fraction": 0.0 if decoder is None else decoder.num_replays / max(1, decoder.num_steps),
        "shapes": 0 if decoder is None else len(decoder._steps),
        "predicted": "0.9 to 1.1 clips/s for the mix of the recipe full of 64-frame clips, H100 and H200, as modelled",
    }
    checks = [
        at_least("answers to the mix of the recipe full", answers, 50 * num_full),
        at_least("answers to caption and 8 questions", len(plain_answers), 9 * num_captions),
        at_least("answers of the model card's loop", len(loop_answers), 3),
    ]
    return StageResult(checks, measured)


def profile_steps(setting: Setting) -> StageResult:
    """Lists the kernels of a tower batch and a prefill, of starts and of decoding steps."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setting.device.type == "cuda" else [])]
    with setting.make_engine(torch.bfloat16) as engine:
        batch = _BATCH[:1] if setting.is_small else _BATCH
        _ask_batch(setting, engine, batch)
        profiled = profile(activities=activities)
        # On the engine's thread: operations on a processor are seen on the thread that began to profile.
        _run_on_thread(engine, profiled.start)
        _ask_batch(setting, engine, batch)
        _run_on_thread(engine, profiled.stop)
    on_gpu = setting.device.type == "cuda"
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    rows = sorted(profiled.key_averages(), key=lambda event: getattr(event, key), reverse=True)
    top = [{"name": row.key[:120], "count": row.count, "ms": getattr(row, key) / 1e3} for row in rows[:15]]
    busy_s = sum(getattr(row, key) for row in rows) / 1e6
    return StageResult([at_least("kernels that were seen", len(top), 10)], {"top": top, "kernel_s": busy_s})


def _run_on_thread(engine: Engine, run: Callable[[], object]) -> None:
    """Runs something between two steps of the engine, and waits for it."""
    done: Future[object] = Future()
    engine.thread.send(lambda: done.set_result(run()))
    done.result(_ANSWER_S)


def _ask_batch(setting: Setting, engine: Engine, batch: Sequence[tuple[int, str]] = tuple(_BATCH)) -> list[list[int]]:
    """Asks the same questions of the same clips at once."""
    clips = setting.make_clips(_NUM_CLIPS)
    videos = [engine.open(clip.frames, clip.timestamps_s, clip.duration_s) for clip in clips]
    generation = GenerationConfig(max_new_tokens=setting.num_new_tokens)
    futures: list[Future[Completion]] = [videos[clip].ask(question, generation) for clip, question in batch]
    if wait(futures, _ANSWER_S).not_done:
        raise TimeoutError(f"questions had no answer after {_ANSWER_S} s")
    for video in videos:
        video.close()
    answers = [list(future.result().token_ids) for future in futures]
    engine.ask("Hi.", GenerationConfig(max_new_tokens=1)).result(
        _ANSWER_S
    )  # closings were read before this is answered
    return answers


def _ask_loop(loop: ModelCardLoop, clip: MadeClip, question: str, setting: Setting) -> list[int]:
    return loop.ask(clip.frames, clip.timestamps_s, clip.duration_s, question, setting.num_new_tokens)


@torch.inference_mode()
def _score_by_loop(loop: ModelCardLoop, clip: MadeClip, question: str, ids: list[int]) -> Tensor:
    prompt = loop.embed(clip.frames, clip.timestamps_s, clip.duration_s, question)
    module = loop._language
    answer = module.model.embed_tokens(torch.tensor(ids[:-1], device=prompt.device))
    logits = module(inputs_embeds=torch.cat([prompt, answer])[None], logits_to_keep=len(ids)).logits[0]
    return logits.float().log_softmax(-1)


def _draw_answer(seed: int, length: int, num_ids: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, min(num_ids, 800), (length,), generator=generator).tolist()  # special ids come later


def _count_different(some: list[list[int]], others: list[list[int]]) -> int:
    """Returns how many places of two lists of answers hold different ids, missing ones included."""
    pairs = list(zip(some, others, strict=True))
    return sum(sum(a != b for a, b in zip(x, y, strict=False)) + abs(len(x) - len(y)) for x, y in pairs)


def _count_alike(some: list[list[int]], others: list[list[int]]) -> int:
    """Returns how many answers begin with the same id; later ones may differ by rounding in other batches."""
    return sum(x[:1] == y[:1] for x, y in zip(some, others, strict=True))


@contextmanager
def _exact_float32() -> Iterator[None]:
    """Switches TF32 off, which keeps ten bits of float32 products."""
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(kept)


def _seconds_each(setting: Setting, run: Callable[[], object], number: int) -> float:
    run()
    _wait(setting)
    started = time.perf_counter()
    for _ in range(number):
        run()
    _wait(setting)
    return (time.perf_counter() - started) / number


def _wait(setting: Setting) -> None:
    if setting.device.type == "cuda":
        torch.cuda.synchronize(setting.device)
