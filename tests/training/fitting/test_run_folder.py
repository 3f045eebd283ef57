"""The folder of a run, and what a run that goes on must have in common with it."""

from dataclasses import replace
from pathlib import Path

import pytest

from model.errors import SettingsError
from training.config import DatasetConfig
from training.data.dataset import Dataset
from training.fitting.checkpoints import LAST_CHECKPOINT
from training.fitting.run_folder import prepare_run_folder


def test_resumed_run_names_each_option_that_differs_and_the_images(
    tmp_path: Path, dataset: Dataset
) -> None:
    config = DatasetConfig(data="digits", runs=tmp_path)
    run = prepare_run_folder(config, dataset)
    (run / LAST_CHECKPOINT).touch()
    again = config.model_copy(update={"resume": True})
    assert prepare_run_folder(again, dataset) == run
    changed = again.model_copy(update={"patience": 3, "dropout_samples": 2})
    fewer = replace(dataset, test=dataset.test.take(dataset.test.labels[:2]))
    expected = "with others: images, --dropout-samples, --patience; use those in .*config.json, or"
    with pytest.raises(SettingsError, match=expected):
        prepare_run_folder(changed, fewer)
