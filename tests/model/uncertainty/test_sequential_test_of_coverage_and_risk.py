"""The test of promises: exact bets, rare false alarms, soon alarms, states that go on."""

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from model.uncertainty.sequential_test_of_coverage_and_risk import (
    PromisedRateTest,
    level_of_coverage_test,
    level_of_risk_test,
    worst_alarm,
)

LEVEL = 0.01
STREAMS, LABELS = 500, 256
COVERAGE, VALIDATION_IMAGES = 0.9, 1000


def of_risk(misses: NDArray[np.bool_], max_risk: float, level: float = LEVEL) -> PromisedRateTest:
    test = PromisedRateTest(level)
    times = np.arange(len(misses), dtype=np.float64)
    test.observe_risk(misses, np.full(len(misses), max_risk), times)
    return test


def of_coverage(
    misses: NDArray[np.bool_], level: float = LEVEL, validation_images: int = VALIDATION_IMAGES
) -> PromisedRateTest:
    test = PromisedRateTest(level)
    times = np.arange(len(misses), dtype=np.float64)
    test.observe_coverage(misses, COVERAGE, validation_images, times)
    return test


def sets_that_miss(
    generator: np.random.Generator, labels: int, validation_images: int = VALIDATION_IMAGES
) -> NDArray[np.bool_]:
    """Draw scores of validation images and of a stream that is like them."""
    scores = np.sort(generator.random(validation_images))
    rank = int(np.ceil((validation_images + 1) * COVERAGE))
    return np.asarray(generator.random(labels) > scores[rank - 1])


def test_mean_wealth_is_one_where_the_promise_just_holds() -> None:
    """Over all outcomes of six labels, by their probabilities: under a fixed rate and the urn."""
    of_fixed, of_urn = 0.0, 0.0
    for outcome in product((False, True), repeat=6):
        misses = np.array(outcome)
        of_fixed += np.exp(of_risk(misses, 0.2).log_wealth) * np.prod(np.where(misses, 0.2, 0.8))
        missed = np.cumsum(misses) - misses
        urn = (1 + missed) / (10 + np.arange(6))  # nine validation images: one gap is beyond .9
        wealth = np.exp(of_coverage(misses, validation_images=9).log_wealth)
        of_urn += wealth * np.prod(np.where(misses, urn, 1 - urn))
    assert [of_fixed, of_urn] == pytest.approx([1, 1], abs=1e-12)


def test_promised_coverage_has_the_exact_rank_of_its_threshold() -> None:
    """Of 100 gaps, 45 are beyond .55, although 100 * .55 is a little more than 55 in floats."""
    miss, time = np.array([True]), np.array([0.0])
    test = PromisedRateTest(LEVEL)
    test.observe_coverage(miss, 0.55, 99, time)
    assert test.log_wealth == pytest.approx(of_risk(miss, 0.45).log_wealth, abs=1e-12)


def test_false_alarms_over_500_streams_are_no_more_frequent_than_the_level() -> None:
    generator = np.random.default_rng(0)
    risks = [of_risk(generator.random(LABELS) < 0.05, 0.05) for _ in range(STREAMS)]
    coverages = [of_coverage(sets_that_miss(generator, LABELS)) for _ in range(STREAMS)]
    for tests in (risks, coverages):
        assert sum(test.alarm is not None for test in tests) <= LEVEL * STREAMS


@pytest.mark.parametrize("before", [0, 3000])
def test_broken_promise_is_found_within_some_hundred_labels(before: int) -> None:
    """Twice as many misses as promised, at once and after labels that keep the promise."""
    generator = np.random.default_rng(1)
    for promised, test_of in ((0.05, lambda each: of_risk(each, 0.05)), (0.1, of_coverage)):
        delays = []
        for _ in range(20):
            good = generator.random(before) < 0.8 * promised
            test = test_of(np.concatenate([good, generator.random(2000) < 2 * promised]))
            assert test.alarm is not None
            delays.append(test.alarm.event - before)
        assert min(delays) > 0
        assert np.median(delays) < 900


def test_state_goes_on_in_another_process() -> None:
    misses = np.random.default_rng(2).random(300) < 0.1
    at_once = of_coverage(misses)
    test = PromisedRateTest(LEVEL)
    for start in range(0, 300, 7):
        part = misses[start : start + 7]
        test = PromisedRateTest(LEVEL, test.to_bytes())
        test.observe_coverage(part, COVERAGE, VALIDATION_IMAGES, np.zeros(len(part)))
    assert (test.events, test.misses) == (at_once.events, at_once.misses)
    assert test.log_wealth == pytest.approx(at_once.log_wealth)
    assert test.p_value == pytest.approx(at_once.p_value)


def test_alarm_stays_and_names_its_label() -> None:
    test = of_risk(np.concatenate([np.ones(20, np.bool_), np.zeros(5000, np.bool_)]), 0.01)
    assert test.alarm is not None
    label, time = test.alarm
    assert 0 < label <= 20
    assert time == label - 1
    assert test.log_wealth < 0


def test_promise_of_no_error_at_all_is_tested_too() -> None:
    misses = np.zeros(100, np.bool_)
    misses[50] = True
    assert np.isfinite(of_risk(misses, 0.0).log_wealth)
    with_sets_of_all = PromisedRateTest(LEVEL)
    with_sets_of_all.observe_coverage(misses, 0.9999, 100, np.zeros(100))
    assert np.isfinite(with_sets_of_all.log_wealth)


def test_levels_of_all_tests_add_up_to_at_most_the_level() -> None:
    of_coverages = sum(level_of_coverage_test(LEVEL, number) for number in range(9))
    assert level_of_risk_test(LEVEL) + of_coverages <= LEVEL


def test_test_with_an_alarm_is_the_worst_one() -> None:
    calm, suspicious = of_risk(np.zeros(9, np.bool_), 0.1), of_risk(np.ones(2, np.bool_), 0.1)
    broken = of_risk(np.concatenate([np.ones(20, np.bool_), np.zeros(5000, np.bool_)]), 0.1)
    assert worst_alarm([calm, suspicious]) is suspicious
    assert worst_alarm([suspicious, broken]) is broken
    assert worst_alarm([]) is None
