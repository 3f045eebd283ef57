"""Adopts a network: reads, cuts, compares, calibrates, measures and publishes it as a bundle."""

import hashlib
import logging
from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import version as library_version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from model.bundle.architecture_description import (
    AdoptedArchitecture,
    DropoutLayer,
    PreprocessingOrigin,
)
from model.bundle.store import MODEL_FILE, Draft, new_version, open_bundle, require_writable
from model.errors import DataError
from model.images.preprocessing import InputSpec, to_float
from model.inference.predictor import Predictor
from model.inference.predictor_loading import load_predictor
from model.uncertainty.calibration import CALIBRATION_FILE
from training.adoption.adoption_config import AdoptionConfig
from training.adoption.class_names import match_classes, read_class_names
from training.adoption.class_order import check_class_order
from training.adoption.dropout_choice import DropoutChoice, choose_dropout
from training.adoption.dynamic_batch import free_batch
from training.adoption.graph_cut import Cut, choose_cut, find_tail
from training.adoption.input_layout import NetworkInput, Preprocessing, read_input
from training.adoption.labelled_images import load_images, name_classes
from training.adoption.network_graph import NetworkGraph
from training.adoption.original_network import Original, warn_of_batch_effects
from training.adoption.preprocessing_choice import choose_rule, possible_rules, stated_rule
from training.adoption.trunk_and_head import names_of_statistics, write_graphs
from training.data.dataset import Dataset
from training.evaluation.corruptions import corruption_curves
from training.evaluation.metrics import distribution_metrics, evaluate
from training.evaluation.metrics_schema import AdoptedMetrics
from training.evaluation.selective_prediction import selective_metrics
from training.export.calibrate import (
    add_ood_score,
    calibrate,
    can_calibrate,
    warn_if_uncalibrated,
)
from training.export.example_images import write_examples
from training.export.ood_statistics import PIXELS_PER_CHANNEL
from training.export.to_onnx import PARITY_IMAGES, write_golden
from training.report.html_report import ReportData, write_card, write_plots
from training.report.summary_in_the_log import log_result

logger = logging.getLogger(__name__)

_LIBRARIES = ("onnx", "onnxruntime", "numpy", "pillow")
HEURISTIC = (
    "The network was not trained with this dropout: it is a heuristic, chosen afterwards, and no "
    "posterior of a training. Its uncertainty is as good as the report measures, not more."
)


@dataclass(frozen=True)
class Source:
    """Where a network comes from, as the manifest records it."""

    file: str
    sha256: str | None

    @classmethod
    def of_file(cls, path: Path) -> "Source":
        """Describe an ONNX file that can be read."""
        with path.open("rb") as file:
            return cls(path.name, hashlib.file_digest(file, "sha256").hexdigest())


def adopt_network(model: onnx.ModelProto, source: Source, config: AdoptionConfig) -> Path:
    """Turn a network into a bundle, and return its folder.

    Args:
        model: from `training.adoption.network_file`.
        source: where it comes from.
        config: the user's options.

    Raises:
        DropserveError: with one sentence that says what to do; nothing was written then.
    """
    require_writable(config.output)
    image = read_input(model, config.height_and_width, config.channels, config.layout)
    bgr = config.colour == "bgr"
    rule = stated_rule(image, config.mean, config.std, config.pixel_maximum, bgr)
    network = NetworkGraph(model)
    plain = Preprocessing()
    network.observe(
        image.convert(np.full((image.batch or 2, *image.shape), 0.5, np.float32), plain)
    )
    cut = choose_cut(find_tail(network), config.cut)
    original = Original.start(model, image, cut.tail)
    spec = InputSpec(
        channels=1 if image.channels == 1 else 3,
        height=image.height,
        width=image.width,
        resize=config.resize,
    )
    data = _name_outputs(load_images(config, spec), config, cut)
    _log_cut(cut, data)
    origin: PreprocessingOrigin = "stated"
    others: Collection[Preprocessing] = ()
    if rule is None:
        rules = possible_rules(image, bgr)
        rule, others = choose_rule(original, rules, data.validation), rules.values()
        origin = "guessed" if len(others) > 1 else "network"
    logger.info("Preprocessing, %s: %s", origin, rule.describe())
    check_class_order(original, [rule, *others], data, config.classes)
    free_batch(network)
    adoption = _Adoption(config, source, network, image, cut, original, data, spec, rule, origin)
    with new_version(config.output, config.name) as draft:
        adoption.write(draft)
    path = config.output / config.name / str(draft.version)
    load_predictor(open_bundle(path))
    log_result(path, draft.manifest)
    return path


def _name_outputs(data: Dataset, config: AdoptionConfig, cut: Cut) -> Dataset:
    """Give the images the labels of the network's outputs."""
    outputs = cut.tail.classes
    if config.classes is None:
        if len(data.class_names) != outputs:
            raise DataError(
                f"The network has {outputs:,} outputs, but the data set {data.name!r} has "
                f"{len(data.class_names):,} classes; name the outputs in a file, one a line, with "
                "--classes."
            )
        return data
    names = read_class_names(config.classes)
    if len(names) != outputs:
        raise DataError(
            f"The network has {outputs:,} outputs, but {config.classes} names {len(names):,}; "
            "write one line an output, in their order."
        )
    return name_classes(data, names, match_classes(data.class_names, names))


