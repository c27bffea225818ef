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
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parent.parent
# Module to the arguments of pytest that select its tests: seconds, not minutes.
PROMISES: dict[str, str] = {
    "framescribe/decoding/sampling.py": "tests/test_sampling_indices.py",
    "framescribe/llava_video/attention/cascade.py": "tests/test_attention.py",
    "framescribe/llava_video/model/checkpoint.py": "tests/test_checkpoint.py",
    "framescribe/llava_video/attention/static_decode.py": "tests/test_choosing.py",
    "framescribe/llava_video/engine/loops.py": "tests/test_loops.py",
    "framescribe/llava_video/engine/scheduler.py": "tests/test_scheduler.py",
    "framescribe/llava_video/engine/tasks.py": "tests/test_choosing.py",
    "pipeline/config.py": "tests/test_fingerprint.py -k 'not gone_on and not refused'",
    "pipeline/start.py": "tests/test_run_folder.py tests/test_start.py",
    "framescribe/publish/sort.py": "tests/test_publish.py",
    "framescribe/publish/tables.py": "tests/test_publish.py",
    "framescribe/recipes/answers.py": "tests/test_parsers.py",
    "framescribe/recipes/answer_text.py": "tests/test_parsers.py tests/test_recipes_questions.py",
    "schemas/part_rows.py": "tests/test_tables.py tests/test_versions.py -k 'tables or kept or once_each'",
    "schemas/run_columns.py": "tests/test_versions.py -k 'patch or several or once_each or nothing or installed'",
    "framescribe/shards/tar_stream.py": "tests/test_shards_tar.py tests/test_fuzz_inputs.py -k 'tar'",
    "framescribe/storage/local_files.py": "tests/test_storage.py",
    "framescribe/storage/retries.py": "tests/test_storage.py",
    "framescribe/storage/journal.py": "tests/test_run_folder.py tests/test_publish.py tests/test_storage.py",
    "framescribe/storage/plan.py": "tests/test_start.py tests/test_run_folder.py",
    "transforms/worker.py": "tests/test_worker.py",
    "transforms/lookahead.py": "tests/test_lookahead.py",
    "transforms/unit_outcomes.py": "tests/test_commit_parts.py",
}
_WANTED_SHARE = 0.85
_OWN = "framescribe"
# `is None` or `== None` is all the same; without decorators nothing works at all, which shows nothing.
_LEFT_OUT = ("NoOp", "RemoveDecorator", "Is_Eq", "IsNot_NotEq", "Eq_Is", "NotEq_IsNot")
Position = tuple[int, int]
Result = TypeVar("Result")


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
        copies = [_copy_source(Path(folder) / str(number)) for number in range(flags.jobs)]
        limits_s = dict(_in_copies(_time_tests, sorted({one.module for one in chosen}), copies))
        outcomes = _try_all(chosen, copies, limits_s, time.monotonic() + flags.budget_s)
    return _report(outcomes, len(chosen))


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

    _add_own_operator()
    ignored = list(_ignored_spans((ROOT / module).read_text(encoding="utf-8")))
    tree = get_ast_from_path(ROOT / module)
    for name in plugins.operator_names():
        operator = plugins.get_operator(name)
        if name.endswith(_LEFT_OUT) or operator.arguments():
            continue
        places = (place for node in ast_nodes(tree) for place in operator().mutation_positions(node))
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


def _add_own_operator() -> None:
    """Adds an operator that leaves out a call whose result nobody takes: `store.remove(name)` becomes `None`."""
    import parso
    from cosmic_ray import plugins
    from cosmic_ray.operators.operator import Operator

    class LeaveOutCall(Operator):
        def mutation_positions(self, node: Any) -> Iterator[tuple[Position, Position]]:
            if node.type == "atom_expr" and node.parent.type == "simple_stmt" and node.children[-1].type == "trailer":
                yield node.start_pos, node.end_pos

        def mutate(self, node: Any, index: int) -> Any:
            left_out = parso.parse("None").children[0]
            left_out.prefix = node.get_first_leaf().prefix
            return left_out

        @classmethod
        def examples(cls) -> tuple[()]:
            return ()

    plugins.OPERATOR_PROVIDERS[_OWN] = {"LeaveOutCall": LeaveOutCall}


def _copy_source(folder: Path) -> Path:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def _run_tests(copy: Path, module: str, limit_s: float) -> bool:
    """Whether the module's tests pass, within the time."""
    command = f"{ROOT / '.venv/bin/python'} -B -m pytest -x -q -p no:cacheprovider {PROMISES[module]}"
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    tests = subprocess.Popen(command, shell=True, cwd=copy, env=environment, start_new_session=True, **quiet)
    try:
        return tests.wait(limit_s) == 0
    except subprocess.TimeoutExpired:
        os.killpg(tests.pid, 9)
        tests.wait()
        return False


def _in_copies(attempt: Callable[[Any, Path], Result], tasks: Sequence[Any], copies: Sequence[Path]) -> list[Result]:
    """Does every task in a copy that no other one uses meanwhile; returns the results in their order."""
    free: queue.SimpleQueue[Path] = queue.SimpleQueue()
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


def _time_tests(module: str, copy: Path) -> tuple[str, float]:
    """Returns how long the tests of a module may take; a mistake that makes them hang is noticed."""
    started = time.monotonic()
    if not _run_tests(copy, module, 600):
        raise SystemExit(f"the tests of {module} fail without any mutant: {PROMISES[module]}")
    return module, 30 + 4 * (time.monotonic() - started)


def _try_all(
    mutants: Sequence[Mutant], copies: Sequence[Path], limits_s: dict[str, float], deadline_s: float
) -> list[bool]:
    def attempt(mutant: Mutant, copy: Path) -> bool | None:
        return None if time.monotonic() > deadline_s else _is_noticed(mutant, copy, limits_s[mutant.module])

    return [outcome for outcome in _in_copies(attempt, mutants, copies) if outcome is not None]


def _is_noticed(mutant: Mutant, copy: Path, limit_s: float) -> bool:
    """Whether a test fails under a mutant; says where none does, with the line as it was and as it was changed to."""
    from cosmic_ray import plugins
    from cosmic_ray.mutating import mutate_code

    path = copy / mutant.module
    source = path.read_text(encoding="utf-8")
    changed = mutate_code(source, plugins.get_operator(mutant.operator)(), mutant.occurrence)
    line = f"{source.splitlines()[mutant.line - 1].strip()}  ->  {changed.splitlines()[mutant.line - 1].strip()}"
    path.write_text(changed, encoding="utf-8")
    try:
        is_noticed = not _run_tests(copy, mutant.module, limit_s)
    finally:
        path.write_text(source, encoding="utf-8")
    if not is_noticed:
        print(f"not noticed: {mutant.module}:{mutant.line} ({mutant.operator})\n    {line}", flush=True)
    return is_noticed


def _report(outcomes: Sequence[bool], num_chosen: int) -> int:
    noticed = sum(outcomes)
    share = noticed / max(1, len(outcomes))
    print(f"{noticed} of {len(outcomes)} mutants noticed: {share:.1%}, wanted {_WANTED_SHARE:.0%}", end="")
    print(f"; {num_chosen - len(outcomes)} not tried for want of time" if len(outcomes) < num_chosen else "")
    return 0 if outcomes and share >= _WANTED_SHARE else 1


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
