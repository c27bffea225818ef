"""Runs a Beam pipeline where the user said, without a surprise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.runner import PipelineResult

# Beam's DirectRunner looks for Prism first and would download it; here the name means the in-process runner.
_IN_PROCESS = ("directrunner", "fnapirunner")
# Bundles of a stage are dealt out beforehand, so a few threads even out units of different size.
_BUNDLE_THREADS = 4


class UnknownRunner(ValueError):
    """No runner of Beam has that name."""


def is_in_process(runner: str) -> bool:
    """Whether the run happens in this very process."""
    return runner.lower() in _IN_PROCESS


def check_runner(runner: str) -> None:
    """Checks that Beam knows a runner.

    Raises:
        UnknownRunner: it does not, or cannot import it.
    """
    if is_in_process(runner):
        return
    from apache_beam.runners.runner import create_runner

    try:
        create_runner(runner)
    except (ValueError, ImportError, AttributeError) as error:
        raise UnknownRunner(f"--runner {runner}: {error}") from None


def make_options(runner: str, beam_flags: Sequence[str]) -> PipelineOptions:
    """Builds Beam's options, with our defaults for the in-process runner."""
    from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, SetupOptions

    flags = [f"--runner={'FnApiRunner' if is_in_process(runner) else runner}", *beam_flags]
    options = PipelineOptions(flags)
    options.view_as(SetupOptions).save_main_session = False  # everything is imported from the installed package
    if is_in_process(runner):
        direct = options.view_as(DirectOptions)
        direct.direct_running_mode = "multi_threading"
        if not any(flag.startswith("--direct_num_workers") for flag in beam_flags):
            direct.direct_num_workers = _BUNDLE_THREADS
    return options


def find_failures(result: PipelineResult | None) -> str | None:
    """Returns the state of a finished pipeline when it is not DONE."""
    state = getattr(result, "state", None)
    return None if state in (None, "DONE") else str(state)
