"""Makes a model of small colour pictures with a hundred classes, in a quarter of a minute."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.conftest import ROOT

NAME = "hundred"
CLASSES = 100
_SIZE = 16
_IMAGES_PER_CLASS = 12


def picture(number: int, variant: int) -> NDArray[np.uint8]:
    """Return a noisy picture, uint8 [16, 16, 3], of the class with this number."""
    shape = _SIZE, _SIZE, 3
    class_pattern = np.random.default_rng(number).integers(0, 256, shape)
    noise = np.random.default_rng((number, variant)).normal(0, 80, shape)
    return np.clip(class_pattern + noise, 0, 255).astype(np.uint8)


def train_hundred_classes(folder: Path, models_folder: Path) -> None:
    """Write the pictures into a new folder, and train `hundred/1` from them."""
    for number in range(CLASSES):
        class_folder = folder / "pictures" / f"kind {number:02}"
        class_folder.mkdir(parents=True)
        for variant in range(_IMAGES_PER_CLASS):
            Image.fromarray(picture(number, variant)).save(class_folder / f"{variant}.png")
    network = ["--backbone", "none", "--preset", "mlp", "--image-size", str(_SIZE)]
    length = ["--epochs", "3", "--augmentation", "none"]
    data = ["--data", f"folder:{folder / 'pictures'}", "--name", NAME]
    folders = ["--runs", str(folder / "runs"), "--output", str(models_folder)]
    command = [sys.executable, "-m", "training", *data, *network, *length, *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
