"""Creates the numbered folder of a run for its logs and checkpoints, or finds the one to resume.

It also remembers the bundles that were made of a run, so that `--resume` makes none twice.
"""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from model.bundle.store import require_writable
from model.errors import SettingsError
from training.config import TrainingConfig
from training.data.dataset import Dataset
from training.fitting.checkpoints import BEST_CHECKPOINT, LAST_CHECKPOINT

_CONFIG_FILE = "config.json"
_BUNDLES_FILE = "bundles.json"
_EXPORT_OPTIONS = {"output", "name", "quantize", "examples"}
"""Options that change a bundle and not the weights: with others a run may be exported again."""


def prepare_run_folder(config: TrainingConfig, data: Dataset) -> Path:
    """Create the next folder `runs/NAME/NUMBER` with the options, or return the one to resume.

    Raises:
        SettingsError: there is no checkpoint to resume, its run had other options or data, or it is
            finished, and its bundle is there.
    """
    folder = config.runs / config.model_name
    require_writable(folder, "--runs")
    described = json.dumps(config.recorded_options() | {"data": data.manifest_entry()}, indent=2)
    if not config.resume:
        run = _create_next(folder)
        (run / _CONFIG_FILE).write_text(described)
        return run
    run = _last_resumable(folder)
    differing = _differing_options(run, json.loads(described))
    if differing:
        raise SettingsError(
            f"--resume: {run} was started with others: {', '.join(differing)}; "
            f"use those in {run / _CONFIG_FILE}, or start without --resume."
        )
    for bundle, options in _read_bundles(run).items():
        if options == _export_options(config) and Path(bundle).is_dir():
            raise SettingsError(
                f"--resume: {run} is finished, and its bundle is {bundle}; to train again, start "
                "without --resume."
            )
    return run


def _differing_options(run: Path, described: dict[str, Any]) -> list[str]:
    """Return the flags, and the word images, that a run was started with others of."""
    started: dict[str, Any] = json.loads((run / _CONFIG_FILE).read_text())
    names = [name for name in started | described if started.get(name) != described.get(name)]
    return ["images" if name == "data" else f"--{name.replace('_', '-')}" for name in names]


def record_bundle(run: Path, config: TrainingConfig, bundle: Path) -> None:
    """Remember that a bundle was made of a run."""
    bundles = _read_bundles(run) | {str(bundle.absolute()): _export_options(config)}
    (run / _BUNDLES_FILE).write_text(json.dumps(bundles, indent=2))


def _read_bundles(run: Path) -> dict[str, Any]:
    """Return the export options of each bundle that was made of a run, by its folder."""
    try:
        bundles: dict[str, Any] = json.loads((run / _BUNDLES_FILE).read_text())
    except (OSError, ValueError):  # none was made, or the disk was full
        return {}
    return bundles


def _export_options(config: TrainingConfig) -> dict[str, Any]:
    absolute = config.model_copy(update={"output": config.output.absolute()})
    return absolute.model_dump(mode="json", include=_EXPORT_OPTIONS)


def _last_resumable(folder: Path) -> Path:
    """Return the last run that has a checkpoint; later ones have ended before their first."""
    for number in sorted(_numbers(folder), reverse=True):
        run = folder / str(number)
        if any((run / file).is_file() for file in (LAST_CHECKPOINT, BEST_CHECKPOINT)):
            return run
    raise SettingsError(f"--resume: {folder} has no checkpoint; start without --resume.")


def _numbers(folder: Path) -> list[int]:
    return [int(each.name) for each in folder.iterdir() if each.name.isdecimal()]


def _create_next(folder: Path) -> Path:
    """Create the folder of the next number; other processes may do so at the same time."""
    while True:
        run = folder / str(max(_numbers(folder), default=0) + 1)
        with suppress(FileExistsError):
            run.mkdir()
            return run
