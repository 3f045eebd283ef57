"""`python -m training.experiments NAME`. Imports torch only after the options are validated."""

import logging
import os
import sys
from importlib import import_module

from model.cli_and_env_settings import USAGE_EXIT_STATUS, load_or_exit
from model.errors import DropserveError
from training.experiments.settings import EXPERIMENT_MODULES, ExperimentSettings

_INTERRUPTED_STATUS = 130  # 128 + SIGINT, the convention of shells


def main(arguments: list[str]) -> int:
    """Run one experiment; return the exit status."""
    settings = load_or_exit(ExperimentSettings, arguments)
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("training").setLevel(logging.INFO)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in training/__main__.py
    try:
        _run(settings)
    except DropserveError as error:
        sys.stderr.write(f"{error}\n")
        return USAGE_EXIT_STATUS
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted; the same command goes on after the last whole trial.\n")
        return _INTERRUPTED_STATUS
    return 0


def _run(settings: ExperimentSettings) -> None:
    from rich.console import Console  # imported here, as torch and rich import slowly

    from training.experiments.trial_runner import TrialRunner

    runner = TrialRunner(settings)
    experiment = import_module(f"training.experiments.{EXPERIMENT_MODULES[settings.experiment]}")
    record = experiment.run(runner)
    record.print(Console())
    record.save(runner.folder, settings.command)
    if settings.record is not None:
        record.add_to(settings.record, settings.command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
