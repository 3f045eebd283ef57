"""`python -m training`: parse, then run. Imports torch only once the options are known good."""

import logging
import os
import signal
import sys
from types import FrameType

from model.bundle.store import names
from model.errors import DataError, DropserveError, SettingsError
from model.settings import USAGE_STATUS, load_or_exit
from training.config import TrainingConfig

_INTERRUPTED_STATUS = 130  # 128 + SIGINT, as shells have it


def main(arguments: list[str]) -> int:
    """Run one training; return the exit status."""
    config = load_or_exit(TrainingConfig, arguments)
    there = names(config.output)
    if config.unless_exists and there:
        sys.stdout.write(f"{config.output / there[0]} is there already.\n")
        return 0
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("training").setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, _stop)
    # Torch's threads would spin while they wait for each other; where something else runs on the
    # machine, that makes training several times slower. Read when torch is imported, below.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from training.pipeline import train

        train(config)
    except (SettingsError, DataError) as error:
        return _fail(error, USAGE_STATUS)
    except DropserveError as error:
        return _fail(error, 1)
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        sentence = f"The run's files cannot be read or written ({named}{error.strerror or error}); "
        remedy = "free space, or choose other folders with --output and --runs."
        return _fail(DropserveError(sentence + remedy), 1)
    except KeyboardInterrupt as interrupt:
        sys.stderr.write(f"Interrupted; no bundle was written. {interrupt}".rstrip() + "\n")
        return _INTERRUPTED_STATUS
    return 0


def _stop(signum: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)  # unwinds, so that no draft of a bundle is left behind


def _fail(error: DropserveError, status: int) -> int:
    sys.stderr.write(f"{error}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
