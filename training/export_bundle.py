"""Turns a trained network into a bundle: export, check, calibrate, measure, report, publish.

Knows no run folder and no other process.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version as library_version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.bundle.store import MODEL_FILE, Bundle, Draft, new_version, open_bundle
from model.images.preprocessing import to_float
from model.inference.predictor import Predictor
from model.inference.predictor_loading import load_predictor
from model.uncertainty.calibration import CALIBRATION_FILE, Calibrator
from training.adoption.original_network import warn_of_batch_effects
from training.config import TrainingConfig
from training.data.dataset import Dataset
from training.data.excluded_files import counted
from training.evaluation.corruptions import corruption_curves
from training.evaluation.earlier_bundle import compare_with_earlier
from training.evaluation.label_quality import (
    NamedCandidate,
    find_label_candidates,
    name_candidates,
)
from training.evaluation.metrics import (
    Evaluation,
    distribution_metrics,
    evaluate,
    evaluate_answers,
)
from training.evaluation.metrics_schema import BundleMetrics, DiagnosisMetrics, HiddenLayerMetrics
from training.evaluation.selective_prediction import selective_metrics
from training.export.calibrate import (
    add_cross_fitted_score,
    add_ood_score,
    calibrate,
    calibrate_held_out,
    can_calibrate,
)
from training.export.cross_fitted_outputs import HeldOut
from training.export.example_images import write_examples
from training.export.ood_statistics import (
    PIXELS_PER_CHANNEL,
    count_pixel_statistics,
    names_of_statistics,
)
from training.export.quantization_gate import PrecisionChoice, choose_precision
from training.export.to_onnx import PARITY_IMAGES, check_parity, export_graphs, write_golden
from training.fitting.training_loop import TrainResult, averaged_share, describe_architecture
from training.fitting.unit_diagnostics import count_deaths_and_revivals
from training.network.classifier import Classifier, Head, count_parameters
from training.report.data_section import files_section
from training.report.html_report import ReportData, write_card, write_plots
from training.report.summary_in_the_log import log_result
from training.transfer.cross_fitted_training import FrozenResult
from training.transfer.onnx_backbone import OnnxTrunk

logger = logging.getLogger(__name__)

_LIBRARIES = ("torch", "lightning", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow")


def export_bundle(
    config: TrainingConfig,
    data: Dataset,
    result: TrainResult,
    advice: Sequence[str],
    pruned: int,
    frozen: FrozenResult | None = None,
    earlier: Bundle | None = None,
) -> Path:
    """Export the network, verify and measure the export, write the bundle; return its folder.

    Args:
        config: the options of the run.
        data: its validation and test images are measured.
        result: the trained network and the course of its training.
        advice: the sentences of the diagnostics.
        pruned: number of dead units that were removed.
        frozen: the cross-fitted outputs, from which the bundle is then calibrated; None where the
            validation images were not trained on.
        earlier: a bundle to compare with; None: none.

    Raises:
        ExportError: the export differs from the network.
        BundleError: the bundle cannot be written.
    """
    with new_version(config.output, config.model_name) as draft:
        draft.manifest = _manifest(config, data, result.network, frozen)
        logit_difference, choice, statistics = _write_graphs(draft, config, data, result.network)
        predictor, held_out = _calibrated_predictor(
            draft, data, result.network.head, frozen, statistics
        )
        calibrator = predictor.calibrator
        if held_out is None:
            validation = evaluate(predictor, data.validation, data.class_names)
        else:
            validation = _evaluate_held_out(held_out, calibrator, data.class_names)
        test = evaluate(predictor, data.test, data.class_names)
        metrics: BundleMetrics = {
            "test": {**test.metrics, "trust": selective_metrics(test, calibrator)},
            "validation": validation.metrics,
            "distributions": distribution_metrics(validation, calibrator),
            "parity": logit_difference,
            "quantization": None if choice is None else choice.metrics(),
            "epochs": len(result.history) if frozen is None else None,
            "diagnosis": _diagnosis(result, advice, pruned),
        }
        draft.manifest["metrics"] = metrics
        draft.manifest["examples"] = write_examples(draft.path, data, validation, config.examples)
        if earlier is not None:
            metrics["earlier"] = compare_with_earlier(earlier, data, test)
        candidates = _label_candidates(data, validation, test)
        if candidates is not None:
            metrics["label_candidates"] = len(candidates)
        corruptions = corruption_curves(predictor, data.test)
        report = ReportData(
            *(data.test, data.class_names, test, corruptions), shows_images=config.examples > 0
        )
        _write_report(draft, result, report, files_section(data.folder, candidates or ()))
    path = config.output / config.model_name / str(draft.version)
    load_predictor(open_bundle(path))
    log_result(path, draft.manifest)
    return path


def _write_report(draft: Draft, result: TrainResult, report: ReportData, files: str) -> None:
    """Write the plots, and have the card written as soon as the draft has its version."""
    plots = write_plots(draft.path, report, result)
    draft.write_versioned = lambda version: write_card(
        draft.path, draft.manifest, version, plots, files
    )


@dataclass(frozen=True)
class _Statistics:
    """What the OOD score is computed from, as the exported graph has it."""

    names: Sequence[str]
    pixels: int
    """How many of the first ones are of the pixels."""


def _write_graphs(
    draft: Draft, config: TrainingConfig, data: Dataset, network: Classifier
) -> tuple[float, PrecisionChoice | None, _Statistics]:
    """Write both graphs, and put the trunk into 8-bit integers if that is wanted and good enough.

    Returns:
        the largest difference of a logit from the network's, the choice of the precision, None
        where it was not asked for, and the statistics of the graph.
    """
    statistics = _export(draft.path, data, network)
    predictor = Predictor.open(draft.path, network.head.dropout_layers)
    logit_difference = check_parity(network, predictor, _parity_images(data))
    if isinstance(network.trunk, OnnxTrunk):
        warn_of_batch_effects(predictor, _parity_images(data))
    if not config.quantize:
        return logit_difference, None, statistics
    choice = _choose_precision(draft.path, network, data)
    if choice.precision == "int8":
        draft.manifest["precision"] = "int8"
    return logit_difference, choice, statistics


def _export(folder: Path, data: Dataset, network: Classifier) -> _Statistics:
    spec, calibrated, trunk = data.input, can_calibrate(data), network.trunk
    if isinstance(trunk, OnnxTrunk):
        names = trunk.backbone.write_graphs(network.head, folder, calibrated)
        return _Statistics(names, PIXELS_PER_CHANNEL * spec.channels)
    export_graphs(network, (spec.channels, spec.height, spec.width), folder, calibrated)
    pixels = count_pixel_statistics(network, spec.channels)
    return _Statistics(names_of_statistics(network), pixels)


def _calibrated_predictor(
    draft: Draft,
    data: Dataset,
    head: Head,
    frozen: FrozenResult | None,
    statistics: _Statistics,
) -> tuple[Predictor, HeldOut | None]:
    """Write the OOD score, the golden outputs and the calibration; return the finished predictor.

    Returns:
        the predictor, calibrated where there are enough images, and the cross-fitted outputs that
        it was calibrated from; None where it was calibrated from validation images.
    """
    calibrated = can_calibrate(data)
    held_out = None if frozen is None else frozen.held_out()
    if calibrated:
        pixels = statistics.pixels
        if frozen is None or held_out is None:
            add_ood_score(draft.path / MODEL_FILE, data, pixels)
        else:
            scores = add_cross_fitted_score(
                draft.path / MODEL_FILE, data, held_out.logits, frozen.folds, pixels
            )
            held_out = replace(held_out, ood_scores=scores)
        draft.manifest["ood_statistics"] = statistics.names
    predictor = Predictor.open(draft.path, head.dropout_layers)
    write_golden(predictor, _parity_images(data), draft.path)
    if held_out is None:
        calibrator = calibrate(predictor, data)
    else:
        calibrator = calibrate_held_out(held_out) if calibrated else None
    if calibrator is not None:
        calibrator.write(draft.path / CALIBRATION_FILE)
        draft.manifest["calibration"] = calibrator.parameters.model_dump()
    return predictor.with_calibrator(calibrator), held_out


def _parity_images(data: Dataset) -> NDArray[np.float32]:
    return to_float(data.validation.images[:PARITY_IMAGES])


def _label_candidates(
    data: Dataset, validation: Evaluation, test: Evaluation
) -> list[NamedCandidate] | None:
    """Return the held-out images that are possibly in the wrong class; None without file names."""
    if data.validation.names is None or data.test.names is None:
        return None
    probabilities = [each.answers.probabilities for each in (validation, test)]
    candidates = find_label_candidates(
        np.concatenate(probabilities), np.concatenate([validation.labels, test.labels])
    )
    if candidates:
        named = counted(len(candidates), "held-out image")
        logger.info("Possibly in the wrong class: %s, named in report/files.html.", named)
    names = data.validation.names + data.test.names
    return name_candidates(candidates, names, data.class_names)


def _evaluate_held_out(
    held_out: HeldOut, calibrator: Calibrator | None, class_names: Sequence[str]
) -> Evaluation:
    """Measure the cross-fitted outputs of the training images, calibrated and not."""
    uncalibrated = held_out.answers(1.0, 1.0)
    if calibrator is None:
        return evaluate_answers(uncalibrated, None, held_out.labels, class_names)
    parameters = calibrator.parameters
    answers = held_out.answers(parameters.temperature, parameters.sampled_temperature)
    return evaluate_answers(answers, uncalibrated, held_out.labels, class_names)


def _choose_precision(folder: Path, network: Classifier, data: Dataset) -> PrecisionChoice:
    """Quantize the exported model if the gate accepts it, and log the decision."""
    choice = choose_precision(folder, network.head.dropout_layers, data)
    if choice.refusals:
        logger.warning(
            "Warning: int8 was refused on the validation images, and float32 kept: %s.",
            "; ".join(choice.refusals),
        )
    else:
        logger.info(
            "int8: validation accuracy %.2f %%, from %.2f %%; NLL %.4f, from %.4f",
            *(100 * choice.int8["accuracy"], 100 * choice.fp32["accuracy"]),
            *(choice.int8["nll"], choice.fp32["nll"]),
        )
    return choice


def _manifest(
    config: TrainingConfig, data: Dataset, network: Classifier, frozen: FrozenResult | None
) -> dict[str, Any]:
    """Return the fields of the manifest that are known before the export is measured."""
    layers = network.head.dropout_layers
    architecture, parameters = describe_architecture(config, data), count_parameters(network)
    if isinstance(network.trunk, OnnxTrunk):
        backbone = network.trunk.backbone
        architecture = architecture.model_copy(update={"backbone_file": backbone.describe()})
        parameters += backbone.count_parameters()
    return {
        "name": config.model_name,
        "class_names": data.class_names,
        "input": data.input.model_dump(),
        "architecture": architecture.model_copy(update={"dropout": layers[0].p}).model_dump(),
        "parameters": parameters,
        "features": layers[0].width,
        "dropout_layers": [layer.model_dump() for layer in layers],
        "training": config.recorded_options() | _resolved_options(config, data, frozen),
        "data": data.manifest_entry(),
        "libraries": {name: library_version(name) for name in _LIBRARIES},
    }


def _diagnosis(result: TrainResult, advice: Sequence[str], pruned: int) -> DiagnosisMetrics:
    """Return how the hidden layers fire on the validation images, as the manifest records it."""
    changes = count_deaths_and_revivals(result.before, result.epochs)
    layers: list[HiddenLayerMetrics] = [
        {
            "name": layer.name,
            "units": layer.units,
            "images": layer.images,
            "nearly_dead": layer.nearly_dead,
            "always_on": layer.always_on,
            "silenced_by_bias": layer.silenced_by_bias,
            "sparsity": layer.sparsity,
            "saturated": layer.saturated,
            "dead": layer.dead,
            "deaths": changes[layer.name].deaths,
            "revivals": changes[layer.name].revivals,
        }
        for layer in result.after
    ]
    return {"layers": layers, "advice": list(advice), "pruned_units": pruned}


def _resolved_options(
    config: TrainingConfig, data: Dataset, frozen: FrozenResult | None
) -> dict[str, Any]:
    """Return the values of the options whose defaults depend on the data set or the preset."""
    defaults = data.defaults
    resolved = {
        "augmentation": config.augmentation or defaults.augmentation,
        "threads": config.threads or defaults.threads,
    }
    if frozen is not None:
        return resolved | frozen.options_entry()
    return resolved | {
        "epochs": config.epochs or defaults.epochs,
        "batch_size": config.batch_size or defaults.batch_size,
        "learning_rate": config.peak_learning_rate,
        "dropout_samples": config.heads_per_step,
        "weight_averaging": averaged_share(config, data),
    }
