"""Wealth of bettors of whom each supposes a change at one event of a stream, and begins there.

What a bettor multiplies its wealth by is its caller's: `model.uncertainty.drift` bets on ranks,
`model.uncertainty.sequential_test_of_coverage_and_risk` on errors. The wealth of all is the average
over the bettors and over the event at which the change happens, again a martingale if the factors
have mean 1:

    wealth after t events = sum over r <= t of prior(r) * (wealth of the bettors that began at r)
                            + the prior probability of changes after t.

Memory and time do not grow with the stream.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

MAX_CHUNK = 64
"""Most events of one vectorised step: the wealths of so many fit into the range of float64."""
_PRIOR_OF_FIRST = 0.25
"""Prior probability of a change that is there from the first event on."""
_PRIOR_OFFSET = 1000.0
"""The prior of later changes falls slowly beyond so many events, see `_log_prior_after`."""


class ContinuedBets(NamedTuple):
    """What m events have made of the wealth of B bettors."""

    growth: Float64Array
    """[B, m]: running sums of the logs of the factors."""
    begun: Float64Array
    """[B, m]: log of what a beginning at each event contributes, without `growth`."""
    log_wealths: Float64Array
    """[B, m]: log of each bettor's wealth over all changes so far, after each event."""
    log_wealth: Float64Array
    """[m]: log of the wealth of all, after each event."""


def continue_bets(log_wealths: Float64Array, log_factors: Float64Array, seen: int) -> ContinuedBets:
    """Continue with m events at once, at most MAX_CHUNK.

    A bettor that began at event r has the wealth exp(growth(t) - growth(r - 1)), where growth is
    the running sum of the log factors. So what all its beginnings contribute is exp(growth(t))
    times a running sum over r of prior(r) * exp(-growth(r - 1)).

    Args:
        log_wealths: [B], after the events before; minus infinity at first.
        log_factors: [B, m], logs of what each event multiplies each bettor's wealth by.
        seen: how many events there were before.
    """
    numbers = seen + 1 + np.arange(log_factors.shape[1])
    growth = np.cumsum(log_factors, axis=1)
    begun = _log_prior(numbers) - growth + log_factors
    each = growth + _log_cumsum(prepend(log_wealths, begun))[:, 1:]
    log_mean = _log_sum(each) - np.log(len(each))
    return ContinuedBets(growth, begun, each, np.logaddexp(log_mean, _log_prior_after(numbers)))


def prepend(column: Float64Array, columns: Float64Array) -> Float64Array:
    """Return [k, m + 1], from [k] and [k, m]."""
    return np.concatenate([column[:, np.newaxis], columns], axis=1)


def _log_sum(logarithms: Float64Array) -> Float64Array:
    """Return the logs of the sums of exp over the first axis."""
    highest = logarithms.max(axis=0)
    total: Float64Array = highest + np.log(np.exp(logarithms - highest).sum(axis=0))
    return total


def _log_cumsum(logarithms: Float64Array) -> Float64Array:
    """Return the logs of the running sums of exp over the last axis.

    A sum that is too small beside the largest value to be represented is 0, which bets nothing.
    This takes half of the time of `np.logaddexp.accumulate`.
    """
    highest = logarithms.max(axis=1, keepdims=True)
    sums = np.cumsum(np.exp(logarithms - highest), axis=1)
    with np.errstate(divide="ignore"):
        result: Float64Array = highest + np.log(sums)
    return result


def _log_prior_after(events: Int64Array) -> Float64Array:
    """Return the log of the prior probability of a change after so many events, each at least 1.

    The probability falls like 1 / ln(events): so slowly that the price of a late change is small,
    and yet the probabilities of all events sum to 1.
    """
    offset = np.log(_PRIOR_OFFSET)
    after: Float64Array = np.log((1 - _PRIOR_OF_FIRST) * offset / np.log(_PRIOR_OFFSET + events))
    return after


def _log_prior(events: Int64Array) -> Float64Array:
    """Return the log of the prior probability of a change at the event of each number, from 1."""
    lower, upper = np.log(_PRIOR_OFFSET + events - 1), np.log(_PRIOR_OFFSET + events)
    # 1 / lower - 1 / upper, without the cancellation.
    difference = np.log1p(1 / (_PRIOR_OFFSET + events - 1)) / (lower * upper)
    later = (1 - _PRIOR_OF_FIRST) * np.log(_PRIOR_OFFSET) * difference
    prior: Float64Array = np.log(np.where(events == 1, later + _PRIOR_OF_FIRST, later))
    return prior
