"""The plots of how far answers can be trusted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from training.data.dataset import Split
from training.evaluation import selective as trust
from training.evaluation.corruptions import CorruptionCurve
from training.evaluation.metrics import Answers, Evaluation
from training.report import plots

_COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)
_SHOWN = 10
_BINS = 40

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class OodAnswers:
    """A bundle's answers to images of classes that it does not know."""

    name: str
    answers: Answers


def risk_coverage(evaluation: Evaluation) -> Figure:
    """Error rate among the answered images against the share answered, the surest first."""
    given = evaluation.answers
    right = given.mean_probabilities.argmax(axis=1) == evaluation.labels
    confidences = {
        "confidence": given.mean_probabilities.max(axis=1),
        "predictive entropy": -given.uncertainty.predictive_entropy,
        "mutual information": -given.uncertainty.mutual_information,
    }
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, confidence in confidences.items():
        answered, risks = trust.risk_coverage(confidence, right)
        axes.plot(100 * answered, 100 * risks, label=f"by {name}, AURC {risks.mean():.4f}")
    error = 100 * (1 - right.mean())
    axes.axhline(error, color="grey", linestyle="--", label="at random")
    axes.set(title="Risk and coverage", xlabel="images answered, surest first (%)")
    axes.set(ylabel="wrong answers among them (%)", ylim=(0, max(1.0, 1.3 * error)))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    return figure


def prediction_sets(evaluation: Evaluation) -> Figure:
    """Coverage reached and size of sets against the coverage asked for, over random halvings."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    reached, large = figure.subplots(1, 2)
    splits = [
        trust.halved(evaluation.answers.mean_probabilities, evaluation.labels, coverage)
        for coverage in _COVERAGES
    ]
    asked = 100 * np.array(_COVERAGES)
    reached.plot(asked, asked, color="grey", linestyle="--", label="as asked")
    for axes, scale, values in (
        (reached, 100, [covered for covered, _ in splits]),
        (large, 1, [sizes for _, sizes in splits]),
    ):
        table = scale * np.array(values)
        label = f"mean, least and most of {trust.SPLITS} halvings"
        ends = [table.mean(axis=1) - table.min(axis=1), table.max(axis=1) - table.mean(axis=1)]
        axes.errorbar(asked, table.mean(axis=1), ends, fmt="o-", capsize=3, label=label)
        axes.set(xlabel="coverage asked for (%)")
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left")
    reached.set(title="Coverage of prediction sets", ylabel="sets with the true class (%)")
    large.set(title="Size of prediction sets", ylabel="classes in a set, mean")
    large.set_ylim(bottom=0)
    return figure


def scores(evaluation: Evaluation, strangers: OodAnswers | None) -> Figure:
    """How entropies and typicality spread over right answers, wrong ones and strangers."""
    given = evaluation.answers
    right = given.mean_probabilities.argmax(axis=1) == evaluation.labels
    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, (field, title, unit) in zip(panels, _SCORES, strict=True):
        values = getattr(given.uncertainty, field)
        groups = {"right answers": values[right], "wrong answers": values[~right]}
        if strangers is not None:
            groups[strangers.name] = getattr(strangers.answers.uncertainty, field)
        known = {name: each[np.isfinite(each)] for name, each in groups.items()}
        top = max((each.max() for each in known.values() if len(each)), default=1.0)
        bins = np.linspace(0, max(top, 1e-9), _BINS + 1)
        for name, each in known.items():
            if len(each):
                weights = np.full(len(each), 100 / len(each))
                axes.hist(each, bins=bins, weights=weights, histtype="step", label=name)
        axes.set(title=title, xlabel=unit, ylabel="images of the group (%)", yscale="log")
        axes.grid(alpha=0.3)
        if any(len(each) for each in known.values()):
            axes.legend(loc="upper right")
        else:
            axes.text(0.5, 0.5, "uncalibrated", transform=axes.transAxes, ha="center")
    return figure


_SCORES = (
    ("predictive_entropy", "Predictive entropy", "nats"),
    ("mutual_information", "Mutual information", "nats"),
    ("typicality", "Typicality", "share of validation images farther out"),
)


def certainty(evaluation: Evaluation, part: Split, class_names: Sequence[str]) -> Figure:
    """Draw the images with the least predictive entropy, then those with the most."""
    uncertainty = evaluation.answers.uncertainty
    order = np.argsort(uncertainty.predictive_entropy, kind="stable")
    shown = min(_SHOWN, len(order) // 2)
    rows = np.concatenate([order[:shown], order[::-1][:shown]])
    texts = [
        f"{class_names[uncertainty.labels[row]]}, {uncertainty.predictive_entropy[row]:.2g} nats\n"
        f"is {class_names[evaluation.labels[row]]}"
        for row in rows
    ]
    return plots.gallery(part.images[rows], texts, "The most certain images, then the least")


def corruptions(corruption_curves: Sequence[CorruptionCurve]) -> Figure:
    """Accuracy, confidence, typicality and mutual information against the strength."""
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    grid = figure.subplots(2, len(corruption_curves), sharey="row")
    for (shares, information), course in zip(grid.T, corruption_curves, strict=True):
        strengths = course.corruption.strengths
        for name in ("accuracy", "confidence", "typicality"):
            values = 100 * np.array(getattr(course, name))
            if np.isfinite(values).all():
                shares.plot(strengths, values, ".-", label=name)
        information.plot(strengths, course.mutual_information, ".-", color="C4")
        shares.set(title=course.corruption.name.capitalize(), ylim=(0, 102))
        information.set_title("Mutual information")
        for axes in (shares, information):
            axes.set_xlabel(course.corruption.unit)
            axes.grid(alpha=0.3)
    grid[0, 0].set_ylabel("mean over the images (%)")
    grid[1, 0].set_ylabel("mean (nats)")
    grid[1, 0].set_ylim(bottom=0)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right upper")
    return figure
