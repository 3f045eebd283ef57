"""Draws the plots of a run's report. Measures nothing and writes no file.

Plots are made without pyplot's global state, so they need no display.
"""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve

from training.data.dataset import Split
from training.evaluation.metrics import ECE_BINS, Answers, Evaluation
from training.fitting.unit_diagnostics import EpochDiagnostics, LayerHealth
from training.report.class_name_fonts import drawable_names, installed_families

_MAX_MISTAKES = 20
_GALLERY_COLUMNS = 5
_MAX_NUMBERED_CLASSES = 20  # a larger confusion matrix has no room for numbers


def learning_curves(history: Sequence[dict[str, float]]) -> Figure:
    """Draw loss and accuracy against the epoch.

    Args:
        history: metrics of each epoch, by name; the training loss alone of a head on a frozen
            backbone, for equal parts of its steps.
    """
    if "validation_loss" not in history[0]:
        return _head_curve([metrics["train_loss"] for metrics in history])
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    epochs = np.arange(1, len(history) + 1)
    for name, label in (("train_loss", "training"), ("validation_loss", "validation")):
        losses.plot(epochs, [metrics[name] for metrics in history], ".-", label=label)
    accuracy = [100 * metrics["validation_accuracy"] for metrics in history]
    accuracies.plot(epochs, accuracy, ".-", color="C1", label="validation")
    losses.set(title="Cross-entropy", xlabel="epoch", ylabel="loss (nats)", yscale="log")
    accuracies.set(title="Accuracy", xlabel="epoch", ylabel="right answers (%)")
    for axes in (losses, accuracies):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def _head_curve(losses: Sequence[float]) -> Figure:
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(100 * np.arange(1, len(losses) + 1) / len(losses), losses, ".-", label="training")
    axes.set(title="Cross-entropy of the head", xlabel="steps (%)", yscale="log")
    axes.set_ylabel("loss (nats)")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def hidden_layers(before: Sequence[LayerHealth], epochs: Sequence[EpochDiagnostics]) -> Figure:
    """Draw dead or saturated units, sparsity and gradients of each layer against the epoch.

    Args:
        before: the health of the layers before the first step, drawn as epoch 0.
        epochs: the diagnostics of each epoch.
    """
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    unhealthy, sparsity, gradients = figure.subplots(1, 3)
    states = [before, *(epoch.layers for epoch in epochs)]
    bounded = before[0].saturated is not None

    def draw(axes: Axes, measure: Callable[[LayerHealth], float]) -> None:
        for index, layer in enumerate(before):
            values = [100 * measure(layers[index]) for layers in states]
            label = layer.name if axes is unhealthy else None
            axes.plot(values, ".-", color=_layer_colour(index, len(before)), label=label)

    draw(unhealthy, lambda layer: layer.saturated or 0.0 if bounded else layer.dead / layer.units)
    unhealthy.set(
        title="Saturated outputs" if bounded else "Dead units",
        ylabel="outputs at an end of their range (%)" if bounded else "units that never fire (%)",
    )
    draw(sparsity, lambda layer: layer.sparsity)
    sparsity.set(title="Sparsity", ylabel="inputs not above 0 (%)", ylim=(0, 100))
    names = list(epochs[-1].gradient_norms) if epochs else []
    for index, name in enumerate(names):
        norms = [epoch.gradient_norms[name] for epoch in epochs]
        colour = _layer_colour(index, len(before)) if index < len(before) else "black"
        label = name if index >= len(before) else None
        gradients.plot(range(1, len(epochs) + 1), norms, ".-", color=colour, label=label)
    gradients.set(title="Gradients", ylabel="L2 norm, mean over the epoch's steps")
    if any(line.get_ydata().max() > 0 for line in gradients.lines):
        gradients.set_yscale("log")
    unhealthy.set_ylim(bottom=0, top=max(5.0, unhealthy.get_ylim()[1]))
    for axes in (unhealthy, sparsity, gradients):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.legend(loc="outside right center")
    return figure


