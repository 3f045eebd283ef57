"""The drift test: an exact martingale, rare false alarms, soon alarms, and the change's image."""

from itertools import permutations

import numpy as np
import pytest
from numpy.typing import NDArray

from model.uncertainty.drift import DriftTest

Ranks = NDArray[np.int64]

LEVEL = 0.01
VALIDATION_IMAGES = 2000


def observe(test: DriftTest, ranks: Ranks) -> DriftTest:
    """Continue a test; the image with number t arrives at second t."""
    first = test.images + 1
    test.observe(ranks, np.arange(first, first + len(ranks), dtype=np.float64))
    return test


def ranks_of_normal_scores(
    generator: np.random.Generator, images: int, validation_images: int = VALIDATION_IMAGES
) -> Ranks:
    """Return the ranks of a stream that is like the validation images."""
    validation = np.sort(generator.normal(size=validation_images))
    return np.searchsorted(validation, generator.normal(size=images))


def with_other_images(generator: np.random.Generator, ranks: Ranks, share: float) -> Ranks:
    """Replace a share of the images by images less typical than all but 2 validation images."""
    other = generator.random(len(ranks)) < share
    return np.where(other, generator.integers(0, 3, size=len(ranks)), ranks)


def test_mean_wealth_over_all_orders_of_the_images_is_exactly_one() -> None:
    """Four validation images and three of the stream, in each of the 7! equally likely orders."""
    wealths = []
    for order in permutations(range(7)):
        ranks = np.searchsorted(np.sort(order[:4]), order[4:])
        wealths.append(np.exp(observe(DriftTest(4, LEVEL), ranks).log_wealth))
    assert np.mean(wealths) == pytest.approx(1, abs=1e-12)
    assert np.std(wealths) > 0.05, "the test bets on something"


def test_false_alarms_are_no_more_frequent_than_the_level() -> None:
    """The same bets against a fixed distribution find the sampling error of the validation images.

    A test that is told of a million validation images takes the distribution for known.
    """
    generator = np.random.default_rng(1)
    streams, level, validation_images, scale = 150, 0.2, 200, 5000
    alarms = naive_alarms = 0
    for _ in range(streams):
        ranks = ranks_of_normal_scores(generator, 3000, validation_images)
        alarms += observe(DriftTest(validation_images, level), ranks).alarm is not None
        naive = observe(DriftTest(validation_images * scale, level), ranks * scale)
        naive_alarms += naive.alarm is not None
    deviation = np.sqrt(level * (1 - level) / streams)
    assert alarms / streams <= level + 3 * deviation
    assert naive_alarms / streams > level + 3 * deviation


@pytest.mark.parametrize("clean_images", [0, 10_000])
def test_five_percent_of_other_images_raise_the_alarm_soon(clean_images: int) -> None:
    generator = np.random.default_rng(2)
    for _ in range(10):
        ranks = ranks_of_normal_scores(generator, clean_images + 1000)
        ranks[clean_images:] = with_other_images(generator, ranks[clean_images:], 0.05)
        test = observe(DriftTest(VALIDATION_IMAGES, LEVEL), ranks)
        assert test.alarm is not None
        assert test.since is not None
        assert clean_images < test.alarm.event <= clean_images + 1000
        assert abs(test.since.event - clean_images) <= 200
        assert test.since.event <= test.alarm.event
        assert (test.alarm.time, test.since.time) == (test.alarm.event, test.since.event)
        assert test.p_value <= LEVEL


def test_a_shift_of_all_images_raises_the_alarm_too() -> None:
    generator = np.random.default_rng(3)
    validation = np.sort(generator.normal(size=VALIDATION_IMAGES))
    ranks = np.searchsorted(validation, generator.normal(-0.4, size=1000))
    assert observe(DriftTest(VALIDATION_IMAGES, LEVEL), ranks).alarm is not None


def test_alarm_stays_while_the_images_are_good_again() -> None:
    generator = np.random.default_rng(4)
    test = observe(DriftTest(VALIDATION_IMAGES, LEVEL), np.zeros(20, np.int64))
    alarm, since, p_value = test.alarm, test.since, test.p_value
    assert alarm is not None
    assert alarm.event < 20
    highest = test.log_wealth
    observe(test, ranks_of_normal_scores(generator, 5000))
    assert test.log_wealth < highest
    assert (test.alarm, test.since, test.p_value) == (alarm, since, p_value)


def test_images_at_once_or_one_by_one_give_the_same_test() -> None:
    generator = np.random.default_rng(5)
    ranks = ranks_of_normal_scores(generator, 1500)
    ranks[900:] = with_other_images(generator, ranks[900:], 0.1)
    together = observe(DriftTest(VALIDATION_IMAGES, LEVEL), ranks)
    assert together.alarm is not None
    single = DriftTest(VALIDATION_IMAGES, LEVEL)
    for index in range(len(ranks)):
        observe(single, ranks[index : index + 1])
    continued = b""
    for part in np.array_split(ranks, 7):
        test = observe(DriftTest(VALIDATION_IMAGES, LEVEL, continued), part)
        continued = test.to_bytes()
    for other in (single, DriftTest(VALIDATION_IMAGES, LEVEL, continued)):
        assert other.images == together.images
        assert (other.alarm, other.since) == (together.alarm, together.since)
        assert other.tails((0.01, 0.05)) == together.tails((0.01, 0.05))
        assert other.log_wealth == pytest.approx(together.log_wealth, rel=1e-9)
        assert other.p_value == pytest.approx(together.p_value, rel=1e-9)


def test_wealth_of_extreme_streams_stays_finite() -> None:
    """Bettors lose for 100,000 images, then win as much as they can."""
    test = observe(DriftTest(VALIDATION_IMAGES, LEVEL), np.full(100_000, VALIDATION_IMAGES))
    assert -3 < test.log_wealth < 0
    observe(test, np.zeros(2000, np.int64))
    assert test.since is not None
    assert test.since.event == 100_001
    assert np.isfinite(test.log_wealth)


def test_state_does_not_grow_with_the_stream() -> None:
    generator = np.random.default_rng(6)
    test = DriftTest(VALIDATION_IMAGES, LEVEL)
    size = len(test.to_bytes())
    assert len(observe(test, ranks_of_normal_scores(generator, 3000)).to_bytes()) == size


def test_tails_count_the_images_of_low_p_values_against_what_is_expected() -> None:
    test = DriftTest(179, LEVEL)
    assert [np.isnan(tail.share) for tail in test.tails((0.01, 0.05))] == [True, True]
    observe(test, np.array([0, 1, 8, 9, 100, 179]))
    low, high = test.tails((0.01, 0.05))
    # Of 180 gaps one is at most .01 of them, and nine are .05: a p-value is (rank + 1) / 180.
    assert (low.p_value, low.share, low.expected) == (0.01, 1 / 6, 1 / 180)
    assert (high.p_value, high.share, high.expected) == (0.05, 3 / 6, 9 / 180)


def test_new_test_has_no_evidence() -> None:
    test = DriftTest(VALIDATION_IMAGES, LEVEL)
    observe(test, np.empty(0, np.int64))
    assert (test.images, test.log_wealth, test.p_value) == (0, 0, 1)
    assert test.alarm is None
    assert test.since is None
