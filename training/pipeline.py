"""One run from configuration to bundle: load, fit, export, check, measure, report, publish."""

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import version as library_version
from itertools import chain
from pathlib import Path
from typing import Any

from model.bundle.architecture import Architecture
from model.bundle.store import new_version, open_bundle, require_writable
from model.errors import SettingsError
from model.images.preprocessing import to_float
from model.inference.predictor import Predictor, open_tested
from model.uncertainty.calibration import CALIBRATION_FILE
from training.config import TrainingConfig
from training.data import dataset as data_sets
from training.data.batches import pixels
from training.data.dataset import DataSet
from training.evaluation.corruptions import corruption_curves
from training.evaluation.metrics import evaluate
from training.evaluation.selective import measure
from training.export.calibrate import calibrate
from training.export.quantization_gate import Choice, choose
from training.export.to_onnx import PARITY_TOLERANCE, export_graphs, parity, write_golden
from training.fitting.diagnostics import diagnose, turnover
from training.fitting.loop import LAST_CHECKPOINT, TrainResult, architecture, fit
from training.fitting.troubleshooting import advise
from training.network.classifier import Classifier, count_parameters
from training.network.prune import difference, prune
from training.report.html import Subject, write_card, write_plots

logger = logging.getLogger(__name__)

_CONFIG_FILE = "config.json"
_PARITY_IMAGES = 256
_LIBRARIES = ("torch", "lightning", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow")


def train(config: TrainingConfig) -> Path:
    """Train as `config` says, and return the folder of the new bundle.

    Raises:
        DropserveError: each with one sentence that says what to do.
        KeyboardInterrupt: Ctrl-C; no bundle was written. It says so where the run can go on.
    """
    require_writable(config.output)
    data = data_sets.load(config)
    logger.info(
        "%s: %d training, %d validation and %d test images, %d classes",
        *(data.name, len(data.train), len(data.validation), len(data.test)),
        len(data.class_names),
    )
    run = run_folder(config, data)
    try:
        return _to_bundle(config, data, run)
    except KeyboardInterrupt:
        saved = (run / LAST_CHECKPOINT).is_file()
        raise KeyboardInterrupt("Go on with --resume." if saved else "") from None


def _to_bundle(config: TrainingConfig, data: DataSet, run: Path) -> Path:
    fitted = fit(config, data, run, resume=config.resume)
    health = (fitted.before, fitted.after, fitted.epochs)
    advice = advise(config.activation, config.peak_learning_rate, *health)
    for sentence in advice:
        logger.warning("Warning: %s", sentence)
    removed = 0
    if config.prune_dead:
        network, removed = pruned(fitted.network, data)
        fitted = replace(fitted, network=network)
    return export_bundle(config, data, fitted, advice, removed)


def pruned(network: Classifier, data: DataSet) -> tuple[Classifier, int]:
    """Return the network without the units dead on training and validation images, and how many.

    It is the network itself, and 0, where the test images' logits would differ by more than the
    export may differ.
    """
    known = chain(pixels(data.train), pixels(data.validation))
    smaller, removed = prune(network, diagnose(network, known))
    worst = difference(network, smaller, pixels(data.test))
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
    config: TrainingConfig, data: DataSet, fitted: TrainResult, advice: Sequence[str], removed: int
) -> Path:
    """Export the network, hold it to its gates, measure the export and write the bundle.

    Args:
        config: the run's description.
        data: where the figures come from.
        fitted: the network and how it came to be.
        advice: what the diagnosis found.
        removed: how many dead units were pruned.

    Raises:
        ExportError: the export differs from the network.
        BundleError: the bundle cannot be written.
    """
    described = architecture(config, data)
    network, spec = fitted.network, data.input
    with new_version(config.output, config.model_name) as draft:
        export_graphs(network, (spec.channels, spec.height, spec.width), draft.path)
        draft.manifest = _manifest(config, data, network, described)
        predictor = Predictor.open(draft.path, network.head.dropout_layers)
        images = to_float(data.validation.images[:_PARITY_IMAGES])
        difference = parity(network, predictor, images)
        choice = _quantised(draft.path, network, data) if config.quantize else None
        if choice is not None and choice.precision == "int8":
            draft.manifest["precision"] = "int8"
            predictor = Predictor.open(draft.path, network.head.dropout_layers)
        write_golden(predictor, images, draft.path)
        predictor.calibrated = calibrate(predictor, data)
        if predictor.calibrated is not None:
            predictor.calibrated.write(draft.path / CALIBRATION_FILE)
            draft.manifest["calibration"] = predictor.calibrated.numbers.model_dump()
        validation = evaluate(predictor, data.validation, data.class_names)
        test = evaluate(predictor, data.test, data.class_names)
        trust = measure(test, predictor.calibrated)
        draft.manifest["metrics"] = {
            "test": test.metrics | {"trust": trust},
            "validation": validation.metrics,
            "parity": difference,
            "quantization": None if choice is None else choice.describes(),
            "epochs": len(fitted.history),
            "diagnosis": _diagnosis(fitted, advice, removed),
        }
        subject = Subject(
            data.test, data.class_names, test, corruption_curves(predictor, data.test)
        )
        pictures = write_plots(draft.path, subject, fitted)
        draft.describe = lambda version: write_card(draft.path, draft.manifest, version, pictures)
    path = config.output / config.model_name / str(draft.version)
    open_tested(open_bundle(path))
    metrics = test.metrics
    logger.info(
        "%s: test accuracy %.2f %%, NLL %.4f, ECE %.4f, %d parameters",
        path,
        *(100 * metrics["accuracy"], metrics["nll"], metrics["ece"]),
        draft.manifest["parameters"],
    )
    return path


