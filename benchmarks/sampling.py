"""What the samples of a bundle's head are worth, on its own test images.

    python -m benchmarks.sampling models/fashion-mnist/1 [--record docs]

The truth is the mean over very many independent masks. Against it: the error of the mean
probabilities by design and number of samples; how often the stated 95 % intervals cover it; the
bias of the mutual information; the analytic method; and `auto`, which should name the label that
10,000 samples name. The data set is the one the bundle was trained on, and is loaded again.
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
from model.dropout.sampling import AdaptiveSamples, Analytic, FixedSamples
from model.images.preprocessing import to_float
from model.inference.predictor import Prediction, Predictor, open_tested
from model.uncertainty.summary import Floats, Uncertainty, entropy, softmax
from training.config import TrainingConfig
from training.data import dataset as data_sets
from training.experiments.record import Record

_CHUNK = 2_000
"""Independent samples of one run of the head."""
_Z = 1.96  # standard errors of a 95 % interval
_MANY = 10_000
_MOST = 1_024
_COUNTS = (8, 16, 32, 64, 128, 256)
_DESIGNS: dict[Design, str] = {
    "orthogonal": "orthogonal",
    "paired": "antithetic pairs",
    "independent": "independent",
}


@dataclass(frozen=True)
class Truth:
    """Of each image: mean probabilities [N, K] and mutual information [N]."""

    probabilities: Floats
    information: Floats


@dataclass(frozen=True)
class Quality:
    """Of one way to ask, averaged over repetitions."""

    error: float
    """Root mean square error of a mean probability."""
    covered: float
    """Share of probabilities within their stated 95 % interval."""
    informed: float
    """Share of mutual informations within theirs."""
    bias: float
    """Of the mutual information, nats."""


def main(arguments: list[str]) -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("bundle", type=Path, help="folder of a bundle")
    parser.add_argument("--images", type=int, default=300, help="test images")
    parser.add_argument("--auto-images", type=int, default=2_000, help="test images for auto")
    parser.add_argument("--truth", type=int, default=200_000, help="samples of the truth")
    parser.add_argument("--repetitions", type=int, default=20, help="seeds of each figure")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("DROPSERVE_DATA_DIR"))
    parser.add_argument("--record", type=Path, help="folder of the notes")
    options = parser.parse_args(arguments)
    record = measured(options)
    record.print(Console())
    if options.record:
        record.add_to(options.record, f"python -m benchmarks.sampling {options.bundle}")


def measured(options: argparse.Namespace) -> Record:
    """Return all figures of a bundle."""
    bundle = open_bundle(options.bundle)
    predictor = open_tested(bundle)
    name = bundle.manifest.training["data"]
    part = data_sets.load(TrainingConfig(data=name, data_dir=options.data_dir)).test
    drawn = np.random.Generator(np.random.PCG64(0)).permutation(len(part))
    images = to_float(part.images[np.sort(drawn[: options.images])])
    prediction = predictor.predict(images)
    truth = _truth(predictor, prediction, options.truth)
    seeds = range(options.repetitions)
    curves = {
        design: [
            _quality(truth, [_ask(predictor, prediction, seed, count, design) for seed in seeds])
            for count in _COUNTS
        ]
        for design in _DESIGNS
    }
    analytic = _quality(truth, [predictor.uncertainty(prediction, Analytic())])
    weight_scaling = _error(softmax(prediction.logits / predictor.sampled_temperature), truth)
    several = predictor.predict(to_float(part.images[np.sort(drawn[: options.auto_images])]))
    independent = curves["independent"]
    one = np.mean([q.error * np.sqrt(t) for q, t in zip(independent, _COUNTS, strict=True)])
    rows = [
        (
            title,
            str(count),
            f"{quality.error:.5f}",
            f"{(one / quality.error) ** 2:,.0f}",
            f"{100 * quality.covered:.1f} %",
            f"{100 * quality.informed:.1f} %",
            f"{quality.bias:+.5f}",
        )
        for design, title in _DESIGNS.items()
        for count, quality in zip(_COUNTS, curves[design], strict=True)
    ]
    worth = f"{(one / analytic.error) ** 2:,.0f}"
    rows.append(
        ("analytic", "-", f"{analytic.error:.5f}", worth, "-", "-", f"{analytic.bias:+.5f}")
    )
    return Record(
        name="masks",
        title="What samples are worth",
        setting=f"the head of {bundle.manifest.name} ({name}), {options.images} test images, "
        f"{options.repetitions} seeds; the truth is the mean of {options.truth:,} independent "
        "samples. Error: root mean square error of a mean probability; worth: independent samples "
        "with the same error; covered: the truth within 1.96 standard errors, for mean "
        "probabilities and for the mutual information (MI).",
        columns=("masks", "T", "error", "worth", "covered", "MI covered", "MI bias"),
        rows=rows,
        finding=f"The answer without dropout has an error of {weight_scaling:.5f}. "
        + _auto(predictor, several),
        figure=_figure(curves, analytic.error, weight_scaling),
    )


def _ask(
    predictor: Predictor, prediction: Prediction, seed: int, samples: int, design: Design
) -> Uncertainty:
    return predictor.uncertainty(prediction, FixedSamples(seed, samples, design))


def _truth(predictor: Predictor, prediction: Prediction, samples: int) -> Truth:
    """Average independent samples, whose seeds no measurement has."""
    total, expected = np.zeros(prediction.logits.shape), np.zeros(len(prediction.logits))
    runs = -(-samples // _CHUNK)
    for run in range(runs):
        how = FixedSamples(1_000_000 + run, _CHUNK, "independent")
        for row in range(len(expected)):
            logits = predictor.sample(prediction.features[row : row + 1], how)[0]
            probabilities = softmax(logits / predictor.sampled_temperature)
            total[row] += probabilities.mean(axis=0)
            expected[row] += entropy(probabilities).mean()
    mean = total / runs
    return Truth(mean, entropy(mean) - expected / runs)


def _quality(truth: Truth, answers: Sequence[Uncertainty]) -> Quality:
    covered, informed, bias, squares = [], [], [], []
    for answer in answers:
        wrong = np.abs(answer.mean_probabilities - truth.probabilities)
        misinformed = answer.mutual_information - truth.information
        squares.append(np.square(wrong).mean())
        covered.append((wrong <= _Z * answer.standard_error).mean())
        informed.append((np.abs(misinformed) <= _Z * answer.mutual_information_error).mean())
        bias.append(misinformed.mean())
    return Quality(
        error=float(np.sqrt(np.mean(squares))),
        covered=float(np.mean(covered)),
        informed=float(np.mean(informed)),
        bias=float(np.mean(bias)),
    )


def _error(probabilities: Floats, truth: Truth) -> float:
    return float(np.sqrt(np.square(probabilities - truth.probabilities).mean()))


def _auto(predictor: Predictor, prediction: Prediction) -> str:
    """Say what `auto` did, and how often many samples name another label than it settled."""
    answer = predictor.uncertainty(prediction, AdaptiveSamples(seed=0, most=_MOST))
    many = predictor.uncertainty(prediction, FixedSamples(1, _MANY))
    settled = answer.settled
    wrong = (answer.labels != many.labels)[settled]
    used = answer.samples_used
    return (
        f"`samples=auto`, on {len(used):,} test images: {100 * settled.mean():.2f} % were settled "
        f"within {_MOST:,} samples, with a median of {np.median(used):.0f} and a mean of "
        f"{used.mean():.1f}; of these, {wrong.sum()} ({100 * wrong.mean():.2f} %) have another "
        f"label than {_MANY:,} samples give."
    )


def _figure(curves: dict[Design, list[Quality]], analytic: float, scaling: float) -> Figure:
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.subplots()
    for design, title in _DESIGNS.items():
        errors = [quality.error for quality in curves[design]]
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
