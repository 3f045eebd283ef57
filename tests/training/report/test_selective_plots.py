from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.training.report.test_plots import drawn, points
from training.data.dataset import Dataset
from training.evaluation.corruptions import CORRUPTIONS, CorruptionCurve
from training.evaluation.metrics import Answers, Evaluation
from training.evaluation.selective_prediction import OodAnswers
from training.report import selective_plots


def with_typicality(answers: Answers) -> Answers:
    """Return the answers of a calibrated bundle, which have a typicality."""
    typicality = np.linspace(0, 1, len(answers.probabilities))
    return replace(answers, uncertainty=replace(answers.uncertainty, typicality=typicality))


def corruption_curves(typicality: float) -> list[CorruptionCurve]:
    values = [0.9, 0.8, 0.7, 0.5, 0.1]
    return [CorruptionCurve(each, values, values, values, [typicality] * 5) for each in CORRUPTIONS]


@pytest.mark.parametrize(
    "draw",
    [
        selective_plots.risk_coverage,
        selective_plots.prediction_sets,
        lambda evaluation: selective_plots.uncertainty_histograms(evaluation, None),
        lambda evaluation: selective_plots.uncertainty_histograms(
            evaluation, OodAnswers("x_$", evaluation.answers)
        ),
        lambda _: selective_plots.corruptions(corruption_curves(0.5)),
        lambda _: selective_plots.corruptions(corruption_curves(np.nan)),
    ],
)
def test_selective_plots_label_every_axis_and_add_a_legend_to_several_lines(
    draw: Callable[[Evaluation], Figure], evaluation: Evaluation
) -> None:
    figure = draw(evaluation)
    all_axes = drawn(figure)
    assert all_axes
    for axes in all_axes:
        assert axes.get_xlabel()
        assert axes.get_ylabel() or axes.get_shared_y_axes().get_siblings(axes)
        assert axes.get_title()
        assert len(axes.lines) < 2 or axes.get_legend() or figure.legends


def test_histograms_of_images_that_are_all_alike_cause_no_warning(evaluation: Evaluation) -> None:
    """The shares of 2 right and 22 wrong answers are 100 %, but for the rounding of the sums."""
    alike = np.full(len(evaluation.labels), 0.5)
    fields = dict.fromkeys(("predictive_entropy", "mutual_information", "typicality"), alike)
    answers = replace(
        evaluation.answers, uncertainty=replace(evaluation.answers.uncertainty, **fields)
    )
    labels = answers.mean_probabilities.argmax(axis=1)
    labels[2:] = (labels[2:] + 1) % 3
    same = replace(evaluation, answers=answers, labels=labels)
    selective_plots.uncertainty_histograms(same, None).draw_without_rendering()


def test_risk_coverage_plot_ends_at_the_error_rate_of_all_images(evaluation: Evaluation) -> None:
    (axes,) = drawn(selective_plots.risk_coverage(evaluation))
    mean = evaluation.answers.mean_probabilities
    error = 100 * (mean.argmax(axis=1) != evaluation.labels).mean()
    *curves, random_order = axes.lines
    assert len(curves) == 3
    for curve in curves:
        np.testing.assert_allclose(points(curve)[-1], [100, error])
    np.testing.assert_allclose(points(random_order)[:, 1], error)


def test_typicality_is_drawn_only_for_a_calibrated_bundle(evaluation: Evaluation) -> None:
    calibrated = replace(evaluation, answers=with_typicality(evaluation.answers))
    for each, patches in ((calibrated, 2), (evaluation, 0)):
        typicality = drawn(selective_plots.uncertainty_histograms(each, None))[2]
        assert len(typicality.patches) == patches
        assert [text.get_text() for text in typicality.texts] == (
            [] if patches else ["uncalibrated"]
        )
    for value, lines in ((0.5, 3), (np.nan, 2)):
        shares = drawn(selective_plots.corruptions(corruption_curves(value)))[:3]
        assert {len(axes.lines) for axes in shares} == {lines}


def test_certainty_gallery_shows_the_most_certain_images_first(
    evaluation: Evaluation, dataset: Dataset
) -> None:
    figure = selective_plots.certainty_gallery(evaluation, dataset.test, dataset.class_names)
    shown = [axes for axes in figure.axes if axes.images]
    order = np.argsort(evaluation.answers.uncertainty.predictive_entropy)
    for place, row in ((0, order[0]), (10, order[-1])):
        image = shown[place].images[0].get_array()
        assert image is not None
        np.testing.assert_array_equal(image, dataset.test.images[row, 0])
