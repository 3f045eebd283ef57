"""Fixtures for all tests: one real bundle, trained once per session, and its test images."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from hypothesis import settings

from tests.homeless_training import train
from training.config import TrainingConfig
from training.data.dataset import Split, load_dataset

if TYPE_CHECKING:
    from tests.exported import Export, Exported

# Training and serving processes of several tests share two cores, where more OpenMP threads would
# only wait for each other. Set before torch is imported; child processes inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).parent.parent

settings.register_profile(
    "dropserve", deadline=None, derandomize=True
)  # a shared CPU has no reliable speed
settings.load_profile("dropserve")


@pytest.fixture(scope="session", autouse=True)
def no_service_variables() -> None:
    """Remove a developer's own DROPSERVE_ variables; those of training are kept."""
    for name in list(os.environ):
        if name.startswith("DROPSERVE_") and not name.startswith(
            ("DROPSERVE_TRAINING_", "DROPSERVE_DATA_DIR")
        ):
            del os.environ[name]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder with the output of one short training: `models`, `stdout` and `stderr`.

    With several test processes, the first one trains and the others wait. The training knows no
    home and no entry of its user, which tests/training/test_cache_folders.py is about.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "trained"
    options = ["--data", "digits", "--epochs", "8"]
    folders = ["--runs", str(folder / "runs"), "--output", str(folder / "models")]
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "stderr").exists():
            (folder / "temporary").mkdir(parents=True, exist_ok=True)
            done = train(ROOT, folder / "temporary", *options, *folders)
            assert done.returncode == 0, done.stderr
            (folder / "stdout").write_text(done.stdout)
            (folder / "stderr").write_text(done.stderr)
    return folder


@pytest.fixture(scope="session")
def models_folder(trained: Path) -> Path:
    """A models folder with one real bundle, `digits/1`, of a short training; tests only read it."""
    return trained / "models"


@pytest.fixture(scope="session")
def bundle_folder(models_folder: Path) -> Path:
    """The folder of the bundle `digits/1`; tests only read it."""
    return models_folder / "digits" / "1"


@pytest.fixture(scope="session")
def held_out() -> Split:
    """The test split of the digits: images uint8 [N, 1, 8, 8] and their labels."""
    return load_dataset(TrainingConfig(data="digits")).test


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> "Export":
    """Return a function that exports a new network of an architecture, once per session."""
    from tests.exported import exporter  # which imports torch

    return exporter(tmp_path_factory.mktemp)


@pytest.fixture(scope="session")
def cnn(export: "Export") -> "Exported":
    """The exported default preset for 8 x 8 grey images, with random weights."""
    from model.bundle.architecture_description import Architecture
    from tests.exported import DIGIT

    return export(Architecture(classes=10, input=DIGIT))
