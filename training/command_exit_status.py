"""What the commands of this package share: their log, and the exit status of what stops them."""

import functools
import logging
import sys
from collections.abc import Callable
from typing import ParamSpec

from model.cli_and_env_settings import USAGE_EXIT_STATUS
from model.errors import DropserveError
from training.cache_folders import use_writable_caches

INTERRUPTED_STATUS = 130
"""128 + SIGINT, the convention of shells."""


P = ParamSpec("P")


def names_missing_extra(main: Callable[P, int]) -> Callable[P, int]:
    """Let a command end with one sentence where the libraries of training are not installed."""

    @functools.wraps(main)
    def run(*arguments: P.args, **options: P.kwargs) -> int:
        try:
            return main(*arguments, **options)
        except ModuleNotFoundError as error:
            sys.stderr.write(
                f"This command needs {error.name}, which is not installed; run pip install "
                "'.[training]' in the folder of the project.\n"
            )
            return USAGE_EXIT_STATUS

    return run


def log_to_stdout() -> None:
    """Write the messages of the package `training` to stdout, a line each."""
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("training").setLevel(logging.INFO)


def run_command(run: Callable[[], object], interrupted: str) -> int:
    """Run a command whose options are valid; return the exit status.

    Args:
        run: the command; an error of this project, or of a file, ends it with a sentence on stderr.
        interrupted: what is written to stderr after Ctrl-C.
    """
    log_to_stdout()
    try:
        use_writable_caches()
        run()
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
    return 0
