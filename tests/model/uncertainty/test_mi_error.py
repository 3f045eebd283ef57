from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.integrate import quad
from scipy.special import expit, rel_entr
from scipy.stats import norm

from model.uncertainty.mi_error import divergence_variances
from model.uncertainty.summary import summarise

SAMPLES = 32


def expectation(of: Callable[[float], float], centre: float, deviation: float) -> float:
    """Over a normal distribution, by SciPy's adaptive quadrature."""

    def weighted(standard: float) -> float:
        return float(norm.pdf(standard)) * of(centre + deviation * standard)

    return float(quad(weighted, -12, 12, limit=200, epsabs=0, epsrel=1e-10)[0])


@pytest.mark.parametrize(("centre", "deviation"), [(0, 0.5), (-6, 1.5), (-10, 2.5), (3, 2), (8, 1)])
def test_the_variances_are_those_of_the_logit_normal(centre: float, deviation: float) -> None:
    """Two classes whose samples' deviation is the wished one once it is widened.

    They are few, and evenly spread as to probability: they miss the tail.
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
def test_samples_that_are_equal_leave_no_error(logits: np.ndarray, samples: int) -> None:
    result = summarise(np.repeat(logits, samples, axis=1))
    assert (result.standard_error == 0).all()
    assert (result.mutual_information_error == 0).all()


def test_intervals_cover_the_truth_where_plain_ones_do_not() -> None:
    """Heavy tails: normal logits of a wide spread, as head dropout gives confident images."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(200, 1, 10)) * 3

    def drawn(samples: int) -> np.ndarray:
        noise = generator.normal(size=(200, samples, 10)) * 1.5
        return (centres + noise).astype(np.float32)

    blocks = [summarise(drawn(2_000)) for _ in range(20)]
    truth = np.mean([block.mean_probabilities for block in blocks], axis=0)
    information = np.mean([block.mutual_information for block in blocks], axis=0)
    covered, plainly, informed = [], [], []
    for _ in range(20):
        result = summarise(drawn(64))
        wrong = np.abs(result.mean_probabilities - truth)
        covered.append(wrong <= 1.96 * result.standard_error)
        plainly.append(wrong <= 1.96 * result.probability_std / np.sqrt(63))
        misinformed = np.abs(result.mutual_information - information)
        informed.append(misinformed <= 1.96 * result.mutual_information_error)
    assert np.mean(plainly) < 0.9
    assert np.mean(covered) > 0.95
    assert np.mean(informed) > 0.95
