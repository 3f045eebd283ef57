import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.integrate import quad
from scipy.stats import norm

from model.sampling_error import Floats, LogitNormal, odds
from model.uncertainty import summarise

_values = arrays(np.float64, (2, 3, 5), elements=st.floats(-50, 0))


@given(_values)
def test_odds_are_the_logarithm_of_p_over_its_rest(exponents: Floats) -> None:
    exponents -= exponents.max(axis=-1, keepdims=True)
    powers = np.exp(exponents)
    for index in np.ndindex(exponents.shape):
        rest = np.delete(powers[index[:-1]], index[-1]).sum()
        expected = exponents[index] - np.log(rest)
        assert odds(exponents, powers)[index] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("centre", "deviation"), [(0, 0.5), (-6, 1.5), (-10, 2.5), (3, 2), (8, 1)])
def test_the_variance_is_that_of_the_logit_normal(centre: float, deviation: float) -> None:
    """Against SciPy's adaptive quadrature; the samples have the wished mean and deviation."""
    pairs = np.tile([1.0, -1.0], 1_000) * np.sqrt(1 - 1 / 2_000) / (1 + 3 / 2_000)
    samples = centre + deviation * pairs
    logits = np.stack([samples, -samples], axis=-1)[np.newaxis]

    def moment(power: int) -> float:
        def weighted(standard: float) -> float:
            share = 1 / (1 + math.exp(-centre - deviation * standard))
            return float(norm.pdf(standard)) * share**power

        return float(quad(weighted, -12, 12, limit=200, epsabs=0, epsrel=1e-10)[0])

    expected = moment(2) - moment(1) ** 2
    np.testing.assert_allclose(LogitNormal(logits).variance()[0], expected, rtol=0.02)


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
