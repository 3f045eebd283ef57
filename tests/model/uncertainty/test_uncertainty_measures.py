import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.special import softmax as scipy_softmax
from scipy.stats import entropy as scipy_entropy

from model.graphs.mc_statistics import DETAIL_OUTPUTS, MEANS, SUMMARY_OUTPUTS
from model.uncertainty.uncertainty_measures import entropy, softmax
from tests.sample_summaries import summarise, summarise_points
from training.export.mc_statistics_graph import mc_statistics_of

Logits = NDArray[np.float32]

# From 8 classes on, NumPy sums some arrays in another order.
logits = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(2, 10)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(-80, 80, width=32))
)


@given(logits)
def test_uncertainty_satisfies_its_identities_and_bounds(values: Logits) -> None:
    result = summarise(values)
    classes, max_entropy = values.shape[2], np.log(values.shape[2]) + 1e-12
    np.testing.assert_allclose(
        result.mutual_information + result.expected_entropy, result.predictive_entropy, atol=1e-12
    )
    assert (result.mutual_information >= 0).all()
    assert (result.mutual_information <= result.predictive_entropy).all()
    assert (result.predictive_entropy <= max_entropy).all()
    assert (result.expected_entropy >= 0).all()
    assert (result.variation_ratio >= 0).all()
    assert (result.variation_ratio <= 1).all()
    np.testing.assert_allclose(result.mean_probabilities.sum(axis=1), 1, atol=1e-12)
    assert (result.labels == result.mean_probabilities.argmax(axis=1)).all()
    assert result.mean_probabilities.shape == (len(values), classes)


@given(logits)
def test_summarise_agrees_with_scipy(values: Logits) -> None:
    """To within what float32 rounds off, up to 2e-7 a sample."""
    result = summarise(values)
    samples = scipy_softmax(values.astype(np.float64), axis=-1)
    mean = samples.mean(axis=1)
    np.testing.assert_allclose(result.mean_probabilities, mean, atol=1e-6)
    np.testing.assert_allclose(result.probability_std, samples.std(axis=1), atol=1e-6)
    np.testing.assert_allclose(result.predictive_entropy, scipy_entropy(mean, axis=1), atol=2e-6)
    expected = scipy_entropy(samples, axis=-1).mean(axis=1)
    uncorrected = summarise_points(values)
    np.testing.assert_allclose(uncorrected.expected_entropy, expected, atol=2e-6)
    count = values.shape[1]
    if count > 1:  # the delta method's bias of H(mean), up to all of the entropy
        bias = (samples.var(axis=1, ddof=1) / count / np.maximum(mean, 1e-300)).sum(axis=1) / 2
        corrected = np.minimum(uncorrected.mutual_information + bias, result.predictive_entropy)
        np.testing.assert_allclose(result.mutual_information, corrected, atol=4e-6)


@given(logits, st.integers(1, 70))
def test_equal_samples_have_exactly_no_mutual_information(values: Logits, samples: int) -> None:
    """As with p = 0: no value depends on the number of samples."""
    equal = np.repeat(values[:, :1], samples, axis=1)
    result, single = summarise(equal), summarise(values[:, :1])
    assert (result.probability_std == 0).all()
    assert (result.mutual_information == 0).all()
    assert (result.variation_ratio == 0).all()
    np.testing.assert_array_equal(result.mean_probabilities, single.mean_probabilities)
    np.testing.assert_array_equal(result.predictive_entropy, single.predictive_entropy)


@given(arrays(np.float32, (1, 1, 5), elements=st.floats(-40, 40, width=32)))
def test_logit_means_are_exact_where_probabilities_round_to_1(
    values: Logits,
) -> None:
    powers = np.exp(values[0, 0].astype(np.float64))
    expected = [np.log(power / np.delete(powers, k).sum()) for k, power in enumerate(powers)]
    outputs = mc_statistics_of(5).run(np.repeat(values, 2, axis=1), 1.0, random=True)
    means = dict(zip(SUMMARY_OUTPUTS + DETAIL_OUTPUTS, outputs, strict=True))[MEANS]
    np.testing.assert_allclose(-means[0, 5:, 0], expected, atol=2e-5)


@given(logits)
def test_summarise_gives_a_row_the_same_bytes_alone_and_in_a_batch(values: Logits) -> None:
    batch = summarise(values)
    for row in range(len(values)):
        alone, taken = summarise(values[row : row + 1]), batch.take(slice(row, row + 1))
        for name in type(alone).__slots__:
            np.testing.assert_array_equal(getattr(alone, name), getattr(taken, name))


@pytest.mark.parametrize("classes", [2, 41, 47, 97, 1000])
def test_certain_samples_keep_entropies_within_bounds(classes: int) -> None:
    """The numbers of classes are those for which K times a mean rounds below the sum."""
    values = np.zeros((2, 4, classes), np.float32)
    values[0, :, 0] = values[1, :, -1] = 40
    result = summarise(values)
    assert (result.mean_probabilities <= 1).all()
    assert (result.predictive_entropy >= 0).all()
    assert (result.expected_entropy >= 0).all()
    assert (result.mutual_information == 0).all()


def test_certain_samples_that_disagree_have_only_epistemic_uncertainty() -> None:
    values = np.array([[[90.0, 0.0], [0.0, 90.0]]], np.float32)
    result = summarise(values)
    assert result.mutual_information[0] == pytest.approx(np.log(2))
    assert result.expected_entropy[0] == pytest.approx(0, abs=1e-12)
    assert result.variation_ratio[0] == 0.5
    assert result.probability_std[0] == pytest.approx([0.5, 0.5])
    assert result.standard_error[0] == pytest.approx([0.5, 0.5])


def test_single_sample_has_no_standard_error() -> None:
    assert np.isnan(summarise(np.ones((1, 1, 3), np.float32)).standard_error).all()


def test_softmax_and_entropy_handle_extreme_logits() -> None:
    probabilities = softmax(np.array([[3e38, -3e38, 0.0]], np.float32))
    np.testing.assert_array_equal(probabilities, [[1, 0, 0]])
    assert entropy(probabilities)[0] == 0
