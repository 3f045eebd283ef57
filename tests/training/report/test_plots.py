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

from model.uncertainty.summary import integrate
from tests.training.conftest import course
from training.data.dataset import DataSet
from training.evaluation.metrics import Answers, Evaluation, confusion
from training.report import plots


def points(line: Line2D) -> NDArray[np.float64]:
    """The line's points, float64 [N, 2]."""
    return np.asarray(line.get_xydata())


def drawn(figure: Figure) -> list[Axes]:
    """Render it, as a file would be, and return its parts that have axes."""
    figure.savefig(io.BytesIO(), format="png")
    return [axes for axes in figure.axes if axes.axison]


def answers(probabilities: NDArray[np.float64]) -> Answers:
    """The answers of a network without dropout, [N, K]."""
    logits = np.log(np.maximum(probabilities, 1e-30))
    return Answers(probabilities, integrate(logits[:, np.newaxis]))


@pytest.fixture
def figure(request: pytest.FixtureRequest, evaluation: Evaluation, pictures: DataSet) -> Figure:
    counts = confusion(evaluation.answers.probabilities, evaluation.labels)
    figures: dict[str, Callable[[], Figure]] = {
        "curves": lambda: plots.learning_curves(course(1, 4).history),
        "relu": lambda: plots.hidden_layers(course(3, 4).before, course(3, 4).epochs),
        "tanh": lambda: plots.hidden_layers(course(3, 4, 0.1).before, course(3, 4, 0.1).epochs),
        "confusion": lambda: plots.confusion_matrix(counts, pictures.class_names),
        "reliability": lambda: plots.reliability(evaluation),
    }
    return figures[request.param]()


@pytest.mark.parametrize(
    "figure", ["curves", "relu", "tanh", "confusion", "reliability"], indirect=True
)
def test_every_axis_says_what_it_shows_and_several_lines_have_a_legend(figure: Figure) -> None:
    parts = drawn(figure)
    assert parts
    for axes in parts:
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        assert axes.get_title()
        assert len(axes.lines) < 2 or axes.get_legend() or figure.legends


def test_the_curves_show_what_was_logged_with_its_units() -> None:
    losses, accuracies = drawn(plots.learning_curves(course(1, 4).history))
    assert losses.get_ylabel() == "loss (nats)"
    assert accuracies.get_ylabel() == "right answers (%)"
    training, validation = losses.lines
    np.testing.assert_allclose(
        points(training), [[1.0, 2.0], [2.0, 1.0], [3.0, 2 / 3], [4.0, 1 / 2]]
    )
    np.testing.assert_allclose(points(validation)[:, 1], [3, 3 / 2, 1, 3 / 4])
    np.testing.assert_allclose(points(accuracies.lines[0])[:, 1], [0, 50, 200 / 3, 75])


@pytest.mark.parametrize(
    ("saturated", "label", "values"),
    [(None, "units that never fire (%)", [0, 3, 6]), (0.3, "outputs at an end", [0, 30, 60])],
)
def test_the_hidden_layers_are_drawn_from_before_the_first_step(
    saturated: float | None, label: str, values: list[float]
) -> None:
    fitted = course(3, 2, saturated)
    figure = plots.hidden_layers(fitted.before, fitted.epochs)
    sick, sparse, gradients = drawn(figure)
    assert label in sick.get_ylabel()
    assert "(%)" in sparse.get_ylabel()
    assert "L2 norm" in gradients.get_ylabel()
    assert [len(axes.lines) for axes in (sick, sparse, gradients)] == [3, 3, 4]
    for line in sick.lines:
        np.testing.assert_allclose(points(line).T, np.array([[0, 1, 2], values]))
    for line in gradients.lines:
        np.testing.assert_allclose(points(line).T, np.array([[1, 2], [1, 1 / 2]]))
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["dense 1", "dense 2", "dense 3", "output"]
    for axes in (sparse, gradients):  # one legend serves all three
        colours = [to_hex(line.get_color()) for line in axes.lines[:3]]
        assert colours == [to_hex(line.get_color()) for line in sick.lines]
        assert len(set(colours)) == 3


@pytest.mark.parametrize("saturated", [None, 0.3])
@pytest.mark.parametrize(("layers", "epochs"), [(1, 1), (1, 3), (3, 1), (7, 2)])
def test_the_hidden_layers_of_any_run_can_be_drawn(
    layers: int, epochs: int, saturated: float | None
) -> None:
    fitted = course(layers, epochs, saturated)
    figure = plots.hidden_layers(fitted.before, fitted.epochs)
    assert [len(axes.lines) for axes in drawn(figure)] == [layers, layers, layers + 1]


def test_a_confusion_matrix_shows_its_counts_at_their_places(pictures: DataSet) -> None:
    counts = np.array([[5, 0, 1], [0, 7, 0], [2, 0, 0]])
    (axes,) = drawn(plots.confusion_matrix(counts, pictures.class_names))
    numbers = {text.get_position()[::-1]: int(text.get_text()) for text in axes.texts}
    assert numbers == {(0, 0): 5, (0, 2): 1, (1, 1): 7, (2, 0): 2}
    assert [label.get_text() for label in axes.get_yticklabels()] == list(pictures.class_names)


def test_the_mistakes_are_the_most_confident_wrong_answers(pictures: DataSet) -> None:
    probabilities = np.tile([1.0, 0.0, 0.0], (24, 1))
    labels = np.zeros(24, np.int64)
    labels[[3, 5]] = 1
    probabilities[3], probabilities[5] = [0.6, 0.2, 0.2], [0.1, 0.1, 0.8]
    evaluation = Evaluation(answers(probabilities), None, labels, {})
    figure = plots.mistakes(evaluation, pictures.test, pictures.class_names)
    figure.savefig(io.BytesIO(), format="png")
    shown = [axes for axes in figure.axes if axes.images]
    surest, other = (axes.get_title() for axes in shown)
    assert surest.startswith(f"{pictures.class_names[2]}, 80%")
    assert surest.endswith("\nis a|b")
    assert re.fullmatch(r"<script>alert\(1\)</script>.*60%.*\nis a\|b", other)
    first = shown[0].images[0].get_array()
    assert first is not None
    np.testing.assert_array_equal(first, pictures.test.images[5, 0])


def test_a_network_that_is_never_wrong_is_drawn_too(pictures: DataSet) -> None:
    labels = np.zeros(24, np.int64)
    probabilities = np.tile([1.0, 0.0, 0.0], (24, 1))
    evaluation = Evaluation(answers(probabilities), None, labels, {})
    figure = plots.mistakes(evaluation, pictures.test, pictures.class_names)
    figure.savefig(io.BytesIO(), format="png")
    assert figure.get_suptitle() == "No mistakes on the test images"
