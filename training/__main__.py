"""`python -m training`: validate the options, then train. Imports torch only after validation."""

import logging
import os
import signal
import sys
from types import FrameType

from model.bundle.store import list_models
from model.cli_and_env_settings import USAGE_EXIT_STATUS, load_or_exit
from model.errors import DataError, DropserveError, SettingsError
from training.config import TrainingConfig

_INTERRUPTED_STATUS = 130  # 128 + SIGINT, the convention of shells


def main(arguments: list[str]) -> int:
    """Run one training; return the exit status."""
    config = load_or_exit(TrainingConfig, arguments)
    existing = list_models(config.output)
    if config.unless_exists and existing:
        sys.stdout.write(f"{config.output / existing[0]} is there already.\n")
        return 0
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("training").setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, _exit_on_signal)
    # OpenMP threads of torch would otherwise spin while they wait for each other, which makes
    # training several times slower on a busy machine. Read when torch is imported, below.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from training.pipeline import train

        train(config)
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
        return _INTERRUPTED_STATUS
    return 0


def _exit_on_signal(signum: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)  # unwinds the stack, so that the draft of a bundle is removed


def _fail(error: DropserveError, status: int) -> int:
    sys.stderr.write(f"{error}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
