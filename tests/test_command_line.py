"""What is typed: flags given twice, flags that are for another sub-command, and Ctrl-C."""

from __future__ import annotations

import ast
import re
import signal
import subprocess
import sys

import pytest

from framescribe.decoding.config import SamplingConfig
from framescribe.llava_video.engine.config import EngineConfig
from framescribe.storage.config import ReadConfig
from pipeline.config import UnitConfig
from pipeline.options import describe_flags, parse_command
from run_pipeline import main
from tests.support.run_fixtures import CHECKPOINT, ROOT, annotate_arguments, make_shard, start_run
from tests.support.shards_fixtures import write
from transforms.worker import WorkerConfig

_INTERRUPTED_IMPORT = """
import sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupting())
import run_pipeline
run_pipeline.main(["plan", "--input", "nowhere"])
"""


@pytest.mark.parametrize("command", [("annotate", "--output", "out"), ("plan",)])
def test_inputs_of_several_flags_are_all_taken(command):
    flags = parse_command([*command, "--input", "a", "b", "--input", "c"]).flags
    assert flags.input == ["a", "b", "c"]


def test_windows_that_nobody_means_are_refused_before_anything_is_written(tmp_path, capsys):
    clip = write(tmp_path / "a.mp4", b"")
    assert main(annotate_arguments(tmp_path, [clip], tmp_path / "out", "--split-seconds", "0.01")) == 1
    assert "windows of 0.01 s (--split-seconds), wanted at least 1 s" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("module", ["logging", "pipeline.options", "pipeline.commands", "pyarrow"])
def test_an_interruption_while_modules_are_imported_ends_without_a_traceback(module):
    code = _INTERRUPTED_IMPORT.format(module=module)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "\nframescribe: stopped\n")


@pytest.mark.parametrize("flags", [("--input", "a", "--output", ""), ("--input", " ", "--output", "out")])
def test_an_empty_place_is_not_the_current_folder(flags, capsys):
    with pytest.raises(SystemExit):
        parse_command(["annotate", *flags])
    assert "wanted a path or URI; an empty variable?" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["tpu", "cuda:", "cuda:x", "gpu", "mps", ""])
def test_a_device_of_another_kind_is_refused_as_it_is_typed(device, capsys):
    with pytest.raises(SystemExit):
        parse_command(["annotate", "--input", "a", "--output", "out", "--device", device])
    assert f"got '{device}', wanted cuda, the number of a GPU as in cuda:1, cpu or auto" in capsys.readouterr().err


def test_the_page_of_flags_is_what_the_parser_says():
    assert (ROOT / "docs" / "flags.md").read_text() == describe_flags() + "\n", "run `make docs`"


