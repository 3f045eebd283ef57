"""Compares a new bundle with an earlier one on the same test images.

Knows no training loop: both are measured as `training.evaluation.metrics` measures any bundle.
"""

import logging

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from model.bundle.store import Bundle, open_bundle
from model.errors import SettingsError
from model.inference.predictor_loading import load_predictor
from training.config import TrainingConfig
from training.data.dataset import Dataset
from training.evaluation.metrics import Evaluation, evaluate
from training.evaluation.metrics_schema import EarlierMetrics

logger = logging.getLogger(__name__)


def open_earlier(config: TrainingConfig, data: Dataset) -> Bundle | None:
    """Open the bundle that `config` compares with; None: it names none.

    Raises:
        BundleError: it cannot be opened.
        SettingsError: it takes other images, or has other classes, than `data`.
    """
    if config.compare_with is None:
        return None
    bundle = open_bundle(config.compare_with)
    manifest = bundle.manifest
    if (manifest.class_names, manifest.input) != (data.class_names, data.input):
        raise SettingsError(
            f"--compare-with: {config.compare_with} has other classes, or takes images of another "
            "size, than this training; name an earlier bundle of the same data and --image-size."
        )
    doubt = _doubt(bundle, data)
    if doubt is not None:
        logger.warning("Warning: %s: %s", config.compare_with, doubt)
    return bundle


def _doubt(earlier: Bundle, data: Dataset) -> str | None:
    """Return why a comparison on the test images of `data` may flatter a bundle; None: it does not.

    Bundles of earlier releases have no digest of their test images.
    """
    tested_on = earlier.manifest.data.get("test_sha256")
    if tested_on == data.test.digest_of_images():
        return None
    why = "does not say what it was tested on" if tested_on is None else "was tested on others"
    return (
        f"the earlier bundle may have been trained on some of these test images, as it {why}, so "
        "its figures may be too good."
    )


def compare_with_earlier(earlier: Bundle, data: Dataset, test: Evaluation) -> EarlierMetrics:
    """Measure an earlier bundle on the test images of `data`, beside the new one's `test`."""
    before = evaluate(load_predictor(earlier), data.test, data.class_names)
    was_right, is_right = _right(before), _right(test)
    only_now, only_before = int((is_right & ~was_right).sum()), int((was_right & ~is_right).sum())
    return {
        "name": earlier.manifest.name,
        "version": earlier.manifest.version,
        "accuracy": before.metrics["accuracy"],
        "nll": before.metrics["nll"],
        "ece": before.metrics["ece"],
        "right_now": only_now,
        "right_before": only_before,
        "p_value": mcnemar_p_value(only_now, only_before),
        "doubt": _doubt(earlier, data),
    }


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test, above 0 and up to 1 (McNemar 1947).

    Args:
        only_first: images that only the first of two networks answers rightly.
        only_second: images that only the second one does.
    """
    total = only_first + only_second
    return float(binomtest(only_first, total).pvalue) if total else 1.0


def _right(evaluation: Evaluation) -> NDArray[np.bool_]:
    right: NDArray[np.bool_] = evaluation.answers.probabilities.argmax(axis=1) == evaluation.labels
    return right
