"""`python -m training`: validate the options, then train. Imports torch only after validation."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from model.bundle.store import list_models
from model.cli_and_env_settings import USAGE_EXIT_STATUS, load_or_exit
from model.command_exit_status import INTERRUPTED_STATUS
from model.errors import DataError, DropserveError, SettingsError
from training.cache_folders import use_writable_caches
from training.command_setup import log_to_stdout, names_missing_extra
from training.config import TrainingConfig


@names_missing_extra
def main(arguments: list[str] | None = None) -> int:
    """Run one training; return the exit status."""
    config = load_or_exit(TrainingConfig, arguments)
    if config.unless_exists:
        try:
            existing = list_models(config.output)
        except OSError as error:
            sentence = (
                f"--output: {config.output} cannot be read ({error.strerror}); choose another."
            )
            return _fail(SettingsError(sentence), USAGE_EXIT_STATUS)
        if existing:
            sys.stdout.write(f"{config.output / existing[0]} is there already.\n")
            return 0
    log_to_stdout()
    # OpenMP threads of torch would otherwise spin while they wait for each other, which makes
    # training several times slower on a busy machine. Read when torch is imported, below.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with _exit_on_sigterm():
            use_writable_caches()
            return _run(config, sys.argv[1:] if arguments is None else arguments)
    except (SettingsError, DataError) as error:
        return _fail(error, USAGE_EXIT_STATUS)
    except DropserveError as error:
        return _fail(error, 1)
    except OSError as error:
        file = f"{error.filename}: " if error.filename else ""
        sentence = f"The run's files cannot be read or written ({file}{error.strerror or error}); "
        remedy = "free space, or choose other folders with --output and --runs."
        return _fail(DropserveError(sentence + remedy), 1)
    except KeyboardInterrupt as interrupt:
        sys.stderr.write(f"Interrupted; no bundle was written. {interrupt}".rstrip() + "\n")
        return INTERRUPTED_STATUS


def _run(config: TrainingConfig, arguments: list[str]) -> int:
    """Train in this process, or start the processes that train together; return the status."""
    from training.distributed.launcher import find_processes, is_launched, launch

    if config.process_count > 1 and not is_launched():
        return launch("training", arguments, config.devices or 1, config.nodes)
    from training.fit_on_nonzero_rank import help_train
    from training.pipeline import train

    processes = find_processes(config)
    if processes.rank > 0:
        help_train(config, processes)
    else:
        train(config, processes)
    return 0


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that the draft of a bundle is removed.

    A second SIGTERM, as a launcher sends to what already ends, does not disturb that. Afterwards
    nothing is left to be put in order: in the interpreter's own exit an exception would be printed.
    """

    def exit_once(signum: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(128 + signum)

    previous = signal.signal(signal.SIGTERM, exit_once)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _fail(error: DropserveError, status: int) -> int:
    sys.stderr.write(f"{error}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