def _log_cut(cut: Cut, data: Dataset) -> None:
    logger.info(
        "%s: %d images for the score, %d validation and %d test images",
        *(data.name, len(data.train), len(data.validation), len(data.test)),
    )
    warn_if_uncalibrated(data)
    undone = {
        "logits": "logits",
        "probabilities": "probabilities; the bundle's logits are taken before their softmax",
        "log-probabilities": "log-probabilities; the bundle's logits are before their softmax",
    }
    logger.info("The network's output: %s.", undone[cut.tail.output_kind])
    units = ", then ".join(f"{width:,}" for width in cut.widths)
    logger.info(
        "The head begins at dense layer %s; dropout of %s units.", cut.first_dense.name, units
    )


@dataclass(frozen=True)
class _Adoption:
    """Everything that a bundle is written from."""

    config: AdoptionConfig
    source: Source
    network: NetworkGraph
    image: NetworkInput
    cut: Cut
    original: Original
    data: Dataset
    spec: InputSpec
    rule: Preprocessing
    rule_origin: PreprocessingOrigin

    def write(self, draft: Draft) -> None:
        """Write the files of the bundle and its manifest."""
        data, calibrated = self.data, can_calibrate(self.data)
        write_graphs(self.network, self.image, self.rule, self.cut, draft.path, calibrated)
        images = to_float(data.validation.images[:PARITY_IMAGES])
        undropped = Predictor.open(
            draft.path, _layers([0.0] * len(self.cut.widths), self.cut.widths)
        )
        parity = self.original.check_parity(undropped, images, self.rule)
        logger.info(
            "Largest difference from the file's %s: %.2g", self.cut.tail.output_kind, parity
        )
        layers, choice = self._dropout_layers(draft.path)
        draft.manifest = self._manifest(layers)
        if calibrated:
            pixels = PIXELS_PER_CHANNEL * data.input.channels
            add_ood_score(draft.path / MODEL_FILE, data, pixels)
            draft.manifest["ood_statistics"] = names_of_statistics(self.network)
        predictor = Predictor.open(draft.path, layers)
        warn_of_batch_effects(predictor, images)
        write_golden(predictor, images, draft.path)
        calibrator = calibrate(predictor, data)
        if calibrator is not None:
            calibrator.write(draft.path / CALIBRATION_FILE)
            draft.manifest["calibration"] = calibrator.parameters.model_dump()
            predictor = predictor.with_calibrator(calibrator)
        validation = evaluate(predictor, data.validation, data.class_names)
        test = evaluate(predictor, data.test, data.class_names)
        metrics: AdoptedMetrics = {
            "test": {**test.metrics, "trust": selective_metrics(test, calibrator)},
            "validation": validation.metrics,
            "distributions": distribution_metrics(validation, calibrator),
            "parity": parity,
            "dropout_choice": None if choice is None else choice.metrics(),
        }
        draft.manifest["metrics"] = metrics
        draft.manifest["examples"] = write_examples(
            draft.path, data, validation, self.config.examples
        )
        curves = corruption_curves(predictor, data.test)
        report = ReportData(
            *(data.test, data.class_names, test, curves), shows_images=self.config.examples > 0
        )
        plots = write_plots(draft.path, report)
        draft.write_versioned = lambda version: write_card(
            draft.path, draft.manifest, version, plots
        )

    def _dropout_layers(self, folder: Path) -> tuple[list[DropoutLayer], DropoutChoice | None]:
        """Return the dropout layers: those of the file, or what the user or validation says."""
        widths, wanted = self.cut.widths, self.config.dropout
        if wanted is None and self.cut.trained:
            own = [each.p for each in self.cut.dropout]
            logger.info("Dropout of the network itself: %s.", ", ".join(f"{p:g}" for p in own))
            return _layers(own, widths), None
        logger.warning("Warning: %s", HEURISTIC)
        if wanted not in (None, "auto"):
            return _layers([float(wanted)] * len(widths), widths), None
        choice = choose_dropout(folder, widths, self.data.validation)
        return _layers([choice.p] * len(widths), widths), choice

    def _manifest(self, layers: list[DropoutLayer]) -> dict[str, Any]:
        """Return the fields of the manifest that are known before the bundle is measured."""
        own = self.config.dropout is None and self.cut.trained
        architecture = AdoptedArchitecture(
            file=self.source.file,
            sha256=self.source.sha256,
            preprocessing=self.rule.describe(),
            preprocessing_origin=self.rule_origin,
            output=self.cut.tail.output_kind,
            cut=self.cut.first_dense.name,
            dropout=layers[0].p,
            dropout_origin="network" if own else "heuristic",
            classes=len(self.data.class_names),
            input=self.spec,
        )
        return {
            "name": self.config.name,
            "class_names": self.data.class_names,
            "input": self.spec.model_dump(),
            "architecture": architecture.model_dump(),
            "parameters": self.network.count_parameters(),
            "features": layers[0].width,
            "dropout_layers": [layer.model_dump() for layer in layers],
            "training": {},
            "data": self.data.manifest_entry(),
            "libraries": {name: library_version(name) for name in _LIBRARIES},
        }


def _layers(probabilities: list[float], widths: list[int]) -> list[DropoutLayer]:
    return [DropoutLayer(p=p, width=width) for p, width in zip(probabilities, widths, strict=True)]
