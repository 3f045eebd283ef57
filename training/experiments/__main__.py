"""`python -m training.experiments NAME`. Imports torch only after the options are validated."""

import os
import sys
from dataclasses import replace
from importlib import import_module

from model.cli_and_env_settings import load_or_exit
from training.command_setup import names_missing_extra, run_logged_command
from training.experiments.settings import EXPERIMENT_MODULES, ExperimentSettings


@names_missing_extra
def main(arguments: list[str] | None = None) -> int:
    """Run one experiment; return the exit status."""
    settings = load_or_exit(ExperimentSettings, arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in training/__main__.py
    return run_logged_command(
        lambda: _run(settings),
        "Interrupted; the same command goes on after the last whole trial.",
    )


def _run(settings: ExperimentSettings) -> None:
    from rich.console import Console  # imported here, as torch and rich import slowly

    from training.experiments.trial_runner import TrialRunner

    runner = TrialRunner(settings)
    experiment = import_module(f"training.experiments.{EXPERIMENT_MODULES[settings.experiment]}")
    record = experiment.run(runner)
    form = "quick" if settings.quick else settings.data
    if form is not None:
        record = replace(record, name=f"{record.name}-{form}")
    record.print(Console())
    record.save(runner.folder, settings.command)
    if settings.record is not None:
        record.add_to(settings.record, settings.command)


if __name__ == "__main__":
    sys.exit(main())
