"""The gate of `--quantize`: an int8 graph takes the float32 graph's place if it answers as well.

Both are measured on the validation images through `model.inference.predictor`, before calibration. Nothing of
it sees a test image.
"""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from model.bundle.architecture import DropoutLayer
from model.bundle.store import HEAD_FILE, MODEL_FILE, Precision
from model.images.preprocessing import to_float
from model.inference.predictor import Predictor
from model.uncertainty.calibration import FEWEST_IMAGES
from training.data.dataset import DataSet, Split
from training.evaluation.metrics import answers, figures
from training.export.quantize import quantize

ACCURACY_FALL = 0.001
"""A tenth of a point. Of fewer than 1,000 images this allows none to be lost."""
LOSS_RISE = 0.005
"""Of NLL in nats, and of ECE: about as far as two trainings with different seeds are apart."""
DETECTION_FALL = 0.005
"""Of the chance that a mistake is more uncertain than a right answer, AUROC."""
INFORMATION_SHIFT = 0.05
"""Relative, of the mean mutual information, up or down: a threshold on it should keep its sense."""

CALIBRATION_IMAGES = 512
_CALIBRATION_PIXELS = 2**22
_SEED = 0

Figures = dict[str, float]


@dataclass(frozen=True)
class Choice:
    """Which graph a bundle has, and what it was chosen by."""

    precision: Precision
    refusals: tuple[str, ...]
    """Why int8 was refused, one phrase a figure; empty where it was not."""
    fp32: Figures
    int8: Figures
    calibration_images: int
    """That the layers' ranges were taken from."""

    def describes(self) -> dict[str, Any]:
        """Return what the manifest says of it."""
        return {
            "refusals": list(self.refusals),
            "calibration_images": self.calibration_images,
            "fp32": self.fp32,
            "int8": self.int8,
        }


def choose(folder: Path, layers: Sequence[DropoutLayer], data: DataSet) -> Choice:
    """Put the int8 graph into the place of `model.onnx` in `folder` if it passes the gate.

    Args:
        folder: with the float32 graphs.
        layers: the dropout layers of the head.
        data: layers' ranges are taken from its training part, figures from its validation part.

    Raises:
        ExportError: the graph cannot be quantised.
    """
    before = measure(Predictor.open(folder, layers), data.validation)
    images = _calibration_images(data.train)
    with tempfile.TemporaryDirectory() as temporary:
        tried = Path(temporary)
        quantize(folder / MODEL_FILE, images, tried / MODEL_FILE)
        shutil.copyfile(folder / HEAD_FILE, tried / HEAD_FILE)
        after = measure(Predictor.open(tried, layers), data.validation)
        refusals = refused(before, after, len(data.validation))
        if not refusals:
            shutil.copyfile(tried / MODEL_FILE, folder / MODEL_FILE)
    precision: Precision = "fp32" if refusals else "int8"
    return Choice(precision, tuple(refusals), before, after, len(images))


def measure(predictor: Predictor, part: Split) -> Figures:
    """Measure answers plain, and with dropout alive; AUROCs only where some answer is wrong.

    `mistakes_by_…` is the chance that a wrong answer has more of it than a right one.
    """
    given = answers(predictor, part)
    plain = figures(given.probabilities, part.labels)
    alive = figures(given.mean_probabilities, part.labels)
    information = given.uncertainty.mutual_information
    measured = {
        "accuracy": plain["accuracy"],
        "nll": plain["nll"],
        "ece": plain["ece"],
        "sampled_accuracy": alive["accuracy"],
        "sampled_nll": alive["nll"],
        "sampled_ece": alive["ece"],
        "mutual_information": float(information.mean()),
    }
    wrong = given.mean_probabilities.argmax(axis=1) != part.labels
    if 0 < wrong.sum() < len(wrong):
        entropy = given.uncertainty.predictive_entropy
        measured["mistakes_by_entropy"] = float(roc_auc_score(wrong, entropy))
        measured["mistakes_by_information"] = float(roc_auc_score(wrong, information))
    return measured


def refused(before: Figures, after: Figures, images: int) -> list[str]:
    """Say what of the figures after quantisation is worse than allowed, one phrase each."""
    if images < FEWEST_IMAGES:
        return [f"{images} validation images are too few to tell; {FEWEST_IMAGES} are needed"]
    found = []
    for name in before.keys() & after.keys():
        change = after[name] - before[name]
        if name.endswith("accuracy"):
            worse, allowed = -change, ACCURACY_FALL
        elif name.endswith(("nll", "ece")):
            worse, allowed = change, LOSS_RISE
        elif name.startswith("mistakes_by_"):
            worse, allowed = -change, DETECTION_FALL
        else:
            worse = abs(change) / max(before[name], np.finfo(np.float64).tiny)
            allowed = INFORMATION_SHIFT
        # Not `worse > allowed`, which NaN would pass; differences of decimals are off by a little.
        if not worse <= allowed + 1e-12:
            found.append(f"{name} {before[name]:.4f} became {after[name]:.4f}")
    return sorted(found)


def _calibration_images(train: Split) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Draw a few training images: float32 [N, C, H, W] in 0..1."""
    most = min(len(train), CALIBRATION_IMAGES, max(1, _CALIBRATION_PIXELS // train.images[0].size))
    rows = np.random.Generator(np.random.PCG64(_SEED)).permutation(len(train))[:most]
    return to_float(train.images[np.sort(rows)])
