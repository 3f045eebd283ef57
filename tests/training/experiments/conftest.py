from pathlib import Path

import pytest

from training.experiments.settings import ExperimentName, ExperimentSettings
from training.experiments.trial import Trial
from training.experiments.trial_runner import TrialRunner


@pytest.fixture
def small() -> Trial:
    """A trial of about a second on the digits."""
    return Trial(data="digits", widths=(32, 16), learning_rate=0.1, momentum=0.9, epochs=2)


def quick_runner(folder: Path, experiment: ExperimentName) -> TrialRunner:
    return TrialRunner(
        ExperimentSettings(experiment=experiment, quick=True, threads=1, output=folder)
    )


@pytest.fixture
def runner(tmp_path: Path) -> TrialRunner:
    return quick_runner(tmp_path, "table")
