"""Bets on a change: the prior adds up, and events at once are the same as one after the other."""

import numpy as np

from model.uncertainty.change_point_bets import _log_prior, _log_prior_after, continue_bets


def test_prior_probabilities_of_all_changes_sum_to_one() -> None:
    events = np.arange(1, 100_001)
    totals = np.exp(_log_prior(events)).cumsum() + np.exp(_log_prior_after(events))
    np.testing.assert_allclose(totals, 1, rtol=1e-12)


def test_events_at_once_give_the_wealth_of_one_after_the_other() -> None:
    log_factors = np.log(np.random.default_rng(0).uniform(0.5, 1.6, size=(3, 40)))
    log_wealths = np.full(3, -np.inf)
    at_once = continue_bets(log_wealths, log_factors, 0)
    for number in range(40):
        one = continue_bets(log_wealths, log_factors[:, number : number + 1], number)
        log_wealths = one.log_wealths[:, -1]
        np.testing.assert_allclose(one.log_wealth, at_once.log_wealth[number])