def confusion_matrix(counts: NDArray[np.int64], class_names: Sequence[str]) -> Figure:
    """Draw counts of test images by true class (row) and predicted class (column): int [K, K]."""
    classes = len(class_names)
    side = min(16.0, 3.2 + 0.5 * classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(title="Test images", xlabel="predicted class", ylabel="true class")
    # Without `parse_math=False`, a dollar in a class name would start a formula.
    names, fonts = drawable_names(class_names), installed_families()
    axes.set_xticks(
        range(classes), names, rotation=45, ha="right", parse_math=False, fontfamily=fonts
    )
    axes.set_yticks(range(classes), names, parse_math=False, fontfamily=fonts)
    if classes <= _MAX_NUMBERED_CLASSES:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour)
    return figure


def reliability(evaluation: Evaluation) -> Figure:
    """Draw accuracy against confidence before and after calibration, and a confidence histogram."""
    diagrams = {"Reliability": evaluation.answers}
    if evaluation.uncalibrated is not None:
        diagrams = {
            "Reliability before calibration": evaluation.uncalibrated,
            "Reliability after calibration": evaluation.answers,
        }
    figure = Figure(figsize=(4.5 * len(diagrams) + 4.5, 4), layout="constrained")
    *diagram_axes, histogram = figure.subplots(1, len(diagrams) + 1)
    bins = np.linspace(0, 1, ECE_BINS + 1)
    for axes, (title, answers) in zip(diagram_axes, diagrams.items(), strict=True):
        axes.plot([0, 1], [0, 1], color="grey", linestyle="--", label="perfectly calibrated")
        for name, probabilities in _probabilities_by_mode(answers).items():
            confidence = probabilities.max(axis=1).clip(0, 1)
            correct = probabilities.argmax(axis=1) == evaluation.labels
            accuracy, mean_confidence = calibration_curve(correct, confidence, n_bins=ECE_BINS)
            axes.plot(mean_confidence, accuracy, marker="o", markersize=4, label=name)
        axes.set(title=title, xlabel="confidence", ylabel="share of right answers")
    for name, probabilities in _probabilities_by_mode(evaluation.answers).items():
        confidence = probabilities.max(axis=1).clip(0, 1)
        histogram.hist(confidence, bins=bins, histtype="step", label=name)
    histogram.set(title="Confidence", xlabel="confidence", ylabel="test images", yscale="log")
    for axes in (*diagram_axes, histogram):
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left")
    return figure


def mistakes(evaluation: Evaluation, split: Split, class_names: Sequence[str]) -> Figure:
    """Draw the images of the wrong predictions with the highest confidence."""
    probabilities = evaluation.answers.probabilities
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != evaluation.labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:_MAX_MISTAKES]
    names = drawable_names(class_names)
    texts = [
        f"{names[predicted[row]]}, {confidence[row]:.0%} sure\nis {names[evaluation.labels[row]]}"
        for row in worst
    ]
    title = "Most confident mistakes" if len(worst) else "No mistakes on the test images"
    return gallery(split.images[worst], texts, title)


def gallery(images: NDArray[np.uint8], texts: Sequence[str], title: str) -> Figure:
    """Draw images uint8 [N, C, H, W], five in a row, each below its text."""
    rows = max(1, -(-len(images) // _GALLERY_COLUMNS))
    figure = Figure(figsize=(9, 0.4 + 2.3 * rows), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(rows, _GALLERY_COLUMNS, squeeze=False).flatten()
    for axes in grid:
        axes.set_axis_off()
    for axes, image, text in zip(grid, images, texts, strict=False):
        _draw_image(axes, image)
        axes.set_title(text, fontsize=9, parse_math=False, fontfamily=installed_families())
    return figure


def _probabilities_by_mode(answers: Answers) -> dict[str, NDArray[np.float64]]:
    return {"plain": answers.probabilities, "MC dropout": answers.mean_probabilities}


def _draw_image(axes: Axes, image: NDArray[np.uint8]) -> None:
    if len(image) == 1:
        axes.imshow(image[0], cmap="gray", vmin=0, vmax=255)
    else:
        axes.imshow(image.transpose(1, 2, 0))


def _layer_colour(index: int, layers: int) -> tuple[float, float, float, float]:
    """Return the colour of a layer, from the first (dark) to the last (bright)."""
    return colormaps["viridis"](0.9 * index / max(1, layers - 1))
