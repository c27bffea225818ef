"""FrameScribe's command line: its sub-commands, and what they exit with."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Sequence

_EXIT_ERROR, _EXIT_INTERRUPTED = 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one sub-command and returns the exit status; what the user can mend is one line, not a traceback."""
    try:
        status = _run(sys.argv[1:] if arguments is None else arguments)
        print(end="", flush=True)  # here, not when the interpreter ends, where a closed pipe is a trace
        return status
    except BrokenPipeError:
        if not _is_reader_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0  # as of `plan ... | head`: what was wanted was read
    except KeyboardInterrupt as interruption:
        print(f"\nframescribe: {str(interruption) or 'stopped'}", file=sys.stderr, flush=True)
        # Threads are in the middle of a clip or a listing and cannot be asked to stop; nothing half-done is visible.
        os._exit(_EXIT_INTERRUPTED)


def _is_reader_gone() -> bool:
    """Whether it is standard output that is closed at its other end, and not some connection."""
    waiting = select.poll()
    waiting.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in waiting.poll(0))


def _run(arguments: Sequence[str]) -> int:
    # Imports take a quarter of a second, in which Ctrl-C is to be heard too.
    import logging

    from pipeline.options import parse_command

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # They show traces of each try, with addresses as they are; what came of it is said by us.
    for client in ("azure", "gcsfs"):
        logging.getLogger(client).setLevel(logging.CRITICAL)
    # Beam warns of Google's client libraries, at import, even where nothing of Google's is used.
    logging.getLogger().addFilter(lambda record: "apitools" not in str(record.msg))
    command = parse_command(arguments)
    from pipeline.commands import COMMANDS, USER_ERRORS

    try:
        COMMANDS[command.name](command)
    except USER_ERRORS as error:
        print(f"framescribe {command.name}: {error}", file=sys.stderr)
        return _EXIT_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
