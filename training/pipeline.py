"""Runs a training from its options to a bundle: load the data, fit, prune, have it exported.

Says after an interruption or an error how to go on.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model.bundle.store import Bundle, names_file_outside, require_writable
from model.errors import BundleError, RunError, SettingsError
from training.config import TrainingConfig
from training.data.added_images import add_images
from training.data.batches import image_batches
from training.data.class_balance import warn_of_unequal_classes
from training.data.dataset import Dataset, load_dataset
from training.data.excluded_files import printable
from training.distributed.process_group import ALONE, Processes
from training.distributed.shared_dataset import share_dataset
from training.evaluation.earlier_bundle import open_earlier
from training.export.calibrate import warn_if_uncalibrated
from training.export.to_onnx import parity_tolerance
from training.export_bundle import export_bundle
from training.fit_on_nonzero_rank import announce
from training.fitting.checkpoints import LAST_CHECKPOINT, lock_run
from training.fitting.run_folder import prepare_run_folder, record_bundle
from training.fitting.training_advice import advise
from training.fitting.training_loop import fit
from training.fitting.unit_diagnostics import diagnose
from training.network.classifier import Classifier
from training.network.prune import prune
from training.transfer.backbone_choice import choose_backbone
from training.transfer.cross_fitted_training import fit_frozen
from training.transfer.frozen_backbone import FrozenBackbone, open_backbone

logger = logging.getLogger(__name__)

_LOGGED_CLASSES = 10


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
    check_batch_size(config, data, processes)
    data = share_dataset(data, processes, config.cache_dir)
    run = prepare_run_folder(config, data)
    with _telling_how_to_go_on(run), lock_run(run):
        announce(config, data, run, processes)
        path = _train_and_export(config, data, run, backbone, earlier, processes)
        record_bundle(run, config, path)
        return path


def check_batch_size(config: TrainingConfig, data: Dataset, processes: Processes) -> None:
    """Raise SettingsError if the processes cannot all have the same number of images a step.

    Or if one of them has no image to validate with.
    """
    size, count = config.batch_size or data.defaults.batch_size, processes.count
    images, validation = len(data.train), len(data.validation)
    if size % count or size < 2 * count:
        raise SettingsError(
            f"--batch-size: the {size} images of a step cannot be divided equally among {count} "
            f"processes, two or more each; use a multiple of {count}, at least {2 * count}."
        )
    if images < 2 * count:
        raise SettingsError(
            f"--devices: {images} training images are too few for {count} processes; use fewer."
        )
    if size > images and images % count:
        raise SettingsError(
            f"--batch-size: {size} is more than the {images} training images, which cannot be "
            f"divided equally among {count} processes; use {images - images % count}."
        )
    if validation < count:
        raise SettingsError(
            f"--devices: {validation} validation images are too few for {count} processes; use "
            "fewer."
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
        reason, has_checkpoint = error.strerror or error, bool(remedy())
        if names_file_outside(error, run):
            then = "go on with --resume" if has_checkpoint else "start again"
            raise RunError(
                f"{error.filename} cannot be read or written ({reason}); mend that, then {then}."
            ) from error
        then = "then go on with --resume" if has_checkpoint else "or choose another with --runs"
        raise RunError(
            f"Cannot write to {run} ({reason}); free space on its disk, {then}."
        ) from error


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
    health = (result.before, result.after, result.renormalised, result.epochs)
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
        of a test image by more than `parity_tolerance`. So the test logits are those of `network`
        either way: that test images decide flatters no metric.
    """
    batches = chain(image_batches(data.train), image_batches(data.validation))
    dead_units = [layer.dead_units for layer in diagnose(network, batches)]
    smaller, removed = prune(network, dead_units)
    logits, found = _test_logits(network, data), _test_logits(smaller, data)
    worst, tolerance = float(np.abs(found - logits).max()), parity_tolerance(logits)
    if worst <= tolerance < np.inf:  # `worst > tolerance` would accept NaN
        logger.info("pruned %d dead units; the test logits moved by at most %.1g", removed, worst)
        return smaller, removed
    logger.warning(
        "Warning: nothing was pruned: without the %d dead units a test logit moves by %.2g, more "
        "than %.2g, so they fire on some test image.",
        *(removed, worst, tolerance),
    )
    return network, 0


def _test_logits(network: Classifier, data: Dataset) -> NDArray[np.float32]:
    with torch.no_grad():
        logits = torch.cat([network(images) for images in image_batches(data.test)])
    return logits.numpy()
