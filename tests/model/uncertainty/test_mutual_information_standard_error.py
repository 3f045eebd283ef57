from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.integrate import quad
from scipy.special import expit, rel_entr
from scipy.stats import norm

from model.uncertainty.mutual_information_standard_error import divergence_variances
from tests.sample_summaries import summarise

SAMPLES = 32


def expectation(function: Callable[[float], float], centre: float, deviation: float) -> float:
    """Return the expectation over a normal distribution, by SciPy's adaptive quadrature."""

    def weighted(standard: float) -> float:
        return float(norm.pdf(standard)) * function(centre + deviation * standard)

    return float(quad(weighted, -12, 12, limit=200, epsabs=0, epsrel=1e-10)[0])


@pytest.mark.parametrize(("centre", "deviation"), [(0, 0.5), (-6, 1.5), (-10, 2.5), (3, 2), (8, 1)])
def test_variances_are_those_of_the_logit_normal(centre: float, deviation: float) -> None:
    """Two classes, whose samples have the given standard deviation once it is widened.

    The samples are few quantiles at equal steps of probability, so they miss the tail.
    """
    quantiles = norm.ppf((np.arange(SAMPLES) + 0.5) / SAMPLES)
    spread = np.std(quantiles, ddof=1) * (1 + 3 / SAMPLES)
    logits = np.zeros((1, SAMPLES, 2), np.float32)
    logits[0, :, 0] = centre + quantiles * deviation / spread
    mean = expectation(expit, centre, deviation)
    found = summarise(logits).standard_error[0] ** 2 * SAMPLES
    variance = expectation(lambda logit: expit(logit) ** 2, centre, deviation) - mean**2
    np.testing.assert_allclose(found, variance, rtol=0.02)
    width = np.array([(deviation / (1 + 3 / SAMPLES)) ** 2 * (SAMPLES - 1) / SAMPLES])
    divergences = divergence_variances(
        np.array([-centre], np.float64), width, SAMPLES, np.array([mean])
    )

    def divergence(logit: float) -> float:
        return float(rel_entr(float(expit(logit)), mean) + rel_entr(float(expit(-logit)), 1 - mean))

    expected = expectation(divergence, centre, deviation)
    squared = expectation(lambda logit: divergence(logit) ** 2, centre, deviation)
    np.testing.assert_allclose(divergences, squared - expected**2, rtol=0.02)


@given(arrays(np.float32, (3, 1, 4), elements=st.floats(-80, 80, width=32)), st.integers(2, 9))
def test_equal_samples_have_no_error(logits: np.ndarray, samples: int) -> None:
    result = summarise(np.repeat(logits, samples, axis=1))
    assert (result.standard_error == 0).all()
    assert (result.mutual_information_error == 0).all()


def test_intervals_cover_the_truth_where_normal_intervals_do_not() -> None:
    """Heavy tails: normal logits with a large variance, as for confident images."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(200, 1, 10)) * 3

    def draw(samples: int) -> np.ndarray:
        noise = generator.normal(size=(200, samples, 10)) * 1.5
        return (centres + noise).astype(np.float32)

    blocks = [summarise(draw(2_000)) for _ in range(20)]
    truth = np.mean([block.mean_probabilities for block in blocks], axis=0)
    information = np.mean([block.mutual_information for block in blocks], axis=0)
    covered, covered_plainly, covered_information = [], [], []
    for _ in range(20):
        result = summarise(draw(64))
        error = np.abs(result.mean_probabilities - truth)
        covered.append(error <= 1.96 * result.standard_error)
        covered_plainly.append(error <= 1.96 * result.probability_std / np.sqrt(63))
        information_error = np.abs(result.mutual_information - information)
        covered_information.append(information_error <= 1.96 * result.mutual_information_error)
    assert np.mean(covered_plainly) < 0.9
    assert np.mean(covered) > 0.95
    assert np.mean(covered_information) > 0.95
