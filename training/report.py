"""The model card and its plots. Draws what it is given; measures nothing.

Plots are made without pyplot's global state, so nothing here needs a display.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve

from model.bundle import CARD_FILE, REPORT_FOLDER
from training.data import DataSet
from training.evaluate import ECE_BINS, Evaluation

_MISTAKES = 20
_MISTAKE_COLUMNS = 5
_NUMBERED_CLASSES = 20  # above this, a confusion matrix has no room for numbers

PLOTS = {
    "learning_curves.png": "Learning curves",
    "confusion_matrix.png": "Confusion matrix",
    "reliability.png": "Reliability diagram",
    "mistakes.png": "Most confident mistakes",
}


def write_report(
    folder: Path,
    manifest: dict[str, Any],
    version: int,
    data: DataSet,
    evaluation: Evaluation,
    history: Sequence[dict[str, float]],
) -> None:
    """Write `report/` into a bundle's folder: the four plots, then the card that shows them."""
    report = folder / REPORT_FOLDER
    report.mkdir()
    figures = (
        learning_curves(history),
        confusion_matrix(np.array(evaluation.metrics["confusion_matrix"]), data.class_names),
        reliability(evaluation),
        mistakes(evaluation, data),
    )
    for name, figure in zip(PLOTS, figures, strict=True):
        figure.savefig(report / name, dpi=110)
    (folder / CARD_FILE).write_text(card(manifest, version), encoding="utf-8")


def learning_curves(history: Sequence[dict[str, float]]) -> Figure:
    """Loss and accuracy against the epoch."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    epochs = np.arange(1, len(history) + 1)
    for name, label in (("train_loss", "training"), ("validation_loss", "validation")):
        losses.plot(epochs, [figures[name] for figures in history], label=label)
    accuracy = [100 * figures["validation_accuracy"] for figures in history]
    accuracies.plot(epochs, accuracy, color="C1", label="validation")
    losses.set(title="Cross-entropy", xlabel="epoch", ylabel="loss (nats)", yscale="log")
    accuracies.set(title="Accuracy", xlabel="epoch", ylabel="right answers (%)")
    for axes in (losses, accuracies):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def confusion_matrix(counts: NDArray[np.int64], class_names: Sequence[str]) -> Figure:
    """Counts of test images by true class (row) and predicted class (column)."""
    classes = len(class_names)
    side = min(16.0, 3.2 + 0.5 * classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(title="Test images", xlabel="predicted class", ylabel="true class")
    axes.set_xticks(range(classes), class_names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(classes), class_names)
    if classes <= _NUMBERED_CLASSES:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour)
    return figure


def reliability(evaluation: Evaluation) -> Figure:
    """Accuracy against confidence, plain and with dropout alive, and how confidence spreads."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    diagram, spread = figure.subplots(1, 2)
    diagram.plot([0, 1], [0, 1], color="grey", linestyle="--", label="perfectly calibrated")
    answers = {"plain": evaluation.probabilities, "dropout alive": evaluation.mean_probabilities}
    bins = np.linspace(0, 1, ECE_BINS + 1)
    for name, probabilities in answers.items():
        confidence = probabilities.max(axis=1).clip(0, 1)
        right = probabilities.argmax(axis=1) == evaluation.labels
        accuracy, mean_confidence = calibration_curve(right, confidence, n_bins=ECE_BINS)
        diagram.plot(mean_confidence, accuracy, marker="o", markersize=4, label=name)
        spread.hist(confidence, bins=bins, histtype="step", label=name)
    diagram.set(title="Reliability", xlabel="confidence", ylabel="share of right answers")
    spread.set(title="Confidence", xlabel="confidence", ylabel="test images", yscale="log")
    for axes in (diagram, spread):
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left")
    return figure


def mistakes(evaluation: Evaluation, data: DataSet) -> Figure:
    """Draw the wrong answers that were given with the highest confidence."""
    predicted = evaluation.probabilities.argmax(axis=1)
    confidence = evaluation.probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != evaluation.labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:_MISTAKES]
    rows = max(1, -(-len(worst) // _MISTAKE_COLUMNS))
    figure = Figure(figsize=(9, 0.4 + 2.3 * rows), layout="constrained")
    figure.suptitle("Most confident mistakes" if len(worst) else "No mistakes on the test images")
    grid = figure.subplots(rows, _MISTAKE_COLUMNS, squeeze=False).flatten()
    for axes in grid:
        axes.set_axis_off()
    for axes, row in zip(grid, worst, strict=False):
        _picture(axes, data.test.images[row])
        truth, answer = data.class_names[evaluation.labels[row]], data.class_names[predicted[row]]
        axes.set_title(f"{answer} {confidence[row]:.0%}\nis {truth}", fontsize=9)
    return figure


def card(manifest: dict[str, Any], version: int) -> str:
    """Write the model card, Markdown (after Mitchell et al. 2019)."""
    metrics, training, data = manifest["metrics"], manifest["training"], manifest["data"]
    sampled = metrics["test"]["mc_dropout"]
    spec, architecture = manifest["input"], manifest["architecture"]
    colour = "grey" if spec["channels"] == 1 else "RGB"
    plots = "\n\n".join(f"![{title}]({name})" for name, title in PLOTS.items())
    return f"""# {manifest["name"]}, version {version}

Sorts {spec["height"]} x {spec["width"]} {colour} images into {len(manifest["class_names"])} \
classes. Network: {architecture["preset"]}, {architecture["activation"]}, \
{manifest["parameters"]:,} parameters, dropout {architecture["dropout"]:g} in the head.

Trained on {data["name"]}: {data["train"]:,} training, {data["validation"]:,} validation and \
{data["test"]:,} test images. Seed {training["seed"]}. The weights with the best validation loss \
were kept; the test images were used once, for the figures below.

## Figures on the test images

| | plain | dropout alive ({sampled["samples"]} samples) |
|---|---|---|
{_figure_rows(metrics["test"], sampled)}

Accuracy in percent; NLL (negative log-likelihood) in nats; Brier score 0..2; ECE (expected \
calibration error) over {ECE_BINS} equal-width bins, 0..1. Calibration: none was fitted.

## Classes

| class | precision | recall | test images |
|---|---|---|---|
{_class_rows(metrics["test"]["per_class"])}

{plots}

## Limits

The network answers with one of its classes whatever it is shown. Only the dropout of the head is \
treated as uncertain, so its uncertainty says little of images unlike the training images.
"""


def _figure_rows(plain: dict[str, Any], sampled: dict[str, Any]) -> str:
    rows = [("accuracy", "{:.2%}"), ("top5_accuracy", "{:.2%}")]
    rows += [("nll", "{:.4f}"), ("brier", "{:.4f}"), ("ece", "{:.4f}")]
    return "\n".join(
        f"| {name.replace('_', ' ')} | {form.format(plain[name])} | {form.format(sampled[name])} |"
        for name, form in rows
        if name in plain
    )


def _class_rows(classes: dict[str, dict[str, float]]) -> str:
    return "\n".join(
        f"| {_escaped(name)} | {row['precision']:.2%} | {row['recall']:.2%} | {row['images']} |"
        for name, row in classes.items()
    )


def _escaped(name: str) -> str:
    return name.replace("|", "\\|").replace(os.linesep, " ")


def _picture(axes: Axes, image: NDArray[np.uint8]) -> None:
    if len(image) == 1:
        axes.imshow(image[0], cmap="gray", vmin=0, vmax=255)
    else:
        axes.imshow(image.transpose(1, 2, 0))
