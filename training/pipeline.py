"""Runs a training from its options to a bundle: load data, fit, export, verify, measure, report."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version as library_version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.bundle.store import MODEL_FILE, Bundle, Draft, new_version, open_bundle, require_writable
from model.errors import BundleError, RunError, SettingsError
from model.images.preprocessing import to_float
from model.inference.predictor import Predictor
from model.inference.predictor_loading import load_predictor
from model.uncertainty.calibration import CALIBRATION_FILE, Calibrator
from training.adoption.original_network import warn_of_batch_effects
from training.config import TrainingConfig
from training.data.added_images import add_images
from training.data.batches import image_batches
from training.data.class_balance import warn_of_unequal_classes
from training.data.dataset import Dataset, load_dataset
from training.data.excluded_files import counted, printable
from training.distributed.process_group import ALONE, Processes
from training.distributed.shared_dataset import share_dataset
from training.evaluation.corruptions import corruption_curves
from training.evaluation.earlier_bundle import compare_with_earlier, open_earlier
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
    warn_if_uncalibrated,
)
from training.export.cross_fitted_outputs import HeldOut
from training.export.example_images import write_examples
from training.export.ood_statistics import (
    PIXELS_PER_CHANNEL,
    count_pixel_statistics,
    names_of_statistics,
)
from training.export.quantization_gate import PrecisionChoice, choose_precision
from training.export.to_onnx import PARITY_TOLERANCE, check_parity, export_graphs, write_golden
from training.fit_on_nonzero_rank import announce
from training.fitting.checkpoints import LAST_CHECKPOINT, lock_run
from training.fitting.run_folder import prepare_run_folder, record_bundle
from training.fitting.training_advice import advise
from training.fitting.training_loop import (
    TrainResult,
    averaged_share,
    describe_architecture,
    fit,
)
from training.fitting.unit_diagnostics import count_deaths_and_revivals, diagnose
from training.network.classifier import Classifier, Head, count_parameters
from training.network.prune import max_logit_difference, prune
from training.report.data_section import files_section
from training.report.html_report import ReportData, write_card, write_plots
from training.report.summary_in_the_log import log_result
from training.transfer.backbone_choice import choose_backbone
from training.transfer.cross_fitted_training import FrozenResult, fit_frozen
from training.transfer.frozen_backbone import FrozenBackbone, open_backbone
from training.transfer.onnx_backbone import OnnxTrunk

logger = logging.getLogger(__name__)

_LOGGED_CLASSES = 10
_PARITY_IMAGES = 256  # of the validation split, for the parity check and the golden file
_LIBRARIES = ("torch", "lightning", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow")


def train(config: TrainingConfig, processes: Processes = ALONE) -> Path:
    """Train as `config` describes, and return the folder of the new bundle.

    processes: this one is the first of those that train together; the others run `help_train`.

    Raises:
        DropserveError: the run failed; its message tells the user what to do.
        KeyboardInterrupt: Ctrl-C; no bundle was written. Its message says if the run can resume.
        SystemExit: a process that trained with this one has ended.
    """
    require_writable(config.output)
    config = choose_backbone(config)
    if config.is_frozen and processes.count > 1:
        raise SettingsError(
            "--devices: a head on a frozen backbone is trained in seconds by one process; leave "
            "--devices and --nodes out, or choose --learn fine-tuned."
        )
    backbone = open_backbone(config)
    data = load_dataset(config, None if backbone is None else backbone.spec)
    data = add_images(data, config)
    _log_data(data)
    warn_if_uncalibrated(data)
    earlier = open_earlier(config, data)
    unequal = warn_of_unequal_classes(data.train.labels, data.class_names, config.class_weights)
    if unequal is not None:
        logger.warning("Warning: %s", unequal)
    _check_batch_size(config, data, processes)
    data = share_dataset(data, processes, config.cache_dir)
    run = prepare_run_folder(config, data)
    with _telling_how_to_go_on(run), lock_run(run):
        announce(config, data, run, processes)
        path = _train_and_export(config, data, run, backbone, earlier, processes)
        record_bundle(run, config, path)
        return path


def _check_batch_size(config: TrainingConfig, data: Dataset, processes: Processes) -> None:
    """Raise SettingsError if the processes cannot all have the same number of images a step."""
    size, count = config.batch_size or data.defaults.batch_size, processes.count
    if size % count or size < 2 * count:
        raise SettingsError(
            f"--batch-size: the {size} images of a step cannot be divided equally among {count} "
            f"processes, two or more each; use a multiple of {count}, at least {2 * count}."
        )
    if len(data.train) < 2 * count:
        raise SettingsError(
            f"--devices: {len(data.train)} training images are too few for {count} processes."
        )


def _log_data(data: Dataset) -> None:
    validation = f"{len(data.train):,} training, {len(data.validation):,} validation"
    if data.is_cross_fitted:
        validation = f"{len(data.train):,} training (and, by cross-fitting, validation)"
    names = list(map(printable, data.class_names[:_LOGGED_CLASSES]))
    more = ["..."] if len(data.class_names) > _LOGGED_CLASSES else []
    logger.info(
        "%s: %s and %s test images, %d classes: %s",
        *(data.name, validation, f"{len(data.test):,}", len(data.class_names)),
        ", ".join(names + more),
    )


@contextmanager
def _telling_how_to_go_on(run: Path) -> Iterator[None]:
    """Turn what may end a run early into an error that says how to go on from its checkpoint."""

    def remedy() -> str:
        return "Go on with --resume." if (run / LAST_CHECKPOINT).is_file() else ""

    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(remedy()) from None
    except BundleError as error:
        raise BundleError(f"{error} {remedy()}".rstrip()) from error
    except OSError as error:
        sentence = f"Cannot write to {run} ({error.strerror or error}); free space on its disk"
        then = ", then go on with --resume." if remedy() else ", or choose another with --runs."
        raise RunError(sentence + then) from error


def _train_and_export(
    config: TrainingConfig,
    data: Dataset,
    run: Path,
    backbone: FrozenBackbone | None,
    earlier: Bundle | None,
    processes: Processes,
) -> Path:
    if backbone is not None:
        frozen = fit_frozen(config, data, backbone)
        return export_bundle(config, data, frozen.result, [], 0, frozen, earlier)
    result = fit(config, data, run, config.resume, processes=processes)
    health = (result.before, result.after, result.epochs)
    advice = advise(config.activation, config.peak_learning_rate, *health)
    for sentence in advice:
        logger.warning("Warning: %s", sentence)
    pruned = 0
    if config.prune_dead:
        network, pruned = prune_if_unchanged(result.network, data)
        result = replace(result, network=network)
    return export_bundle(config, data, result, advice, pruned, earlier=earlier)


def prune_if_unchanged(network: Classifier, data: Dataset) -> tuple[Classifier, int]:
    """Prune the units that are dead on all training and validation images; return their number.

    Returns:
        (pruned network, number of removed units), or (`network`, 0) if pruning would change a logit
        of a test image by more than PARITY_TOLERANCE.
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
    return to_float(data.validation.images[:_PARITY_IMAGES])


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