def _quantised(folder: Path, network: Classifier, data: DataSet) -> Choice:
    choice = choose(folder, network.head.dropout_layers, data)
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


def run_folder(config: TrainingConfig, data: DataSet) -> Path:
    """Make the next numbered folder for logs and checkpoints, or find the one to resume.

    Raises:
        SettingsError: there is nothing to resume, or it had other options or other data.
    """
    folder = config.runs / config.model_name
    require_writable(folder)
    described = json.dumps(config.describes() | {"data": data.describes()}, indent=2)
    if not config.resume:
        run = _next_run(folder)
        (run / _CONFIG_FILE).write_text(described)
        return run
    run = folder / str(_last_run(folder))
    if not (run / LAST_CHECKPOINT).is_file():
        raise SettingsError(f"--resume: {folder} has no checkpoint; start without --resume.")
    if (run / _CONFIG_FILE).read_text() != described:
        raise SettingsError(
            f"--resume: {run} was started with other options or images; "
            f"use those in {run / _CONFIG_FILE}, or start without --resume."
        )
    return run


def _last_run(folder: Path) -> int:
    return max((int(each.name) for each in folder.iterdir() if each.name.isdecimal()), default=0)


def _next_run(folder: Path) -> Path:
    """Make the folder of the next number, whoever else makes one at the same time."""
    while True:
        run = folder / str(_last_run(folder) + 1)
        with suppress(FileExistsError):
            run.mkdir()
            return run


def _manifest(
    config: TrainingConfig, data: DataSet, network: Classifier, described: Architecture
) -> dict[str, Any]:
    layers = network.head.dropout_layers
    return {
        "name": config.model_name,
        "class_names": data.class_names,
        "input": data.input.model_dump(),
        "architecture": described.model_dump(),
        "parameters": count_parameters(network),
        "features": layers[0].width,
        "dropout_layers": [layer.model_dump() for layer in layers],
        "training": config.describes() | _settled(config, data),
        "data": data.describes(),
        "libraries": {name: library_version(name) for name in _LIBRARIES},
    }


def _diagnosis(fitted: TrainResult, advice: Sequence[str], removed: int) -> dict[str, Any]:
    """How the hidden layers fire on the validation images, as the manifest records it."""
    turnovers = turnover(fitted.before, fitted.epochs)
    layers = [
        layer.model_dump(mode="json", exclude={"dead_units"})
        | {"dead": layer.dead, **asdict(turnovers[layer.name])}
        for layer in fitted.after
    ]
    return {"layers": layers, "advice": list(advice), "pruned_units": removed}


def _settled(config: TrainingConfig, data: DataSet) -> dict[str, Any]:
    """What the data set's recipe gave where the user named nothing."""
    recipe = data.recipe
    return {
        "epochs": config.epochs or recipe.epochs,
        "batch_size": config.batch_size or recipe.batch_size,
        "augmentation": config.augmentation or recipe.augmentation,
        "learning_rate": config.peak_learning_rate,
        "dropout_samples": config.heads_a_step,
        "threads": config.threads or recipe.threads,
    }
