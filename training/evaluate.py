"""`python -m training.evaluate BUNDLE`: measures a bundle on test images and writes a report.

Trains nothing and does not change the bundle.
"""

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from model.atomic_file_writing import write_whole
from model.bundle.architecture_description import AdoptedArchitecture
from model.bundle.store import Bundle, open_bundle, require_writable
from model.cli_and_env_settings import describe_validation_error, load_or_exit
from model.errors import DataError, SettingsError
from model.inference.predictor import Predictor
from model.inference.predictor_loading import load_predictor
from training.command_setup import names_missing_extra, run_logged_command
from training.config import NO_BACKBONE, DatasetConfig, TrainingConfig
from training.data_options import DataFolders
from training.evaluation.metrics_schema import EvaluationMetrics, OodEntry
from training.evaluation_config import EvaluationConfig

# Modules that need torch, SciPy or matplotlib are imported inside functions: that takes seconds,
# and `--help` and wrong options need none of them.
if TYPE_CHECKING:
    from training.data.dataset import Dataset
    from training.evaluation.metrics import Evaluation
    from training.report.html_report import ReportData

# Not `__name__`, which is `__main__` on the command line: `training` is what is logged.
logger = logging.getLogger("training.evaluate")

METRICS_FILE = "figures.json"
_SPLIT_OPTIONS = (
    "preset",
    "split_seed",
    "validation_share",
    "test_share",
    "duplicates",
    "max_image_megapixels",
)
"""Training options that decide the data split: with the same ones no training image is measured."""


@names_missing_extra
def main(arguments: list[str] | None = None) -> int:
    """Measure one bundle; return the exit status."""
    config = load_or_exit(EvaluationConfig, arguments)
    return run_logged_command(
        lambda: evaluate_bundle(config), "Interrupted; no report was written."
    )


def evaluate_bundle(config: EvaluationConfig) -> Path:
    """Measure a bundle as `config` describes, write the report, and return its folder.

    Raises:
        DropserveError: with one sentence that says what to do.
    """
    from training.report.html_report import HTML_FILE, write_evaluation_report

    bundle = open_bundle(config.bundle)
    manifest = bundle.manifest
    folder = config.output / f"{manifest.name}-{manifest.version}"
    require_writable(folder)
    data = load_data(bundle, config.data, config)
    data = _of_network_classes(data, bundle)
    if data.class_names != manifest.class_names:
        raise DataError(
            f"{data.name} has other classes than {config.bundle}; name a data set of the same "
            "classes with --data, or this one with --ood."
        )
    ood = None
    if config.ood is not None:
        ood = load_data(bundle, config.ood, config)
    metrics, report_data = measure(load_predictor(bundle), data, ood)
    write_whole(folder / METRICS_FILE, json.dumps(metrics, indent=2, allow_nan=False).encode())
    same = data.manifest_entry()["sha256"] == manifest.data.get("sha256")
    files = _files(data, report_data.evaluation)
    write_evaluation_report(
        folder, manifest.model_dump(), data.name, same, metrics, report_data, files
    )
    for line in summary_lines(metrics):
        logger.info(line)
    logger.info("The report: %s", folder / HTML_FILE)
    return folder


def _of_network_classes(data: "Dataset", bundle: Bundle) -> "Dataset":
    """Return images of some classes of an adopted network with the labels of its outputs.

    Raises:
        DataError: a class of the data is none of the network's, or may be several.
    """
    manifest = bundle.manifest
    names = manifest.class_names
    if data.class_names == names or not isinstance(manifest.architecture, AdoptedArchitecture):
        return data
    from training.adoption.class_names import match_classes
    from training.adoption.labelled_images import name_classes

    return name_classes(data, names, match_classes(data.class_names, names))


def _files(data: "Dataset", evaluation: "Evaluation") -> str:
    """Return the sections of the report that name image files; empty where there are none."""
    from training.evaluation.label_quality import find_label_candidates, name_candidates
    from training.report.data_section import files_section

    if data.test.names is None:
        return ""
    found = find_label_candidates(evaluation.answers.probabilities, evaluation.labels)
    return files_section(data.folder, name_candidates(found, data.test.names, data.class_names))


