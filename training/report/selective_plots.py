"""Draws the plots of selective prediction, uncertainty, OOD detection and corrupted images.

Measures nothing but the curves that it draws, and writes no file.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from training.data.dataset import Split
from training.evaluation import selective_prediction
from training.evaluation.corruptions import CorruptionCurve
from training.evaluation.metrics import Evaluation
from training.evaluation.selective_prediction import OodAnswers
from training.report import plots
from training.report.class_name_fonts import drawable_names

_COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)
_GALLERY_IMAGES = 10
_HISTOGRAM_BINS = 40

Floats = NDArray[np.float64]


def risk_coverage(evaluation: Evaluation) -> Figure:
    """Draw the error rate among the answered images against the share answered (coverage)."""
    answers = evaluation.answers
    correct = answers.mean_probabilities.argmax(axis=1) == evaluation.labels
    confidences = {
        "confidence": answers.mean_probabilities.max(axis=1),
        "predictive entropy": -answers.uncertainty.predictive_entropy,
        "mutual information": -answers.uncertainty.mutual_information,
    }
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, confidence in confidences.items():
        answered, risks = selective_prediction.risk_coverage(confidence, correct)
        axes.plot(100 * answered, 100 * risks, label=f"by {name}, AURC {risks.mean():.4f}")
    error = 100 * (1 - correct.mean())
    axes.axhline(error, color="grey", linestyle="--", label="at random")
    axes.set(title="Risk and coverage", xlabel="images answered, surest first (%)")
    axes.set(ylabel="wrong answers among them (%)", ylim=(0, max(1.0, 1.3 * error)))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    return figure


def prediction_sets(evaluation: Evaluation) -> Figure:
    """Draw the measured coverage and the size of prediction sets against the nominal coverage."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    coverage_axes, size_axes = figure.subplots(1, 2)
    trials = [
        selective_prediction.split_conformal_trials(
            evaluation.answers.mean_probabilities, evaluation.labels, coverage
        )
        for coverage in _COVERAGES
    ]
    nominal = 100 * np.array(_COVERAGES)
    coverage_axes.plot(nominal, nominal, color="grey", linestyle="--", label="as asked")
    for axes, scale, values in (
        (coverage_axes, 100, [covered for covered, _ in trials]),
        (size_axes, 1, [sizes for _, sizes in trials]),
    ):
        table = scale * np.array(values)
        label = f"mean, least and most of {selective_prediction.HALVINGS} halvings"
        ends = [table.mean(axis=1) - table.min(axis=1), table.max(axis=1) - table.mean(axis=1)]
        axes.errorbar(nominal, table.mean(axis=1), ends, fmt="o-", capsize=3, label=label)
        axes.set(xlabel="coverage asked for (%)")
        axes.grid(alpha=0.3)
    coverage_axes.legend(loc="lower right")
    size_axes.legend(loc="upper left")
    coverage_axes.set(title="Coverage of prediction sets", ylabel="sets with the true class (%)")
    size_axes.set(title="Size of prediction sets", ylabel="classes in a set, mean")
    size_axes.set_ylim(bottom=0)
    return figure


def uncertainty_histograms(evaluation: Evaluation, ood: OodAnswers | None) -> Figure:
    """Draw histograms of entropies and typicality: correct, wrong and OOD predictions."""
    answers = evaluation.answers
    correct = answers.mean_probabilities.argmax(axis=1) == evaluation.labels
    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, (field, title, unit) in zip(panels, _UNCERTAINTIES, strict=True):
        values = getattr(answers.uncertainty, field)
        groups = {"right answers": values[correct], "wrong answers": values[~correct]}
        if ood is not None:
            groups[ood.name] = getattr(ood.answers.uncertainty, field)
        finite = {name: each[np.isfinite(each)] for name, each in groups.items()}
        largest = max((each.max() for each in finite.values() if len(each)), default=1.0)
        bins = np.linspace(0, max(largest, 1e-9), _HISTOGRAM_BINS + 1)
        for name, each in finite.items():
            if len(each):
                weights = np.full(len(each), 100 / len(each))
                axes.hist(each, bins=bins, weights=weights, histtype="step", label=name)
        # Matplotlib finds no limits where all images of each group are in one bin.
        shares = (50 / max(1, *map(len, finite.values())), 200)
        axes.set(title=title, xlabel=unit, ylabel="images of the group (%)", ylim=shares)
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
        if any(len(each) for each in finite.values()):
            axes.legend(loc="upper right")
        else:
            axes.text(0.5, 0.5, "uncalibrated", transform=axes.transAxes, ha="center")
    return figure


_UNCERTAINTIES = (
    ("predictive_entropy", "Predictive entropy", "nats"),
    ("mutual_information", "Mutual information", "nats"),
    ("typicality", "Typicality", "share of validation images farther out"),
)


def certainty_gallery(evaluation: Evaluation, split: Split, class_names: Sequence[str]) -> Figure:
    """Draw the images with the lowest predictive entropy, then those with the highest."""
    uncertainty = evaluation.answers.uncertainty
    order = np.argsort(uncertainty.predictive_entropy, kind="stable")
    count = min(_GALLERY_IMAGES, len(order) // 2)
    rows = np.concatenate([order[:count], order[::-1][:count]])
    names = drawable_names(class_names)
    texts = [
        f"{names[uncertainty.labels[row]]}, entropy {uncertainty.predictive_entropy[row]:.2g}\n"
        f"is {names[evaluation.labels[row]]}"
        for row in rows
    ]
    return plots.gallery(
        split.images[rows], texts, "The most certain images, then the least (entropy in nats)"
    )


def corruptions(curves: Sequence[CorruptionCurve]) -> Figure:
    """Draw accuracy, confidence, typicality and mutual information against the severity."""
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    grid = figure.subplots(2, len(curves), sharey="row")
    for (shares, information), curve in zip(grid.T, curves, strict=True):
        severities = curve.corruption.severities
        for name in ("accuracy", "confidence", "typicality"):
            values = 100 * np.array(getattr(curve, name))
            if np.isfinite(values).all():
                shares.plot(severities, values, ".-", label=name)
        information.plot(severities, curve.mutual_information, ".-", color="C4")
        shares.set(title=curve.corruption.name.capitalize(), ylim=(0, 102))
        information.set_title("Mutual information")
        for axes in (shares, information):
            axes.set_xlabel(curve.corruption.unit)
            axes.grid(alpha=0.3)
    grid[0, 0].set_ylabel("mean over the images (%)")
    grid[1, 0].set_ylabel("mean (nats)")
    grid[1, 0].set_ylim(bottom=0)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right upper")
    return figure
