"""Loading of a predictor from a verified bundle, with self-test and calibrator. Knows no HTTP."""

import numpy as np
from pydantic import ValidationError

from model.bundle.golden_outputs import Golden
from model.bundle.store import GOLDEN_FILE, Bundle
from model.errors import BundleError
from model.graphs.execution_provider import ProviderName
from model.graphs.output_tolerance import scaled_tolerance
from model.graphs.sessions import CancellationToken
from model.inference.predictor import Predictor
from model.uncertainty.calibration import CALIBRATION_FILE, CalibrationArrays, Calibrator

GOLDEN_TOLERANCE = 1e-3
"""Allowed |difference| of a golden logit. Other processors round differently, by about 1e-5; damage
changes more. It holds for int8 too: integers are exact, and only what follows them is rounded. For
large logits it grows, see `golden_tolerance`."""


def load_predictor(
    bundle: Bundle,
    threads: int = 1,
    cancellation: CancellationToken | None = None,
    provider: ProviderName = "cpu",
) -> Predictor:
    """Create the predictor of a verified bundle, run its self-test and attach its calibrator.

    Args:
        bundle: from `open_bundle`; its graphs are taken out of it.
        threads: how many threads compute the trunk.
        cancellation: cancels this and every later run; None: neither can be cancelled.
        provider: what computes the trunk.

    Raises:
        BundleError: it cannot be loaded, or its outputs differ from the golden ones.
        MemoryError: there is not enough for it.
    """
    layers = bundle.manifest.dropout_layers
    predictor = Predictor.from_files(
        bundle.take, bundle.path, layers, threads, cancellation, provider
    )
    named = len(bundle.manifest.class_names)
    if predictor.classes != named:
        raise BundleError(
            f"{bundle.path} names {named} classes, but its network tells {predictor.classes} "
            "apart; export the bundle again."
        )
    if bundle.manifest.calibration is not None and not predictor.computes_ood_scores:
        raise BundleError(
            f"{bundle.path} is calibrated, but its graph computes no out-of-distribution scores; "
            "export the bundle again."
        )
    _run_self_test(predictor, bundle)
    return predictor.with_calibrator(read_calibrator(bundle))


def _run_self_test(predictor: Predictor, bundle: Bundle) -> None:
    file, manifest = bundle.path / GOLDEN_FILE, bundle.manifest
    try:
        golden = Golden.read(bundle.take(GOLDEN_FILE), manifest.input, len(manifest.class_names))
        differences = predictor.self_test(golden)
    except (BundleError, MemoryError):
        raise
    except Exception as error:  # a damaged graph or archive can raise anything
        raise BundleError(
            f"{file}: the self-test cannot run ({error}); export the bundle again."
        ) from None
    tolerance = golden_tolerance(golden)
    for outputs, difference in differences.items():
        if not difference <= tolerance:  # also true of NaN
            raise BundleError(
                f"{file}: the self-test's {outputs} differ by {difference:.2g}, more than "
                f"{tolerance:.2g}; export the bundle again."
            )


def golden_tolerance(golden: Golden) -> float:
    """Return by how much a logit may differ from its golden one."""
    logits = np.append(golden.logits, golden.sampled_logits)
    return scaled_tolerance(GOLDEN_TOLERANCE, logits)


def read_calibrator(bundle: Bundle) -> Calibrator | None:
    """Read the calibrator of a bundle; None: the bundle is uncalibrated.

    Raises:
        BundleError: the file of the calibration arrays cannot be used.
    """
    manifest, parameters = bundle.manifest, bundle.manifest.calibration
    if parameters is None:
        return None
    file = bundle.path / CALIBRATION_FILE
    content = bundle.take(CALIBRATION_FILE)
    images, classes = parameters.images, len(manifest.class_names)
    try:
        arrays = CalibrationArrays.read(content, images, classes)
    except ValueError as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise BundleError(f"{file} cannot be used ({reason}); export it again.") from None
    if len(arrays.thr) != images:
        raise BundleError(f"{file} is of another model; export the bundle again.")
    return Calibrator(parameters, arrays)
