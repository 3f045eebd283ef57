from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.training.report.test_plots import drawn, points
from training.data.dataset import DataSet
from training.evaluation.corruptions import CORRUPTIONS, CorruptionCurve
from training.evaluation.metrics import Answers, Evaluation
from training.report import selective_plots as trust_plots
from training.report.selective_plots import OodAnswers


def calibrated(answers: Answers) -> Answers:
    """With a typicality."""
    typicality = np.linspace(0, 1, len(answers.probabilities))
    return replace(answers, uncertainty=replace(answers.uncertainty, typicality=typicality))


def corruption_curves(typicality: float) -> list[CorruptionCurve]:
    values = [0.9, 0.8, 0.7, 0.5, 0.1]
    return [CorruptionCurve(each, values, values, values, [typicality] * 5) for each in CORRUPTIONS]


@pytest.mark.parametrize(
    "draw",
    [
        trust_plots.risk_coverage,
        trust_plots.prediction_sets,
        lambda evaluation: trust_plots.scores(evaluation, None),
        lambda evaluation: trust_plots.scores(evaluation, OodAnswers("x_$", evaluation.answers)),
        lambda _: trust_plots.corruptions(corruption_curves(0.5)),
        lambda _: trust_plots.corruptions(corruption_curves(np.nan)),
    ],
)
def test_every_axis_says_what_it_shows_and_several_lines_have_a_legend(
    draw: Callable[[Evaluation], Figure], evaluation: Evaluation
) -> None:
    figure = draw(evaluation)
    parts = drawn(figure)
    assert parts
    for axes in parts:
        assert axes.get_xlabel()
        assert axes.get_ylabel() or axes.get_shared_y_axes().get_siblings(axes)
        assert axes.get_title()
        assert len(axes.lines) < 2 or axes.get_legend() or figure.legends


def test_the_last_risk_is_the_error_of_all(evaluation: Evaluation) -> None:
    (axes,) = drawn(trust_plots.risk_coverage(evaluation))
    mean = evaluation.answers.mean_probabilities
    error = 100 * (mean.argmax(axis=1) != evaluation.labels).mean()
    *curves, flat = axes.lines
    assert len(curves) == 3
    for curve in curves:
        np.testing.assert_allclose(points(curve)[-1], [100, error])
    np.testing.assert_allclose(points(flat)[:, 1], error)


def test_typicality_is_drawn_where_it_is_known(evaluation: Evaluation) -> None:
    known = replace(evaluation, answers=calibrated(evaluation.answers))
    for each, patches in ((known, 2), (evaluation, 0)):
        typicality = drawn(trust_plots.scores(each, None))[2]
        assert len(typicality.patches) == patches
        assert [text.get_text() for text in typicality.texts] == (
            [] if patches else ["uncalibrated"]
        )
    for value, lines in ((0.5, 3), (np.nan, 2)):
        shares = drawn(trust_plots.corruptions(corruption_curves(value)))[:3]
        assert {len(axes.lines) for axes in shares} == {lines}


def test_the_most_certain_images_come_first(evaluation: Evaluation, pictures: DataSet) -> None:
    figure = trust_plots.certainty(evaluation, pictures.test, pictures.class_names)
    shown = [axes for axes in figure.axes if axes.images]
    order = np.argsort(evaluation.answers.uncertainty.predictive_entropy)
    for place, row in ((0, order[0]), (10, order[-1])):
        image = shown[place].images[0].get_array()
        assert image is not None
        np.testing.assert_array_equal(image, pictures.test.images[row, 0])
