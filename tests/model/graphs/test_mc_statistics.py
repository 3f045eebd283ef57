"""The figures are tested for what they mean in test_uncertainty.py and test_sampling_error.py."""

import numpy as np
import pytest

from model.graphs.mc_statistics import BLOCK, DETAILS, LOGITS, MAIN, alone, rule, scaling
from model.graphs.sessions import start
from model.uncertainty.summary import entropy, softmax

ROWS = 40


@pytest.mark.parametrize("classes", [2, 3, 10, 17, 41, 101])
@pytest.mark.parametrize("samples", [4, 12, 64, 100, 256])
def test_rows_do_not_influence_each_other(classes: int, samples: int) -> None:
    assert samples % BLOCK == 0
    session = start(alone(classes), threads=1)
    generator = np.random.default_rng(0)
    logits = 3 * generator.standard_normal((ROWS, samples, classes), np.float32)

    def figures(rows: slice) -> list[np.ndarray]:
        feeds = {LOGITS: logits[rows], **rule(samples), **scaling(1.3)}
        return list(session.run(MAIN + DETAILS, feeds))

    whole = figures(slice(None))
    for size in range(1, ROWS):
        for start_row in {0, ROWS - size}:
            rows = slice(start_row, start_row + size)
            for part, every in zip(figures(rows), whole, strict=True):
                np.testing.assert_array_equal(part, every[rows])


@pytest.mark.parametrize(
    ("classes", "samples", "tolerance"), [(10, 64, 1e-6), (100, 1_024, 2e-6), (1_000, 1_024, 1e-5)]
)
def test_a_small_mutual_information_is_told_from_rounding(
    classes: int, samples: int, tolerance: float
) -> None:
    generator = np.random.default_rng(0)
    logits = 3 * generator.standard_normal((4, 1, classes))
    logits = (logits + 0.02 * generator.standard_normal((4, samples, classes))).astype(np.float32)
    feeds = {LOGITS: logits, **rule(samples, random=False), **scaling(1.0)}
    summary, _ = start(alone(classes), threads=1).run(MAIN, feeds)
    each = softmax(logits)
    expected = entropy(each.mean(axis=1)) - entropy(each).mean(axis=1)
    np.testing.assert_allclose(summary[:, -2, 0], expected, rtol=0, atol=tolerance)


def test_far_classes_keep_their_probabilities_and_a_sure_one_its_doubt() -> None:
    """Down to e^-80, where 1 - p has long been 1."""
    session = start(alone(3), threads=1)
    logits = np.tile(np.array([0, -30, -79], np.float32), (1, 4, 1))
    feeds = {LOGITS: logits, **rule(4), **scaling(1.0)}
    summary, labels, means, spreads, _, surprises = session.run(MAIN + DETAILS, feeds)
    np.testing.assert_allclose(means[0, :3, 0], np.exp([0.0, -30, -79]), rtol=1e-6)
    np.testing.assert_allclose(means[0, 3:, 0], [-30, 30, 79], rtol=1e-6)
    np.testing.assert_allclose(surprises.sum(axis=1), 31 * np.exp(-30.0), rtol=1e-5)
    assert (spreads == 0).all()
    assert (summary[0, 3:9] == 0).all()  # deviations and errors
    assert summary[0, -1] == 0  # no sample's label is another
    assert labels.tolist() == [[[0]]]
