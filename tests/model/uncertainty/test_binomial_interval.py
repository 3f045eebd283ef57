"""Wilson's interval against published values, and how often it covers the true share."""

import numpy as np
import pytest

from model.uncertainty.binomial_interval import wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Method 3 of Newcombe (1998), table I.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_interval_is_the_published_one(
    successes: int, trials: int, low: float, high: float
) -> None:
    interval = wilson_interval(successes, trials)
    assert interval is not None
    assert tuple(interval) == pytest.approx((successes / trials, low, high), abs=5e-5)


def test_interval_holds_its_estimate_and_lies_between_0_and_1() -> None:
    for trials in [*range(1, 300), 10**6, 10**12]:
        for successes in {0, 1, trials // 2, trials - 1, trials}:
            interval = wilson_interval(successes, trials)
            assert interval is not None
            assert 0 <= interval.low <= interval.estimate <= interval.high <= 1


def test_no_trial_has_no_interval() -> None:
    assert wilson_interval(0, 0) is None


def test_interval_covers_the_true_share_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    shares = generator.uniform(size=4000)
    covered = 0
    for share, successes in zip(shares, generator.binomial(100, shares), strict=True):
        interval = wilson_interval(int(successes), 100)
        assert interval is not None
        covered += interval.low <= share <= interval.high
    assert covered / 4000 == pytest.approx(0.95, abs=0.015)
