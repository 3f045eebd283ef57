"""Runs a training from its options to a bundle: load data, fit, export, verify, measure, report."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version as library_version
from itertools import chain
from pathlib import Path
from typing import Any

from model.bundle.store import MODEL_FILE, new_version, open_bundle, require_writable
from model.images.preprocessing import to_float
from model.inference.predictor import Predictor
from model.inference.predictor_loading import load_predictor
from model.uncertainty.calibration import CALIBRATION_FILE
from training.config import TrainingConfig
from training.data.batches import image_batches
from training.data.dataset import Dataset, load_dataset
from training.evaluation.corruptions import corruption_curves
from training.evaluation.metrics import evaluate
from training.evaluation.metrics_schema import BundleMetrics, DiagnosisMetrics, HiddenLayerMetrics
from training.evaluation.selective_prediction import selective_metrics
from training.export.calibrate import add_ood_score, calibrate, can_calibrate
from training.export.ood_statistics import names_of_statistics
from training.export.quantization_gate import PrecisionChoice, choose_precision
from training.export.to_onnx import PARITY_TOLERANCE, check_parity, export_graphs, write_golden
from training.fitting.run_folder import prepare_run_folder
from training.fitting.training_advice import advise
from training.fitting.training_loop import (
    LAST_CHECKPOINT,
    TrainResult,
    averaged_share,
    describe_architecture,
    fit,
)
from training.fitting.unit_diagnostics import count_deaths_and_revivals, diagnose
from training.network.classifier import Classifier, count_parameters
from training.network.prune import max_logit_difference, prune
from training.report.html_report import ReportData, write_card, write_plots

logger = logging.getLogger(__name__)

_PARITY_IMAGES = 256  # of the validation split, for the parity check and the golden file
_LIBRARIES = ("torch", "lightning", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow")


def train(config: TrainingConfig) -> Path:
    """Train as `config` describes, and return the folder of the new bundle.

    Raises:
        DropserveError: the run failed; its message tells the user what to do.
        KeyboardInterrupt: Ctrl-C; no bundle was written. Its message says if the run can resume.
    """
    require_writable(config.output)
    data = load_dataset(config)
    logger.info(
        "%s: %d training, %d validation and %d test images, %d classes",
        *(data.name, len(data.train), len(data.validation), len(data.test)),
        len(data.class_names),
    )
    run = prepare_run_folder(config, data)
    try:
        return _train_and_export(config, data, run)
    except KeyboardInterrupt:
        saved = (run / LAST_CHECKPOINT).is_file()
        raise KeyboardInterrupt("Go on with --resume." if saved else "") from None


def _train_and_export(config: TrainingConfig, data: Dataset, run: Path) -> Path:
    result = fit(config, data, run, resume=config.resume)
    health = (result.before, result.after, result.epochs)
    advice = advise(config.activation, config.peak_learning_rate, *health)
    for sentence in advice:
        logger.warning("Warning: %s", sentence)
    pruned = 0
    if config.prune_dead:
        network, pruned = prune_if_unchanged(result.network, data)
        result = replace(result, network=network)
    return export_bundle(config, data, result, advice, pruned)


def prune_if_unchanged(network: Classifier, data: Dataset) -> tuple[Classifier, int]:
    """Prune the units that are dead on all training and validation images; return their number.

    Returns:
        (pruned network, number of removed units), or (`network`, 0) if pruning would change a logit
        of a test image by more than the tolerance of the export.
    """
    batches = chain(image_batches(data.train), image_batches(data.validation))
    dead_units = [layer.dead_units for layer in diagnose(network, batches)]
    smaller, removed = prune(network, dead_units)
    worst = max_logit_difference(network, smaller, image_batches(data.test))
    if worst <= PARITY_TOLERANCE:
        logger.info("pruned %d dead units; the test logits moved by at most %.1g", removed, worst)
        return smaller, removed
    logger.warning(
        "Warning: nothing was pruned: without the %d dead units a test logit moves by %.2g, more "
        "than %g, so they fire on some test image.",
        *(removed, worst, PARITY_TOLERANCE),
    )
    return network, 0


def export_bundle(
    config: TrainingConfig, data: Dataset, result: TrainResult, advice: Sequence[str], pruned: int
) -> Path:
    """Export the network, verify and measure the export, write the bundle; return its folder.

    Args:
        config: the options of the run.
        data: its validation and test images are measured.
        result: the trained network and the course of its training.
        advice: the sentences of the diagnostics.
        pruned: number of dead units that were removed.

    Raises:
        ExportError: the export differs from the network.
        BundleError: the bundle cannot be written.
    """
    network, spec = result.network, data.input
    with new_version(config.output, config.model_name) as draft:
        calibrated = can_calibrate(data)
        export_graphs(network, (spec.channels, spec.height, spec.width), draft.path, calibrated)
        draft.manifest = _manifest(config, data, network)
        predictor = Predictor.open(draft.path, network.head.dropout_layers)
        images = to_float(data.validation.images[:_PARITY_IMAGES])
        logit_difference = check_parity(network, predictor, images)
        choice = _choose_precision(draft.path, network, data) if config.quantize else None
        if choice is not None and choice.precision == "int8":
            draft.manifest["precision"] = "int8"
        if calibrated:
            add_ood_score(draft.path / MODEL_FILE, data)
            draft.manifest["ood_statistics"] = names_of_statistics(network)
        predictor = Predictor.open(draft.path, network.head.dropout_layers)
        write_golden(predictor, images, draft.path)
        calibrator = calibrate(predictor, data)
        if calibrator is not None:
            calibrator.write(draft.path / CALIBRATION_FILE)
            draft.manifest["calibration"] = calibrator.parameters.model_dump()
            predictor = predictor.with_calibrator(calibrator)
        validation = evaluate(predictor, data.validation, data.class_names)
        test = evaluate(predictor, data.test, data.class_names)
        metrics: BundleMetrics = {
            "test": {**test.metrics, "trust": selective_metrics(test, calibrator)},
            "validation": validation.metrics,
            "parity": logit_difference,
            "quantization": None if choice is None else choice.metrics(),
            "epochs": len(result.history),
            "diagnosis": _diagnosis(result, advice, pruned),
        }
        draft.manifest["metrics"] = metrics
        corruptions = corruption_curves(predictor, data.test)
        report = ReportData(data.test, data.class_names, test, corruptions)
        plots = write_plots(draft.path, report, result)
        draft.write_versioned = lambda version: write_card(
            draft.path, draft.manifest, version, plots
        )
    path = config.output / config.model_name / str(draft.version)
    load_predictor(open_bundle(path))
    logger.info(
        "%s: test accuracy %.2f %%, NLL %.4f, ECE %.4f, %d parameters",
        path,
        *(100 * test.metrics["accuracy"], test.metrics["nll"], test.metrics["ece"]),
        draft.manifest["parameters"],
    )
    return path


def _choose_precision(folder: Path, network: Classifier, data: Dataset) -> PrecisionChoice:
    """Quantize the exported model if the gate accepts it, and log the decision."""
    choice = choose_precision(folder, network.head.dropout_layers, data)
    if choice.refusals:
        logger.warning(
            "Warning: int8 was refused and float32 kept, because of the validation images' %s.",
            "; ".join(choice.refusals),
        )
    else:
        logger.info(
            "int8: validation accuracy %.2f %%, from %.2f %%; NLL %.4f, from %.4f",
            *(100 * choice.int8["accuracy"], 100 * choice.fp32["accuracy"]),
            *(choice.int8["nll"], choice.fp32["nll"]),
        )
    return choice


def _manifest(config: TrainingConfig, data: Dataset, network: Classifier) -> dict[str, Any]:
    """Return the fields of the manifest that are known before the export is measured."""
    layers = network.head.dropout_layers
    return {
        "name": config.model_name,
        "class_names": data.class_names,
        "input": data.input.model_dump(),
        "architecture": describe_architecture(config, data).model_dump(),
        "parameters": count_parameters(network),
        "features": layers[0].width,
        "dropout_layers": [layer.model_dump() for layer in layers],
        "training": config.recorded_options() | _resolved_options(config, data),
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


def _resolved_options(config: TrainingConfig, data: Dataset) -> dict[str, Any]:
    """Return the values of the options whose defaults depend on the data set or the preset."""
    defaults = data.defaults
    return {
        "epochs": config.epochs or defaults.epochs,
        "batch_size": config.batch_size or defaults.batch_size,
        "augmentation": config.augmentation or defaults.augmentation,
        "learning_rate": config.peak_learning_rate,
        "dropout_samples": config.heads_per_step,
        "weight_averaging": averaged_share(config, data),
        "threads": config.threads or defaults.threads,
    }
