import io
import re
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from tests.sample_summaries import summarise_points
from tests.training.conftest import train_result
from training.data.dataset import Dataset
from training.evaluation.metrics import (
    Answers,
    Evaluation,
    confusion_counts,
    per_class_metrics,
    prediction_metrics,
)
from training.evaluation.metrics_schema import SplitMetrics
from training.report import plots
from training.report.class_name_fonts import drawable_names


def points(line: Line2D) -> NDArray[np.float64]:
    """Return the points of a line, float64 [N, 2]."""
    return np.asarray(line.get_xydata())


def drawn(figure: Figure) -> list[Axes]:
    """Render a figure as PNG and return its visible axes."""
    figure.savefig(io.BytesIO(), format="png")
    return [axes for axes in figure.axes if axes.axison]


def answers(probabilities: NDArray[np.float64]) -> Answers:
    """Return the answers of a network without dropout; probabilities [N, K]."""
    logits = np.log(np.maximum(probabilities, 1e-30))
    return Answers(probabilities, summarise_points(logits[:, np.newaxis]))


def evaluation_of(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], dataset: Dataset
) -> Evaluation:
    """Return an uncalibrated evaluation; probabilities [N, K]."""
    predictions = answers(probabilities)
    metrics: SplitMetrics = {
        "images": len(labels),
        **prediction_metrics(predictions, labels),
        "uncalibrated": None,
        "per_class": per_class_metrics(probabilities, labels, dataset.class_names),
        "confusion_matrix": confusion_counts(probabilities, labels).tolist(),
    }
    return Evaluation(predictions, None, labels, metrics)


@pytest.fixture
def figure(request: pytest.FixtureRequest, evaluation: Evaluation, dataset: Dataset) -> Figure:
    counts = confusion_counts(evaluation.answers.probabilities, evaluation.labels)
    figures: dict[str, Callable[[], Figure]] = {
        "curves": lambda: plots.learning_curves(train_result(1, 4).history),
        "relu": lambda: plots.hidden_layers(train_result(3, 4).before, train_result(3, 4).epochs),
        "tanh": lambda: plots.hidden_layers(
            train_result(3, 4, 0.1).before, train_result(3, 4, 0.1).epochs
        ),
        "confusion": lambda: plots.confusion_matrix(counts, dataset.class_names),
        "reliability": lambda: plots.reliability(evaluation),
    }
    return figures[request.param]()


@pytest.mark.parametrize(
    "figure", ["curves", "relu", "tanh", "confusion", "reliability"], indirect=True
)
def test_plots_label_every_axis_and_add_a_legend_to_several_lines(figure: Figure) -> None:
    all_axes = drawn(figure)
    assert all_axes
    for axes in all_axes:
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        assert axes.get_title()
        assert len(axes.lines) < 2 or axes.get_legend() or figure.legends


def test_learning_curves_show_the_history_with_units() -> None:
    losses, accuracies = drawn(plots.learning_curves(train_result(1, 4).history))
    assert losses.get_ylabel() == "loss (nats)"
    assert accuracies.get_ylabel() == "right answers (%)"
    training, validation = losses.lines
    np.testing.assert_allclose(
        points(training), [[1.0, 2.0], [2.0, 1.0], [3.0, 2 / 3], [4.0, 1 / 2]]
    )
    np.testing.assert_allclose(points(validation)[:, 1], [3, 3 / 2, 1, 3 / 4])
    np.testing.assert_allclose(points(accuracies.lines[0])[:, 1], [0, 50, 200 / 3, 75])


def test_learning_curve_of_a_head_shows_its_loss_over_the_steps_alone() -> None:
    (axes,) = drawn(plots.learning_curves([{"train_loss": 2.0}, {"train_loss": 1.0}]))
    (line,) = axes.lines
    assert points(line).tolist() == [[50, 2], [100, 1]]


