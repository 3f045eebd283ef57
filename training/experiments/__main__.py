"""`python -m training.experiments NAME`. Imports torch only once the options are known good."""

import logging
import os
import sys
from importlib import import_module

from model.errors import DropserveError
from model.settings import USAGE_STATUS, load_or_exit
from training.experiments.settings import ExperimentSettings

_INTERRUPTED_STATUS = 130  # 128 + SIGINT, as shells have it


def main(arguments: list[str]) -> int:
    """Do one experiment; return the exit status."""
    settings = load_or_exit(ExperimentSettings, arguments)
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("training").setLevel(logging.INFO)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in training/__main__.py
    try:
        _do(settings)
    except DropserveError as error:
        sys.stderr.write(f"{error}\n")
        return USAGE_STATUS
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted; the same command goes on after the last whole trial.\n")
        return _INTERRUPTED_STATUS
    return 0


def _do(settings: ExperimentSettings) -> None:
    from rich.console import Console  # torch and rich take time to import

    from training.experiments.trial_runner import Lab

    lab = Lab(settings)
    experiment = import_module(f"training.experiments.{settings.experiment}")
    record = experiment.run(lab)
    record.print(Console())
    record.save(lab.folder, settings.command)
    if settings.record is not None:
        record.add_to(settings.record, settings.command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