def _find_calls(name: str) -> list[ast.Call]:
    tree = ast.parse((ROOT / "pipeline" / "options.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == name]


def test_no_flag_holds_a_default_of_its_own():
    defaults = [word.value for call in _find_calls("add_argument") for word in call.keywords if word.arg == "default"]
    assert len(defaults) > 5
    assert [ast.unparse(one) for one in defaults if isinstance(one, ast.Constant)] == []


def test_settings_of_a_bare_command_are_the_defaults_of_the_dataclasses():
    flags = parse_command(["annotate", "--input", "a", "--output", "out"]).flags
    sampling, workers, engine = SamplingConfig(), WorkerConfig(), EngineConfig(flags.model)
    assert (
        SamplingConfig(
            max_frames=flags.num_frames,
            fps=flags.fps,
            time_base=flags.time_base,
            decoder=flags.decoder,
            deadline_s=flags.decode_deadline,
            min_decoded_fraction=flags.min_decoded_fraction,
        )
        == sampling
    )
    assert (
        WorkerConfig(
            flags.decoder_processes, int(flags.frame_memory_gib * 2**30), flags.prefetch_clips, flags.canary_every
        )
        == workers
    )
    assert UnitConfig(flags.clips_per_unit) == UnitConfig()
    assert ReadConfig(flags.video_column, flags.window_columns, trusted_hosts=(*flags.trusted_hosts,)) == ReadConfig()
    assert EngineConfig(
        flags.model, flags.revision, flags.device, flags.dtype, flags.attn_implementation, flags.device_map,
        prompt_layout=flags.prompt_layout, kv_budget_bytes=flags.kv_cache_gib,
    ) == engine  # fmt: skip


@pytest.mark.parametrize(
    "shown",
    [
        f"frames per clip, evenly spread (default: {SamplingConfig().max_frames})",
        f"clips per work unit (default: {UnitConfig().max_clips})",
        f"GiB of decoded frames that a worker keeps in memory (default: {WorkerConfig().frame_memory_bytes >> 30})",
        f"most seconds for decoding one clip (default: {SamplingConfig().deadline_s:g})",
    ],
)
def test_the_help_tells_the_default_of_the_dataclass(shown, capsys):
    with pytest.raises(SystemExit):
        parse_command(["annotate", "--help"])
    assert shown in re.sub(r"\s+", " ", capsys.readouterr().out)


def test_an_interrupted_run_says_what_is_kept_and_how_to_go_on(tmp_path):
    shard = make_shard(tmp_path / "shards" / "a.tar", 1)
    process = start_run(annotate_arguments(tmp_path, [shard], tmp_path / "out"))
    assert process.stderr is not None
    assert process.stderr.readline() == "1 clip in 1 unit\n"
    assert process.stderr.readline().startswith("0 of 1 clip done, 0 failed; ")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.endswith(
        f"framescribe: stopped; kept under {tmp_path}/out: 0 of 1 clip. The same command goes on from there, "
        f"`publish --output {tmp_path}/out` builds tables of what is finished\n"
    )


def test_a_plan_takes_the_command_line_of_the_run_that_it_is_for(tmp_path, capsys):
    write(tmp_path / "one" / "a.mp4", b"0")
    flags = [
        "--input",
        str(tmp_path / "one"),
        "--output",
        "out",
        "--model",
        CHECKPOINT,
        "--num-frames",
        "8",
        "--retry-failed",
    ]
    assert main(["plan", *flags, "--direct_num_workers=2"]) == 0
    assert capsys.readouterr().err.startswith("1 clip in 1 unit\n\nclips      1\n")


def test_the_help_of_plan_shows_the_flags_that_matter_to_it(capsys):
    with pytest.raises(SystemExit):
        parse_command(["plan", "--help"])
    shown = capsys.readouterr().out
    assert {"--clips-per-unit", "--machines", "--model", "--recipe", "--num-frames"} <= {*shown.split()}
    assert "--kv-cache-gib" not in shown


def test_a_plan_refuses_a_flag_that_annotate_has_not(capsys):
    with pytest.raises(SystemExit):
        parse_command(["plan", "--input", "a", "--modle", "b"])
    assert "unrecognised flag --modle; did you mean --model?" in capsys.readouterr().err


def test_a_plan_says_numbers_and_sizes_in_words_that_fit(tmp_path, capsys):
    write(tmp_path / "one" / "a.mp4", b"0" * 3_000_000)
    assert main(["plan", "--input", str(tmp_path / "one")]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("\t1 clip\t2.9 MiB\n")
    assert err.startswith("1 clip in 1 unit\n")
    assert "video      0.00 h, 2.9 MiB; by the headers of all clips\n" in err


@pytest.mark.parametrize(
    "flags", [("annotate", "--over"), ("annotate", "--retry"), ("plan", "--clips-per", "3"), ("publish", "--out", "x")]
)
def test_a_flag_that_is_cut_short_is_refused_with_the_whole_one(flags, capsys):
    command, cut, *rest = flags
    with pytest.raises(SystemExit) as exit_:
        parse_command([command, "--output", "out", cut, *rest])
    assert exit_.value.code == 2
    assert f"unrecognised flag {cut}; did you mean {cut}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "instead"),
    [
        ("--batch-size=8", "--kv-cache-gib"),
        ("--resume", "rerun the same command"),
        ("--prompt=Describe", "--recipe my.yaml"),
        ("--gpus=2", "--device cuda:1"),
        ("--num-workers=4", "--decoder-processes"),
        ("--model-name=7b", "use --model"),
        ("--temperature=0", "the model answers greedily"),
        ("--dry-run", "`plan`"),
    ],
)
def test_a_flag_of_other_programs_is_answered_with_what_to_use_here(flag, instead, capsys):
    with pytest.raises(SystemExit):
        parse_command(["annotate", "--input", "a", "--output", "out", flag])
    said = capsys.readouterr().err
    assert f"there is no flag {flag.partition('=')[0]}: " in said
    assert instead in said


_SERVER_FLAGS = (
    "--max_bundle_size=1000", "--number_of_execution_retries=3", "--object_reuse", "--checkpointing_interval", "5000",
)  # fmt: skip


def test_flags_that_only_a_job_server_knows_pass_with_a_warning(capsys):
    command = parse_command(["annotate", "--input", "a", "--output", "out", "--runner=FlinkRunner", *_SERVER_FLAGS])
    assert command.beam_flags == _SERVER_FLAGS
    assert capsys.readouterr().err == (
        "warning: neither ours nor of Beam's client, passed on to the job server of FlinkRunner: "
        "--max_bundle_size=1000 --number_of_execution_retries=3 --object_reuse --checkpointing_interval 5000\n"
    )


@pytest.mark.parametrize(
    "flags",
    [
        ("--runner=DirectRunner", "--max_bundle_size=3"),
        ("--runner=FlinkRunner", "--cool-flag"),
        ("--runner=FlinkRunner", "stray"),
    ],
)
def test_flags_that_nobody_can_mean_are_refused(flags, capsys):
    with pytest.raises(SystemExit):
        parse_command(["annotate", "--input", "a", "--output", "out", "--video-column", "v", *flags])
    assert "unrecognised flags, neither ours nor Beam's: " in capsys.readouterr().err


def test_a_misspelt_flag_of_ours_is_refused_for_every_runner(capsys):
    with pytest.raises(SystemExit):
        parse_command(["annotate", "--input", "a", "--output", "out", "--runner=FlinkRunner", "--retry_faild"])
    assert "unrecognised flag --retry_faild; did you mean --retry-failed?" in capsys.readouterr().err


def _run_shell(line: str) -> subprocess.CompletedProcess[str]:
    done = f"set -o pipefail; {line.replace('framescribe', f'{sys.executable} run_pipeline.py')}"
    return subprocess.run(["bash", "-c", done], cwd=ROOT, capture_output=True, text=True, check=False)


def test_without_a_sub_command_the_help_is_shown():
    done = _run_shell("framescribe")
    assert (done.returncode, done.stdout) == (2, "")
    assert "annotate | plan | pilot | publish" in done.stderr
    assert "read clips, annotate them, write tables" in done.stderr


def test_the_version_is_shown():
    done = _run_shell("framescribe --version")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"framescribe (\d+\.\d+\.\d+\S*|\(not installed\))\n", done.stdout)


def test_a_plan_of_which_only_the_head_is_read_ends_quietly(tmp_path):
    for number in range(3000):
        write(tmp_path / "clips" / f"{number:05d}.mp4", b"0")
    done = _run_shell(f"framescribe plan --input {tmp_path}/clips --clips-per-unit 1 | head -n 1")
    assert done.returncode == 0
    assert done.stdout.endswith("\t1 clip\t1 byte\n")
    assert done.stderr in ("", "3,000 clips in 3,000 units\n")


def test_nothing_is_said_of_libraries_that_are_not_needed(tmp_path):
    flag = "--runner=FlinkRunner --flink_master=localhost:1"  # makes Beam import all of its options
    done = _run_shell(f"framescribe plan --input {write(tmp_path / 'a.mp4', b'0')} {flag}")
    assert (done.returncode, done.stderr.splitlines()[:3]) == (0, ["1 clip in 1 unit", "", "clips      1"])
    assert "WARNING" not in done.stderr
