"""Ends a command with the right exit status, with one sentence on stderr where it is stopped.

Knows no command.
"""

import signal
import sys
from collections.abc import Callable

from model.cli_and_env_settings import USAGE_EXIT_STATUS
from model.errors import DropserveError

INTERRUPTED_STATUS = 128 + signal.SIGINT
"""The convention of shells."""


def run_command(run: Callable[[], int], interrupted: str) -> int:
    """Run a command whose options are valid; return the exit status.

    Args:
        run: the command, which returns its exit status; an error of this project, or of a file,
            ends it with a sentence on stderr.
        interrupted: what is written to stderr after Ctrl-C.
    """
    try:
        return run()
    except DropserveError as error:
        sys.stderr.write(f"{error}\n")
        return USAGE_EXIT_STATUS
    except OSError as error:
        file = error.filename or "A file"  # a full disk names none
        sys.stderr.write(
            f"{file} cannot be read or written ({error.strerror or error}); free space, or name "
            "another folder.\n"
        )
        return USAGE_EXIT_STATUS
    except KeyboardInterrupt:
        sys.stderr.write(f"{interrupted}\n")
        return INTERRUPTED_STATUS
