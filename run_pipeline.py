"""FrameScribe's command line: `annotate`, `plan` and `publish`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from pipeline.options import parse_command

_EXIT_ERROR, _EXIT_INTERRUPTED = 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one sub-command and returns the exit status; what the user can mend is one line, not a traceback."""
    command = parse_command(sys.argv[1:] if arguments is None else arguments)
    # Beam warns of Google's client libraries, at import, even where nothing of Google's is used.
    logging.getLogger().addFilter(lambda record: "apitools" not in str(record.msg))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    from pipeline.commands import COMMANDS, USER_ERRORS, Interrupted

    try:
        COMMANDS[command.name](command)
    except USER_ERRORS as error:
        print(f"framescribe {command.name}: {error}", file=sys.stderr)
        return _EXIT_ERROR
    except Interrupted as error:
        print(f"\nframescribe {command.name}: {error}", file=sys.stderr, flush=True)
        # Bundle threads are in the middle of a clip and cannot be asked to stop; nothing half-done is ever visible.
        os._exit(_EXIT_INTERRUPTED)
    return 0


if __name__ == "__main__":
    sys.exit(main())
