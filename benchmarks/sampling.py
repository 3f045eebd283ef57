"""Measure the error of MC dropout by mask design and number of samples, on test images.

    python -m benchmarks.sampling models/fashion-mnist/1 [--record docs]

The reference is the mean over very many independent masks. Compared with it: the error of the mean
probabilities by design and number of samples; how often the stated 95 % intervals cover it; the
bias of the mutual information; the analytic method; and adaptive sampling (`auto`), which should
decide on the label of 10,000 samples. The data set is the one that the bundle was trained on.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from model.bundle.store import open_bundle
from model.dropout.masks import Design
from model.dropout.sampling_methods import AdaptiveSamples, Analytic, FixedSamples
from model.images.preprocessing import to_float
from model.inference.prediction import Prediction
from model.inference.predictor import Predictor
from model.inference.predictor_loading import load_predictor
from model.uncertainty.uncertainty_measures import Float64Array, Uncertainty, entropy, softmax
from training.config import DatasetConfig
from training.data.dataset import load_dataset
from training.experiments.experiment_record import Record

_CHUNK = 2_000
"""Independent samples in one run of the head."""
_Z = 1.96  # standard errors of a 95 % interval
_LABEL_SAMPLES = 10_000  # their label is the reference for adaptive sampling
_MAX_SAMPLES = 1_024
_COUNTS = (8, 16, 32, 64, 128, 256)
_DESIGNS: dict[Design, str] = {
    "orthogonal": "orthogonal",
    "paired": "antithetic pairs",
    "independent": "independent",
}


@dataclass(frozen=True)
class Reference:
    """Mean probabilities [N, K] and mutual information [N] of N images, over very many samples."""

    probabilities: Float64Array
    mutual_information: Float64Array


@dataclass(frozen=True)
class Accuracy:
    """Errors and coverage of one mask design and number of samples, averaged over seeds."""

    error: float
    """Root mean square error of a mean probability."""
    covered: float
    """Share of the reference probabilities inside the stated 95 % interval."""
    information_covered: float
    """Share of the reference mutual informations inside the stated 95 % interval."""
    bias: float
    """Bias of the mutual information, nats."""


def main(arguments: list[str]) -> None:
    """Measure, print the record, and add it to the notes with --record."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("bundle", type=Path, help="folder of a bundle")
    parser.add_argument("--images", type=int, default=300, help="test images")
    parser.add_argument("--auto-images", type=int, default=2_000, help="test images for auto")
    parser.add_argument("--truth", type=int, default=200_000, help="samples of the reference")
    parser.add_argument("--repetitions", type=int, default=20, help="seeds of each measurement")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("DROPSERVE_DATA_DIR"))
    parser.add_argument("--record", type=Path, help="folder of the notes")
    options = parser.parse_args(arguments)
    record = measure(options)
    record.print(Console())
    if options.record:
        record.add_to(options.record, f"python -m benchmarks.sampling {options.bundle}")


def measure(options: argparse.Namespace) -> Record:
    """Return the record of a bundle."""
    bundle = open_bundle(options.bundle)
    predictor = load_predictor(bundle)
    name = bundle.manifest.training["data"]
    test_split = load_dataset(DatasetConfig(data=name, data_dir=options.data_dir)).test
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(test_split))
    images = to_float(test_split.images[np.sort(order[: options.images])])
    prediction = predictor.predict(images)
    reference = _reference(predictor, prediction, options.truth)
    seeds = range(options.repetitions)
    curves = {
        design: [
            _accuracy(
                reference, [_sample(predictor, prediction, seed, count, design) for seed in seeds]
            )
            for count in _COUNTS
        ]
        for design in _DESIGNS
    }
    analytic = _accuracy(reference, [predictor.uncertainty(prediction, Analytic())])
    weight_scaling = _error(softmax(prediction.logits / predictor.sampled_temperature), reference)
    auto_prediction = predictor.predict(
        to_float(test_split.images[np.sort(order[: options.auto_images])])
    )
    return Record(
        name="masks",
        title="Error of MC dropout by masks and samples",
        setting=f"the head of {bundle.manifest.name} ({name}), {options.images} test images, "
        f"{options.repetitions} seeds; the reference is the mean of {options.truth:,} independent "
        "samples. Error: root mean square error of a mean probability; worth: independent samples "
        "with the same error; covered: the reference within 1.96 standard errors, for mean "
        "probabilities and for the mutual information (MI).",
        columns=("masks", "T", "error", "worth", "covered", "MI covered", "MI bias"),
        rows=_rows(curves, analytic),
        finding=f"The prediction without dropout has an error of {weight_scaling:.5f}. "
        + _auto(predictor, auto_prediction),
        figure=_figure(curves, analytic.error, weight_scaling),
    )