@pytest.mark.parametrize(
    ("saturated", "label", "values"),
    [(None, "units that never fire (%)", [0, 3, 6]), (0.3, "outputs at an end", [0, 30, 60])],
)
def test_hidden_layers_plot_starts_before_the_first_step(
    saturated: float | None, label: str, values: list[float]
) -> None:
    fitted = train_result(3, 2, saturated)
    figure = plots.hidden_layers(fitted.before, fitted.epochs)
    unhealthy, sparsity, gradients = drawn(figure)
    assert label in unhealthy.get_ylabel()
    assert "(%)" in sparsity.get_ylabel()
    assert "L2 norm" in gradients.get_ylabel()
    assert [len(axes.lines) for axes in (unhealthy, sparsity, gradients)] == [3, 3, 4]
    for line in unhealthy.lines:
        np.testing.assert_allclose(points(line).T, np.array([[0, 1, 2], values]))
    for line in gradients.lines:
        np.testing.assert_allclose(points(line).T, np.array([[1, 2], [1, 1 / 2]]))
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["dense 1", "dense 2", "dense 3", "output"]
    for axes in (sparsity, gradients):  # the three share one legend
        colours = [to_hex(line.get_color()) for line in axes.lines[:3]]
        assert colours == [to_hex(line.get_color()) for line in unhealthy.lines]
        assert len(set(colours)) == 3


@pytest.mark.parametrize("saturated", [None, 0.3])
@pytest.mark.parametrize(("layers", "epochs"), [(1, 1), (1, 3), (3, 1), (7, 2)])
def test_hidden_layers_plot_accepts_any_run(
    layers: int, epochs: int, saturated: float | None
) -> None:
    fitted = train_result(layers, epochs, saturated)
    figure = plots.hidden_layers(fitted.before, fitted.epochs)
    assert [len(axes.lines) for axes in drawn(figure)] == [layers, layers, layers + 1]


def test_confusion_matrix_plot_shows_its_counts_at_their_places(dataset: Dataset) -> None:
    counts = np.array([[5, 0, 1], [0, 7, 0], [2, 0, 0]])
    (axes,) = drawn(plots.confusion_matrix(counts, dataset.class_names))
    numbers = {text.get_position()[::-1]: int(text.get_text()) for text in axes.texts}
    assert numbers == {(0, 0): 5, (0, 2): 1, (1, 1): 7, (2, 0): 2}
    assert [label.get_text() for label in axes.get_yticklabels()] == list(dataset.class_names)


def test_mistakes_plot_shows_the_most_confident_wrong_predictions(dataset: Dataset) -> None:
    probabilities = np.tile([1.0, 0.0, 0.0], (24, 1))
    labels = np.zeros(24, np.int64)
    labels[[3, 5]] = 1
    probabilities[3], probabilities[5] = [0.6, 0.2, 0.2], [0.1, 0.1, 0.8]
    evaluation = evaluation_of(probabilities, labels, dataset)
    figure = plots.mistakes(evaluation, dataset.test, dataset.class_names)
    figure.savefig(io.BytesIO(), format="png")
    shown = [axes for axes in figure.axes if axes.images]
    most_confident, second = (axes.get_title() for axes in shown)
    assert most_confident.startswith(f"{dataset.class_names[2]}, 80%")
    assert most_confident.endswith("\nis a|b")
    assert re.fullmatch(r"<script>alert\(1\)</script>.*60%.*\nis a\|b", second)
    first = shown[0].images[0].get_array()
    assert first is not None
    np.testing.assert_array_equal(first, dataset.test.images[5, 0])


def test_mistakes_plot_of_a_network_without_mistakes(dataset: Dataset) -> None:
    labels = np.zeros(24, np.int64)
    probabilities = np.tile([1.0, 0.0, 0.0], (24, 1))
    evaluation = evaluation_of(probabilities, labels, dataset)
    figure = plots.mistakes(evaluation, dataset.test, dataset.class_names)
    figure.savefig(io.BytesIO(), format="png")
    assert figure.get_suptitle() == "No mistakes on the test images"


@pytest.mark.filterwarnings("error")
def test_class_names_that_no_font_can_draw_become_numbers() -> None:
    names = ["cat", "\u732b", "\u0642\u0637", "a\u200db", "\u0444"]
    shown = drawable_names(names)
    assert (shown[0], shown[2], shown[3], shown[4]) == ("cat", "class 3", "class 4", "\u0444")
    assert shown[1] in ("\u732b", "class 2")
    (axes,) = drawn(plots.confusion_matrix(np.eye(5, dtype=np.int64), names))
    assert [label.get_text() for label in axes.get_yticklabels()] == shown
