"""Creates the numbered folder of a run for its logs and checkpoints, or finds the one to resume."""

import json
from contextlib import suppress
from pathlib import Path

from model.bundle.store import require_writable
from model.errors import SettingsError
from training.config import TrainingConfig
from training.data.dataset import Dataset
from training.fitting.training_loop import LAST_CHECKPOINT

_CONFIG_FILE = "config.json"


def prepare_run_folder(config: TrainingConfig, data: Dataset) -> Path:
    """Create the next folder `runs/NAME/NUMBER` with the options, or return the one to resume.

    Raises:
        SettingsError: there is no checkpoint to resume, or its run had other options or data.
    """
    folder = config.runs / config.model_name
    require_writable(folder)
    described = json.dumps(config.recorded_options() | {"data": data.manifest_entry()}, indent=2)
    if not config.resume:
        run = _create_next(folder)
        (run / _CONFIG_FILE).write_text(described)
        return run
    run = folder / str(_last_number(folder))
    if not (run / LAST_CHECKPOINT).is_file():
        raise SettingsError(f"--resume: {folder} has no checkpoint; start without --resume.")
    if (run / _CONFIG_FILE).read_text() != described:
        raise SettingsError(
            f"--resume: {run} was started with other options or images; "
            f"use those in {run / _CONFIG_FILE}, or start without --resume."
        )
    return run


def _last_number(folder: Path) -> int:
    return max((int(each.name) for each in folder.iterdir() if each.name.isdecimal()), default=0)


def _create_next(folder: Path) -> Path:
    """Create the folder of the next number; other processes may do so at the same time."""
    while True:
        run = folder / str(_last_number(folder) + 1)
        with suppress(FileExistsError):
            run.mkdir()
            return run