def _rows(curves: dict[Design, list[Accuracy]], analytic: Accuracy) -> list[tuple[str, ...]]:
    independent = curves["independent"]
    error_of_one = np.mean(
        [each.error * np.sqrt(t) for each, t in zip(independent, _COUNTS, strict=True)]
    )
    rows: list[tuple[str, ...]] = [
        (
            title,
            str(count),
            f"{accuracy.error:.5f}",
            f"{(error_of_one / accuracy.error) ** 2:,.0f}",
            f"{100 * accuracy.covered:.1f} %",
            f"{100 * accuracy.information_covered:.1f} %",
            f"{accuracy.bias:+.5f}",
        )
        for design, title in _DESIGNS.items()
        for count, accuracy in zip(_COUNTS, curves[design], strict=True)
    ]
    worth = f"{(error_of_one / analytic.error) ** 2:,.0f}"
    rows.append(
        ("analytic", "-", f"{analytic.error:.5f}", worth, "-", "-", f"{analytic.bias:+.5f}")
    )
    return rows


def _sample(
    predictor: Predictor, prediction: Prediction, seed: int, samples: int, design: Design
) -> Uncertainty:
    return predictor.uncertainty(prediction, FixedSamples(seed, samples, design))


def _reference(predictor: Predictor, prediction: Prediction, samples: int) -> Reference:
    """Average independent samples, with seeds that no measurement uses."""
    total, expected = np.zeros(prediction.logits.shape), np.zeros(len(prediction.logits))
    runs = -(-samples // _CHUNK)
    for run in range(runs):
        sampling = FixedSamples(1_000_000 + run, _CHUNK, "independent")
        for row in range(len(expected)):
            logits = predictor.sample(prediction.features[row : row + 1], sampling)[0]
            probabilities = softmax(logits / predictor.sampled_temperature)
            total[row] += probabilities.mean(axis=0)
            expected[row] += entropy(probabilities).mean()
    mean = total / runs
    return Reference(mean, entropy(mean) - expected / runs)


def _accuracy(reference: Reference, estimates: Sequence[Uncertainty]) -> Accuracy:
    covered, information_covered, bias, squares = [], [], [], []
    for estimate in estimates:
        error = np.abs(estimate.mean_probabilities - reference.probabilities)
        information_error = estimate.mutual_information - reference.mutual_information
        squares.append(np.square(error).mean())
        covered.append((error <= _Z * estimate.standard_error).mean())
        information_covered.append(
            (np.abs(information_error) <= _Z * estimate.mutual_information_error).mean()
        )
        bias.append(information_error.mean())
    return Accuracy(
        error=float(np.sqrt(np.mean(squares))),
        covered=float(np.mean(covered)),
        information_covered=float(np.mean(information_covered)),
        bias=float(np.mean(bias)),
    )


def _error(probabilities: Float64Array, reference: Reference) -> float:
    return float(np.sqrt(np.square(probabilities - reference.probabilities).mean()))


def _auto(predictor: Predictor, prediction: Prediction) -> str:
    """Describe adaptive sampling, and how often many samples give another label than it decided."""
    adaptive = predictor.uncertainty(prediction, AdaptiveSamples(seed=0, max_samples=_MAX_SAMPLES))
    many = predictor.uncertainty(prediction, FixedSamples(1, _LABEL_SAMPLES))
    decided = adaptive.label_decided
    wrong = (adaptive.labels != many.labels)[decided]
    used = adaptive.samples_used
    return (
        f"`samples=auto`, on {len(used):,} test images: {100 * decided.mean():.2f} % were decided "
        f"within {_MAX_SAMPLES:,} samples, with a median of {np.median(used):.0f} and a mean of "
        f"{used.mean():.1f}; of these, {wrong.sum()} ({100 * wrong.mean():.2f} %) have another "
        f"label than {_LABEL_SAMPLES:,} samples give."
    )


def _figure(curves: dict[Design, list[Accuracy]], analytic: float, scaling: float) -> Figure:
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    for design, title in _DESIGNS.items():
        errors = [accuracy.error for accuracy in curves[design]]
        axes.plot(_COUNTS, errors, "o-", label=title)
    axes.axhline(analytic, color="black", linestyle="--", label="analytic, no samples")
    axes.axhline(scaling, color="grey", linestyle=":", label="weight scaling, no samples")
    axes.set(xscale="log", yscale="log", xlabel="samples T")
    axes.set_ylabel("error of a mean probability (root mean square)")
    axes.set_xticks(_COUNTS, [str(count) for count in _COUNTS])
    marks = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01)
    axes.set_yticks(marks, [f"{mark:g}" for mark in marks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    return figure


if __name__ == "__main__":
    main(sys.argv[1:])
