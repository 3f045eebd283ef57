"""Logs at the end of a command what it wrote, how good that is, and what to do next."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.bundle.store import REPORT_FILE
from training.data.excluded_files import counted
from training.evaluation.accuracy_against_chance import RightAnswers
from training.report.earlier_section import sentence_of_difference

logger = logging.getLogger(__name__)


def log_result(path: Path, manifest: Mapping[str, Any]) -> None:
    """Log a new bundle's metrics on its test images, with a warning where these prove nothing.

    Args:
        path: models/NAME/VERSION.
        manifest: of the bundle.
    """
    test = manifest["metrics"]["test"]
    answers = RightAnswers.of_counts(test["confusion_matrix"])
    low, high = answers.interval
    logger.info(
        "%s: test accuracy %.2f %% (95 %% interval %.1f to %.1f) on %s, NLL %.4f, ECE %.4f, "
        "%d parameters",
        *(path, 100 * test["accuracy"], 100 * low, 100 * high),
        counted(answers.images, "image"),
        *(test["nll"], test["ece"], manifest["parameters"]),
    )
    if answers.remark is not None:
        logger.warning("Warning: %s", answers.remark)
    if "earlier" in manifest["metrics"]:
        earlier = manifest["metrics"]["earlier"]
        logger.info(
            "Before, %s version %d: test accuracy %.2f %%, NLL %.4f; %s",
            *(earlier["name"], earlier["version"], 100 * earlier["accuracy"], earlier["nll"]),
            sentence_of_difference(earlier),
        )
    logger.info("The report: %s", path / REPORT_FILE)
    folder = path.parent.parent
    models = "" if folder == Path("models") else f" --models-folder {folder}"
    logger.info("Serve it: python -m service --default-model %s%s", path.parent.name, models)
