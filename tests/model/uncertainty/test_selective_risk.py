"""The threshold search against SciPy, and what it promises in simulations."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import beta, binom

from model.uncertainty.selective_risk import RISK_STARTS, binomial_tails, confidence_threshold

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def reference_threshold(
    confidences: Floats, correct: Bools, max_risk: float, failure: float
) -> float | None:
    """Search with Clopper-Pearson bounds of scipy.stats.beta, image by image."""
    bounds = []
    for confidence in confidences:
        above = confidences >= confidence
        images, errors = int(above.sum()), int((~correct[above]).sum())
        level = 1 - failure / RISK_STARTS
        bounds.append(1.0 if errors == images else beta.ppf(level, errors + 1, images - errors))
    lowest = None
    for part in range(1, RISK_STARTS + 1):
        row = len(bounds) * part // RISK_STARTS - 1
        while 0 <= row < len(bounds) and bounds[row] <= max_risk:
            lowest = min(confidences[row], np.inf if lowest is None else lowest)
            row += 1
    return lowest


@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 400),
    levels=st.sampled_from([3, 40, 10**9]),
    error=st.floats(0, 0.4),
    max_risk=st.floats(0.001, 0.999),
)
def test_confidence_threshold_equals_a_search_with_bounds_of_scipy(
    seed: int, count: int, levels: int, error: float, max_risk: float
) -> None:
    """With few `levels` many images are equally confident."""
    generator = np.random.default_rng(seed)
    confidences = -np.sort(-np.floor(generator.random(count) * levels) / levels)
    correct = generator.random(count) >= error * 2 * (1 - confidences)
    expected = reference_threshold(confidences, correct, max_risk, 0.05)
    assert confidence_threshold(confidences, correct, max_risk, 0.05) == expected


@pytest.mark.parametrize("risk", [1e-12, 0.001, 0.01, 0.05, 0.3, 0.9, 1 - 1e-12])
@pytest.mark.parametrize("error", [0.0, 0.02, 0.3, 1.0])
def test_binomial_tails_are_those_of_scipy(risk: float, error: float) -> None:
    correct = np.random.default_rng(1).random(20_000) >= error
    sizes = np.arange(1, 20_001)
    expected = binom.cdf(np.cumsum(~correct), sizes, risk)
    np.testing.assert_allclose(binomial_tails(correct, risk), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("correct", "accepted"),
    [
        ([False] * 5 + [True] * 15, 0),
        ([True] * 100, 100),
        ([True] * 60 + [False] * 40, 64),
        ([False] * 4 + [True] * 96, 100),
        ([True, False] * 50, 0),
    ],
)
def test_search_starts_at_any_tenth_and_ends_at_the_first_exceeded_bound(
    correct: list[bool], accepted: int
) -> None:
    """At a risk of 20 %, 24 images without an error suffice, and 59 with four."""
    confidences = np.linspace(1, 0, len(correct))
    found = confidence_threshold(confidences, np.array(correct), 0.2, 0.05)
    assert found == (confidences[accepted - 1] if accepted else None)


def test_no_image_has_no_threshold() -> None:
    nothing = np.empty(0)
    assert confidence_threshold(nothing, nothing.astype(np.bool_), 0.5, 0.05) is None


def test_search_over_5000_images_is_short() -> None:
    """Clients choose the risk, so a search must not hold the event loop; the best of ten counts."""
    generator = np.random.default_rng(2)
    confidences = -np.sort(-generator.random(5_000))
    correct = generator.random(5_000) < 0.5 + confidences / 2
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        confidence_threshold(confidences, correct, float(generator.random()), 0.05)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.01
