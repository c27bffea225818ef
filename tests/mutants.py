"""Puts small mistakes into the modules that carry promises, one at a time, and looks whether their tests notice.

`make test-mutants MUTANTS="--sample 150 --budget-s 1200"`: cosmic-ray makes the mistakes, in copies of the source.
Prints those that no test noticed, and ends with status 1 where fewer than 85 % were noticed.
"""

from __future__ import annotations

import argparse
import ast
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parent.parent
# Module to the files of its tests, `x` for tests/test_x.py: the quick and close ones first.
PROMISES: dict[str, str] = {
    "framescribe/decoding/damage.py": "timeline decoding_damage",
    "framescribe/decoding/sample.py": "decoding_videos",
    "framescribe/decoding/sampling.py": "sampling_indices seek_ranges",
    "framescribe/decoding/timeline.py": "timeline decoding_videos decoding_damage",
    "framescribe/digests.py": "sample_frames annotate_clips",
    "framescribe/llava_video/attention/cascade.py": "attention",
    "framescribe/llava_video/attention/static_decode.py": "choosing static_decode",
    "framescribe/llava_video/engine/loops.py": "loops",
    "framescribe/llava_video/engine/scheduler.py": "scheduler",
    "framescribe/llava_video/engine/tasks.py": "choosing scheduler",
    "framescribe/llava_video/model/checkpoint.py": "checkpoint",
    "framescribe/publish/publish.py": "publish publish_faults stores two_writers",
    "framescribe/publish/sort.py": "publish",
    "framescribe/publish/tables.py": "publish",
    "framescribe/recipes/answer_text.py": "parsers recipes_scoring recipes_questions",
    "framescribe/recipes/answers.py": "parsers",
    "framescribe/shards/tar_stream.py": "shards_tar fuzz_inputs",
    "framescribe/storage/addresses.py": "addresses storage",
    "framescribe/storage/exclusion.py": "stores",
    "framescribe/storage/journal.py": "run_folder publish storage two_writers",
    "framescribe/storage/local_files.py": "storage stores",
    "framescribe/storage/output.py": "storage stores two_writers",
    "framescribe/storage/parts.py": "publish",
    "framescribe/storage/plan.py": "run_folder start changed_inputs",
    "framescribe/storage/redaction.py": "storage addresses",
    "framescribe/storage/retries.py": "storage shards_store",
    "pipeline/checks.py": "run_folder earlier_run output_place left_out preflight changed_inputs",
    "pipeline/config.py": "fingerprint start",
    "pipeline/start.py": "run_folder earlier_run start retry_failed changed_inputs",
    "schemas/part_rows.py": "tables versions",
    "schemas/records.py": "commit_parts fingerprint",
    "schemas/run_columns.py": "versions",
    "transforms/annotate_clips.py": "annotate_clips",
    "transforms/answer_reuse.py": "clip_memory earlier_answers reuse_from",
    "transforms/canary.py": "canary",
    "transforms/commit_parts.py": "commit_parts two_writers retry_failed",
    "transforms/lookahead.py": "lookahead",
    "transforms/read_clips.py": "read_clips two_writers start retry_failed",
    "transforms/sample_frames.py": "sample_frames",
    "transforms/unit_outcomes.py": "commit_parts",
    "transforms/worker.py": "commit_parts worker",
}
# Words in the names of tests that take many seconds, most of them because they start whole programs.
_SLOW = (
    "at_once_on", "broken_file", "command_line", "demo_model", "digest_of_every_part", "ends_in_the_middle", "flipped",
    "goes_on_today", "has_planned_more", "kill", "minor_version", "newer_format", "of_real_clips",
    "removed_in_the_middle", "suspended", "travels_to_another", "wrote_it",
)  # fmt: skip
_PYTEST = f"-x -q -p no:cacheprovider -m 'not slow and not faults and not stores' -k 'not ({' or '.join(_SLOW)})'"
_WANTED_FRACTION = 0.85
_OWN = "framescribe"
# `is None` or `== None` is all the same; without decorators nothing works at all, which shows nothing.
_LEFT_OUT = ("NoOp", "RemoveDecorator", "ExceptionReplacer", "Is_Eq", "IsNot_NotEq", "Eq_Is", "NotEq_IsNot")
_PYTHON = str(ROOT / ".venv/bin/python")
_ENVIRONMENT = {
    "PYTHONDONTWRITEBYTECODE": "1",
    "CI": "1",  # the same examples of hypothesis each time
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
}
# Reads a line of arguments for pytest, and writes the id of the process that runs it and then how that one ended.
_FORK_TESTS = """
import os, shlex, sys
import aiohttp, apache_beam, av, fsspec, hypothesis, pandas, pyarrow.parquet, pydantic, pytest, torch, transformers
from apache_beam.testing import test_pipeline, util
for line in sys.stdin:
    tests = os.fork()
    if not tests:
        os.setsid()
        for descriptor in range(3):
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
        os._exit(pytest.main(shlex.split(line)))
    print(tests, flush=True)
    print(os.waitpid(tests, 0)[1], flush=True)
"""
Position = tuple[int, int]
Result = TypeVar("Result")


