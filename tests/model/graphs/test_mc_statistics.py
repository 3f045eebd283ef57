"""Rounding and batches. The values are tested in test_summary.py and test_mi_error.py."""

import numpy as np
import pytest

from model.graphs.mc_statistics import (
    DETAIL_OUTPUTS,
    LOGITS,
    SUMMARY_OUTPUTS,
    VECTOR_WIDTH,
    encode_model,
    sample_count_inputs,
    temperature_input,
)
from model.graphs.sessions import create_session
from model.uncertainty.uncertainty_measures import entropy, softmax

ROWS = 40


@pytest.mark.parametrize("classes", [2, 3, 10, 17, 41, 101])
@pytest.mark.parametrize("samples", [4, 12, 64, 100, 256])
def test_mc_statistics_of_rows_do_not_depend_on_the_batch(classes: int, samples: int) -> None:
    assert samples % VECTOR_WIDTH == 0
    session = create_session(encode_model(classes), threads=1)
    generator = np.random.default_rng(0)
    logits = 3 * generator.standard_normal((ROWS, samples, classes), np.float32)

    def statistics(rows: slice) -> list[np.ndarray]:
        feeds = {LOGITS: logits[rows], **sample_count_inputs(samples), **temperature_input(1.3)}
        return list(session.run(SUMMARY_OUTPUTS + DETAIL_OUTPUTS, feeds))

    whole = statistics(slice(None))
    for size in range(1, ROWS):
        for start_row in {0, ROWS - size}:
            rows = slice(start_row, start_row + size)
            for part, every in zip(statistics(rows), whole, strict=True):
                np.testing.assert_array_equal(part, every[rows])


@pytest.mark.parametrize(
    ("classes", "samples", "tolerance"), [(10, 64, 1e-6), (100, 1_024, 2e-6), (1_000, 1_024, 1e-5)]
)
def test_mc_statistics_resolve_a_small_mutual_information(
    classes: int, samples: int, tolerance: float
) -> None:
    generator = np.random.default_rng(0)
    logits = 3 * generator.standard_normal((4, 1, classes))
    logits = (logits + 0.02 * generator.standard_normal((4, samples, classes))).astype(np.float32)
    feeds = {LOGITS: logits, **sample_count_inputs(samples, random=False), **temperature_input(1.0)}
    summary, _ = create_session(encode_model(classes), threads=1).run(SUMMARY_OUTPUTS, feeds)
    each = softmax(logits)
    expected = entropy(each.mean(axis=1)) - entropy(each).mean(axis=1)
    np.testing.assert_allclose(summary[:, -2, 0], expected, rtol=0, atol=tolerance)


def test_mc_statistics_keep_tiny_probabilities_and_their_complement() -> None:
    """Down to e^-80, where 1 - p has long been 1."""
    session = create_session(encode_model(3), threads=1)
    logits = np.tile(np.array([0, -30, -79], np.float32), (1, 4, 1))
    feeds = {LOGITS: logits, **sample_count_inputs(4), **temperature_input(1.0)}
    summary, labels, means, variances, _, entropy_terms = session.run(
        SUMMARY_OUTPUTS + DETAIL_OUTPUTS, feeds
    )
    np.testing.assert_allclose(means[0, :3, 0], np.exp([0.0, -30, -79]), rtol=1e-6)
    np.testing.assert_allclose(means[0, 3:, 0], [-30, 30, 79], rtol=1e-6)
    np.testing.assert_allclose(entropy_terms.sum(axis=1), 31 * np.exp(-30.0), rtol=1e-5)
    assert (variances == 0).all()
    assert (summary[0, 3:9] == 0).all()  # deviations and errors
    assert summary[0, -1] == 0  # no sample's label is another
    assert labels.tolist() == [[[0]]]
