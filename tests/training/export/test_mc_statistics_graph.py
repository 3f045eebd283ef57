"""Rounding and batches. The values are tested in test_summary.py and test_mi_error.py."""

import numpy as np
import onnx
import pytest

from model.graphs.mc_statistics import (
    DETAIL_OUTPUTS,
    LOGITS,
    SUMMARY_OUTPUTS,
    VECTOR_WIDTH,
    sample_count_inputs,
    temperature_input,
)
from model.graphs.sessions import Session, create_session
from model.uncertainty.uncertainty_measures import entropy, softmax
from training.export.mc_statistics_graph import mc_statistics_model

ROWS = 40


def session_of(classes: int) -> Session:
    return create_session(mc_statistics_model(classes).SerializeToString(), threads=1)


@pytest.mark.parametrize("classes", [2, 3, 10, 17, 41, 101])
@pytest.mark.parametrize("samples", [4, 12, 64, 100, 256])
def test_mc_statistics_of_rows_do_not_depend_on_the_batch(classes: int, samples: int) -> None:
    assert samples % VECTOR_WIDTH == 0
    session = session_of(classes)
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
    summary, _ = session_of(classes).run(SUMMARY_OUTPUTS, feeds)
    each = softmax(logits)
    expected = entropy(each.mean(axis=1)) - entropy(each).mean(axis=1)
    np.testing.assert_allclose(summary[:, -2, 0], expected, rtol=0, atol=tolerance)


def test_mc_statistics_keep_tiny_probabilities_and_their_complement() -> None:
    """Down to e^-80, where 1 - p has long been 1."""
    session = session_of(3)
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


def test_mc_statistics_model_is_valid_and_draws_nothing() -> None:
    model = mc_statistics_model(7)
    onnx.checker.check_model(model, full_check=True)
    operators = {node.op_type for node in model.graph.node}
    assert not {name for name in operators if "Random" in name or name == "Dropout"}
    assert model.graph.input[0].name == LOGITS


def test_mc_statistics_of_a_thousand_classes_take_few_bytes() -> None:
    assert len(mc_statistics_model(1_000).SerializeToString()) < 20_000


def test_mc_statistics_run_by_logits_alone_tell_all_but_errors() -> None:
    """In any ONNX runtime, which knows of no further input."""
    logits = np.random.default_rng(0).normal(0, 2, (3, 8, 5)).astype(np.float32)
    fed = {**sample_count_inputs(8, random=False), **temperature_input(1.0)}
    session = session_of(5)
    alone, expected = (
        session.run(SUMMARY_OUTPUTS + DETAIL_OUTPUTS, {LOGITS: logits, **more})
        for more in ({}, fed)
    )
    for one, other in zip(alone, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.isnan(alone[0][:, 10:15]).all()
    assert not np.isnan(np.delete(alone[0], slice(10, 15), axis=1)).any()