def files_of_tests(module: str) -> list[str]:
    """Returns the paths of a module's tests."""
    return [f"tests/test_{name}.py" for name in PROMISES[module].split()]


class Outcome(Enum):
    """What the tests of a module say under a mutant."""

    PASSED = "not noticed"
    FAILED = "noticed"
    HUNG = "noticed, for the tests hung"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One small mistake: the `occurrence`-th place of an operator in a module."""

    module: str
    operator: str
    occurrence: int
    line: int


def main() -> int:
    """Tries the mutants; returns the exit status."""
    flags = _parse_flags()
    chosen = choose_mutants(flags.sample, flags.seed, flags.modules)
    print(f"{len(chosen)} mutants of {len({one.module for one in chosen})} modules, seed {flags.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies = [WarmCopy(Path(folder) / str(number)) for number in range(flags.jobs)]
        try:
            timed = _in_copies(_time_tests, sorted({one.module for one in chosen}), copies)
            limits_s = {module: limit_s for module, limit_s in timed if limit_s is not None}
            fair = [one for one in chosen if one.module in limits_s]
            outcomes = _try_all(fair, copies, limits_s, time.monotonic() + flags.budget_s)
        finally:
            for copy in copies:
                copy.close()
    return max(_report(outcomes, len(fair)), len(limits_s) < len(timed))


def choose_mutants(num_mutants: int | None, seed: int, modules: Sequence[str] = ()) -> list[Mutant]:
    """Returns mutants in a random order, one at each place of the source, drawn from a seed."""
    draw = random.Random(seed)
    at_place: dict[tuple[str, Position, Position], list[Mutant]] = defaultdict(list)
    for module in modules or PROMISES:
        for mutant, start, stop in _find_mutants(module):
            at_place[module, start, stop].append(mutant)
    mutants = [draw.choice(one) for one in at_place.values()]
    draw.shuffle(mutants)
    return mutants[:num_mutants]


def _find_mutants(module: str) -> Iterator[tuple[Mutant, Position, Position]]:
    from cosmic_ray import plugins
    from cosmic_ray.ast import ast_nodes, get_ast_from_path

    _add_own_operators()
    ignored = list(_ignored_spans((ROOT / module).read_text(encoding="utf-8")))
    nodes = list(ast_nodes(get_ast_from_path(ROOT / module)))
    for name in plugins.operator_names():
        operator = plugins.get_operator(name)
        if name.endswith(_LEFT_OUT) or operator.arguments():
            continue
        places = (place for node in nodes for place in operator().mutation_positions(node))
        for occurrence, (start, stop) in enumerate(places):
            if not any(first <= start < last for first, last in ignored):
                yield Mutant(module, name, occurrence, start[0]), start, stop


def _ignored_spans(source: str) -> Iterator[tuple[Position, Position]]:
    """Yields where no promise is made: annotations, decorators, blocks for type checkers, and tuned constants.

    Whether a limit is 256 or 257, or a default 16 or 17, is a choice that no test need know.
    """
    tree = ast.parse(source)
    classes = [node.body for node in tree.body if isinstance(node, ast.ClassDef)]
    for node in (one for body in (tree.body, *classes) for one in body):
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            yield (node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0)
    for node in ast.walk(tree):
        ignored: list[Any] = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        ignored += getattr(node, "decorator_list", [])
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            ignored.append(node)
        for one in ignored:
            if isinstance(one, ast.AST):
                yield (one.lineno, one.col_offset), (one.end_lineno, one.end_col_offset)


def _add_own_operators() -> None:
    """Adds two: a call whose result nobody takes is left out, and another exception is caught.

    `store.remove(name)` becomes `None`, and `except OSError` becomes `except ZeroDivisionError`; cosmic-ray's own way
    with exceptions fails at dotted names.
    """
    import parso
    from cosmic_ray import plugins
    from cosmic_ray.operators.operator import Operator

    class OwnOperator(Operator):
        replacement = ""

        def find_nodes(self, node: Any) -> list[Any]:
            raise NotImplementedError

        def mutation_positions(self, node: Any) -> Iterator[tuple[Position, Position]]:
            for one in self.find_nodes(node):
                yield one.start_pos, one.end_pos

        def mutate(self, node: Any, index: int) -> Any:
            replaced = self.find_nodes(node)[index]
            other = parso.parse(self.replacement).children[0]
            other.prefix = replaced.get_first_leaf().prefix
            if replaced is node:
                return other
            siblings = replaced.parent.children
            siblings[siblings.index(replaced)] = other
            return node

        @classmethod
        def examples(cls) -> tuple[()]:
            return ()

    class LeaveOutCall(OwnOperator):
        replacement = "None"

        def find_nodes(self, node: Any) -> list[Any]:
            is_call = node.type == "atom_expr" and node.children[-1].type == "trailer"
            return [node] if is_call and node.parent.type == "simple_stmt" else []

    class CatchAnother(OwnOperator):
        replacement = "ZeroDivisionError"

        def find_nodes(self, node: Any) -> list[Any]:
            if node.type != "except_clause":
                return []
            caught = node.children[1]
            inside = caught.children[1] if caught.type == "atom" else caught  # of parentheses
            return inside.children[::2] if inside.type == "testlist_comp" else [inside]

    plugins.OPERATOR_PROVIDERS[_OWN] = {one.__name__: one for one in (LeaveOutCall, CatchAnother)}


class WarmCopy:
    """A copy of the source, and a process there that has imported what takes long: each run of tests is its fork."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        _copy_source(folder)
        # Byte code that is compared with the source, and never written again: two mutants may have one size and second.
        compiling = [_PYTHON, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", str(folder)]
        subprocess.run(compiling, check=True)
        environment = {**os.environ, **_ENVIRONMENT, "PYTHONPATH": str(folder)}
        self._process = subprocess.Popen(
            [_PYTHON, "-c", _FORK_TESTS], cwd=folder, env=environment, text=True, stdin=-1, stdout=-1
        )

    def run_tests(self, module: str, limit_s: float) -> Outcome:
        """Runs the tests of a module as its source stands in this copy."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(_PYTEST, *files_of_tests(module), file=self._process.stdin, flush=True)
        tests = int(self._process.stdout.readline())
        too_late = threading.Event()

        def give_up() -> None:
            too_late.set()
            os.killpg(tests, signal.SIGKILL)

        timer = threading.Timer(limit_s, give_up)
        timer.start()
        status = int(self._process.stdout.readline())
        timer.cancel()
        if too_late.is_set():
            return Outcome.HUNG
        return Outcome.FAILED if status else Outcome.PASSED

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def _copy_source(folder: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def _in_copies(
    attempt: Callable[[Any, WarmCopy], Result], tasks: Sequence[Any], copies: Sequence[WarmCopy]
) -> list[Result]:
    """Does every task in a copy that no other one uses meanwhile; returns the results in their order."""
    free: queue.SimpleQueue[WarmCopy] = queue.SimpleQueue()
    for copy in copies:
        free.put(copy)

    def attempt_in_copy(task: Any) -> Result:
        copy = free.get()
        try:
            return attempt(task, copy)
        finally:
            free.put(copy)

    with ThreadPoolExecutor(len(copies)) as workers:
        return list(workers.map(attempt_in_copy, tasks))


def _time_tests(module: str, copy: WarmCopy) -> tuple[str, float | None]:
    """Returns how long the tests of a module may take, for a mistake that makes them hang is noticed.

    None where they fail without any mutant: then they say nothing about one.
    """
    started = time.monotonic()
    is_sound = copy.run_tests(module, 600) is Outcome.PASSED
    wall_s = time.monotonic() - started
    verdict = "" if is_sound else " fail without any mutant, and it is left out"
    print(f"{wall_s:5.1f} s  tests of {module}{verdict}", flush=True)
    return module, 30 + 4 * wall_s if is_sound else None


def _try_all(
    mutants: Sequence[Mutant], copies: Sequence[WarmCopy], limits_s: dict[str, float], deadline_s: float
) -> list[Outcome]:
    def attempt(mutant: Mutant, copy: WarmCopy) -> Outcome | None:
        return None if time.monotonic() > deadline_s else _try(mutant, copy, limits_s[mutant.module])

    return [outcome for outcome in _in_copies(attempt, mutants, copies) if outcome is not None]


def _try(mutant: Mutant, copy: WarmCopy, limit_s: float) -> Outcome:
    """Returns what the tests say under a mutant; prints one that passes, or hangs, with its line as it was and is."""
    from cosmic_ray import plugins
    from cosmic_ray.mutating import mutate_code

    path = copy.folder / mutant.module
    source = path.read_text(encoding="utf-8")
    changed = mutate_code(source, plugins.get_operator(mutant.operator)(), mutant.occurrence)
    line = f"{source.splitlines()[mutant.line - 1].strip()}  ->  {changed.splitlines()[mutant.line - 1].strip()}"
    path.write_text(changed, encoding="utf-8")
    try:
        outcome = copy.run_tests(mutant.module, limit_s)
    finally:
        path.write_text(source, encoding="utf-8")
    if outcome is not Outcome.FAILED:
        print(f"{outcome.value}: {mutant.module}:{mutant.line} ({mutant.operator})\n    {line}", flush=True)
    return outcome


def _report(outcomes: Sequence[Outcome], num_chosen: int) -> int:
    num_noticed = sum(outcome is not Outcome.PASSED for outcome in outcomes)
    fraction = num_noticed / max(1, len(outcomes))
    print(f"{num_noticed} of {len(outcomes)} mutants noticed: {fraction:.1%}, wanted {_WANTED_FRACTION:.0%}", end="")
    print(f"; {outcomes.count(Outcome.HUNG)} of them because the tests hung", end="")
    print(f"; {num_chosen - len(outcomes)} not tried for want of time" if len(outcomes) < num_chosen else "")
    return 0 if outcomes and fraction >= _WANTED_FRACTION else 1


def _parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, metavar="N", help="so many mutants, drawn at random; all")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (0)")
    parser.add_argument(
        "--budget-s", type=float, default=3600.0, metavar="S", help="start no mutant after so long (3600)"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="mutants at a time, each in its own copy (1)")
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(PROMISES)}; all")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
