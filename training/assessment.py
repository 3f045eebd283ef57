"""Any bundle on any data: figures, trust and strangers, and the report of them.

Trains nothing and leaves the bundle as it is.
"""

import json
import logging
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from model.bundle.store import Bundle, open_bundle, require_writable
from model.errors import DataError, SettingsError
from model.inference.predictor import Predictor, open_tested
from model.settings import sentence
from training.config import EvaluationConfig, TrainingConfig
from training.data import dataset as data_sets
from training.data.dataset import DataSet
from training.evaluation import metrics as figures
from training.evaluation import selective as trust
from training.evaluation.corruptions import corruption_curves
from training.report.html import HTML_FILE, Subject, write_evaluation
from training.report.selective_plots import OodAnswers

logger = logging.getLogger(__name__)

FIGURES_FILE = "figures.json"
_DRAWING = ("preset", "split_seed", "validation_share", "test_share")
"""What a training says of how its images were drawn: the same draw keeps them out of the test."""


def assess(config: EvaluationConfig) -> Path:
    """Measure as `config` says, write the report, and return its folder.

    Raises:
        DropserveError: with one sentence that says what to do.
    """
    bundle = open_bundle(config.bundle)
    manifest = bundle.manifest
    folder = config.output / f"{manifest.name}-{manifest.version}"
    require_writable(folder)
    data = data_sets.load(described(bundle, config.data, config))
    if data.class_names != manifest.class_names:
        raise DataError(
            f"{data.name} has other classes than {config.bundle}; name a data set of the same "
            "classes with --data, or this one with --strangers."
        )
    others = None
    if config.strangers is not None:
        others = data_sets.load(described(bundle, config.strangers, config))
    subject, found = measured(open_tested(bundle), data, others)
    (folder / FIGURES_FILE).write_text(
        json.dumps(found, indent=2, allow_nan=False), encoding="utf-8"
    )
    same = data.describes() == manifest.data
    write_evaluation(folder, manifest.model_dump(), data.name, same, found, subject)
    for line in summary(found):
        logger.info(line)
    logger.info("The report: %s", folder / HTML_FILE)
    return folder


def measured(
    predictor: Predictor, data: DataSet, others: DataSet | None
) -> tuple[Subject, dict[str, Any]]:
    """Answer the test images, and those of another data set; return answers and figures."""
    evaluation = figures.evaluate(predictor, data.test, data.class_names)
    found = evaluation.metrics | {"trust": trust.measure(evaluation, predictor.calibrated)}
    strangers = None
    if others is not None:
        strangers = OodAnswers(others.name, figures.answers(predictor, others.test))
        scores = trust.strangers(evaluation.answers, strangers.answers)
        found["strangers"] = {"name": others.name, "images": len(others.test), "scores": scores}
    spoilt = corruption_curves(predictor, data.test)
    return Subject(data.test, data.class_names, evaluation, spoilt, strangers), found


def summary(found: dict[str, Any]) -> list[str]:
    """Say the most important figures in a few lines."""
    figure = f"accuracy {found['accuracy']:.2%}, NLL {found['nll']:.4f}, ECE {found['ece']:.4f}"
    lines = [f"{found['images']:,} images: {figure}"]
    strangers = found.get("strangers", {"scores": {}})
    lines += [
        f"{strangers['name']} as strangers, by {score}: AUROC {told['auroc']:.4f}, "
        f"FPR95 {told['fpr95']:.1%}"
        for score, told in strangers["scores"].items()
    ]
    return lines


def described(bundle: Bundle, data: str | None, config: EvaluationConfig) -> TrainingConfig:
    """Describe how to load a data set as the bundle takes its images.

    Raises:
        SettingsError: there is no such data set.
    """
    manifest = bundle.manifest
    named = data or manifest.training.get("data")
    if named is None:
        raise SettingsError(f"{config.bundle} does not say what it was trained on; name --data.")
    drawn = {name: manifest.training[name] for name in _DRAWING if name in manifest.training}
    try:
        return _Described(
            data=named,
            name=manifest.name,
            image_size=manifest.input.height,
            colour="grey" if manifest.input.channels == 1 else "rgb",
            resize=manifest.input.resize,
            data_dir=config.data_dir,
            cache_dir=config.cache_dir,
            **drawn,
        )
    except ValidationError as error:
        raise SettingsError(sentence(error)) from None


class _Described(TrainingConfig):
    """Takes nothing from the environment: it is no training of the user's."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *_: PydanticBaseSettingsSource,
        **__: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)
