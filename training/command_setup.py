"""What the commands of this package share: log, caches, a sentence where libraries are missing."""

import functools
import logging
import sys
from collections.abc import Callable
from typing import ParamSpec

from model.cli_and_env_settings import USAGE_EXIT_STATUS
from model.command_exit_status import run_command
from training.cache_folders import use_writable_caches

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


def run_logged_command(run: Callable[[], object], interrupted: str) -> int:
    """Run a command whose options are valid, with its log; return the exit status.

    run, interrupted: as in `run_command`; a command that ends has status 0.
    """
    log_to_stdout()

    def run_with_caches() -> int:
        use_writable_caches()
        run()
        return 0

    return run_command(run_with_caches, interrupted)
