"""`python -m training.evaluate BUNDLE`: measures a bundle on test images and writes a report.

Trains nothing and does not change the bundle.
"""

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from model.bundle.store import Bundle, open_bundle, require_writable
from model.cli_and_env_settings import USAGE_EXIT_STATUS, describe_validation_error, load_or_exit
from model.errors import DataError, DropserveError, SettingsError
from model.inference.predictor import Predictor
from model.inference.predictor_loading import load_predictor
from training.config import EvaluationConfig, TrainingConfig
from training.data.dataset import Dataset, load_dataset
from training.evaluation.metrics_schema import EvaluationMetrics, OodEntry

# Modules that need torch, scikit-learn or matplotlib are imported inside functions: that takes
# seconds, and `--help` and wrong options need none of them.
if TYPE_CHECKING:
    from training.report.html_report import ReportData

# Not `__name__`, which is `__main__` on the command line: `main` sets the level of `training`.
logger = logging.getLogger("training.evaluate")

METRICS_FILE = "figures.json"
_INTERRUPTED_STATUS = 130  # 128 + SIGINT, as shells have it
_SPLIT_OPTIONS = ("preset", "split_seed", "validation_share", "test_share")
"""Training options that decide the data split: with the same ones no training image is measured."""


def main(arguments: list[str]) -> int:
    """Measure one bundle; return the exit status."""
    config = load_or_exit(EvaluationConfig, arguments)
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("training").setLevel(logging.INFO)
    try:
        evaluate_bundle(config)
    except DropserveError as error:
        sys.stderr.write(f"{error}\n")
        return USAGE_EXIT_STATUS
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted; no report was written.\n")
        return _INTERRUPTED_STATUS
    return 0


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
    data = load_dataset(dataset_config(bundle, config.data, config))
    if data.class_names != manifest.class_names:
        raise DataError(
            f"{data.name} has other classes than {config.bundle}; name a data set of the same "
            "classes with --data, or this one with --ood."
        )
    ood = None
    if config.ood is not None:
        ood = load_dataset(dataset_config(bundle, config.ood, config))
    metrics, report_data = measure(load_predictor(bundle), data, ood)
    (folder / METRICS_FILE).write_text(
        json.dumps(metrics, indent=2, allow_nan=False), encoding="utf-8"
    )
    same = data.manifest_entry() == manifest.data
    write_evaluation_report(folder, manifest.model_dump(), data.name, same, metrics, report_data)
    for line in summary_lines(metrics):
        logger.info(line)
    logger.info("The report: %s", folder / HTML_FILE)
    return folder


def measure(
    predictor: Predictor, data: Dataset, ood: Dataset | None
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

    evaluation = evaluate(predictor, data.test, data.class_names)
    ood_answers = None
    ood_entry: OodEntry = {}
    if ood is not None:
        ood_answers = OodAnswers(ood.name, predict_split(predictor, ood.test))
        scores = ood_detection_metrics(evaluation.answers, ood_answers.answers)
        ood_entry["strangers"] = {"name": ood.name, "images": len(ood.test), "scores": scores}
    metrics: EvaluationMetrics = {
        **evaluation.metrics,
        "trust": selective_metrics(evaluation, predictor.calibrator),
        **ood_entry,
    }
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


def dataset_config(bundle: Bundle, data: str | None, config: EvaluationConfig) -> TrainingConfig:
    """Return how to load a data set so that its images fit the bundle's input.

    Args:
        bundle: its input and its data split are used.
        data: name of the data set; None for the one that the bundle was trained on.
        config: names the folders of data sets.

    Raises:
        SettingsError: there is no such data set.
    """
    manifest = bundle.manifest
    training = manifest.training
    name = data or training.get("data")
    if name is None:
        raise SettingsError(f"{config.bundle} does not say what it was trained on; name --data.")
    try:
        return _DatasetConfig(
            data=name,
            name=manifest.name,
            image_size=manifest.input.height,
            colour="grey" if manifest.input.channels == 1 else "rgb",
            resize=manifest.input.resize,
            data_dir=config.data_dir,
            cache_dir=config.cache_dir,
            **{option: training[option] for option in _SPLIT_OPTIONS if option in training},
        )
    except ValidationError as error:
        raise SettingsError(describe_validation_error(error)) from None


class _DatasetConfig(TrainingConfig):
    """Reads no environment variable and no file: those are the settings of the user's trainings."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