def measure(
    predictor: Predictor, data: "Dataset", ood: "Dataset | None"
) -> tuple[EvaluationMetrics, "ReportData"]:
    """Measure a bundle on test images; return the metrics, and what the plots show.

    Args:
        predictor: of the bundle.
        data: a data set of the bundle's classes.
        ood: a data set of other classes.
    """
    from training.evaluation.corruptions import corruption_curves
    from training.evaluation.metrics import evaluate, predict_split
    from training.evaluation.selective_prediction import (
        OodAnswers,
        ood_detection_metrics,
        selective_metrics,
    )
    from training.report.html_report import ReportData

    logger.info("Measuring %s test images, with dropout and without.", f"{len(data.test):,}")
    evaluation = evaluate(predictor, data.test, data.class_names)
    ood_answers = None
    ood_entry: OodEntry = {}
    if ood is not None:
        logger.info("Measuring %s images of %s.", f"{len(ood.test):,}", ood.name)
        ood_answers = OodAnswers(ood.name, predict_split(predictor, ood.test))
        scores = ood_detection_metrics(evaluation.answers, ood_answers.answers)
        ood_entry["strangers"] = {"name": ood.name, "images": len(ood.test), "scores": scores}
    metrics: EvaluationMetrics = {
        **evaluation.metrics,
        "trust": selective_metrics(evaluation, predictor.calibrator),
        **ood_entry,
    }
    logger.info("Measuring some of the test images with noise, rotated and blurred.")
    curves = corruption_curves(predictor, data.test)
    return metrics, ReportData(data.test, data.class_names, evaluation, curves, ood_answers)


def summary_lines(metrics: EvaluationMetrics) -> list[str]:
    """Return the most important metrics as a few lines of text."""
    quality = f"NLL {metrics['nll']:.4f}, ECE {metrics['ece']:.4f}"
    lines = [f"{metrics['images']:,} images: accuracy {metrics['accuracy']:.2%}, {quality}"]
    ood = metrics.get("strangers")
    if ood is not None:
        lines += [
            f"{ood['name']} as out-of-distribution images, by {score}: "
            f"AUROC {detection['auroc']:.4f}, FPR95 {detection['fpr95']:.1%}"
            for score, detection in ood["scores"].items()
        ]
    return lines


def load_data(bundle: Bundle, data: str | None, folders: DataFolders) -> "Dataset":
    """Load a data set so that its images fit the bundle's input; arguments as `dataset_config`.

    Raises:
        DropserveError: with one sentence that says what to do.
    """
    from training.data.dataset import load_dataset

    return load_dataset(dataset_config(bundle, data, folders), bundle.manifest.input)


def dataset_config(bundle: Bundle, data: str | None, folders: DataFolders) -> TrainingConfig:
    """Return which data set to load, divided as for the training of a bundle.

    Args:
        bundle: its data split is used.
        data: name of the data set; None for the one that the bundle was trained on.
        folders: where data sets are.

    Raises:
        SettingsError: there is no such data set.
    """
    manifest = bundle.manifest
    training = manifest.training
    name = data or training.get("data")
    if name is None:
        raise SettingsError(f"{bundle.path} does not say what it was trained on; name --data.")
    try:
        return DatasetConfig(
            data=name,
            name=manifest.name,
            data_dir=folders.data_dir,
            cache_dir=folders.cache_dir,
            **_learning(training, name),
            **{option: training[option] for option in _SPLIT_OPTIONS if option in training},
        )
    except ValidationError as error:
        raise SettingsError(describe_validation_error(error)) from None


def _learning(training: Mapping[str, Any], data: str) -> dict[str, Any]:
    """Return the options by which the images of a training were split; of other data, none."""
    if data != training.get("data"):
        return {"backbone": NO_BACKBONE}
    return {
        "backbone": training.get("backbone") or NO_BACKBONE,
        "learn": training.get("learn"),
    }


if __name__ == "__main__":
    sys.exit(main())
