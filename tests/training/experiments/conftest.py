from pathlib import Path

import pytest

from training.experiments.settings import ExperimentName, ExperimentSettings
from training.experiments.trial import Trial
from training.experiments.trial_runner import Lab


@pytest.fixture
def small() -> Trial:
    """A trial of a second, on the digits."""
    return Trial(data="digits", widths=(32, 16), learning_rate=0.1, momentum=0.9, epochs=2)


def quick_lab(folder: Path, experiment: ExperimentName) -> Lab:
    return Lab(ExperimentSettings(experiment=experiment, quick=True, threads=1, output=folder))


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return quick_lab(tmp_path, "table")
