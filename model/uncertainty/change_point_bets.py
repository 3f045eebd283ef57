"""Tests of a stream by bettors of whom each supposes a change at one event, and begins there.

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


class Moment(NamedTuple):
    """An event of a stream."""

    event: int
    """Its number, from 1."""
    time: float
    """When it happened, seconds since 1970."""


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


class WealthOverTime:
    """The wealth of all bettors on a stream, and the alarm that it raises when it is high."""

    def __init__(self, level: float, start: NDArray[np.void], state: bytes) -> None:
        """Begin a test, or continue one.

        Args:
            level: 0 < level < 1, the largest probability of a false alarm.
            start: [1], the state of a new test, with the fields log_wealths, log_wealth,
                highest_log_wealth, alarm_event (0: none) and alarm_time, and those of the subclass.
            state: of `to_bytes`; empty for a new test.
        """
        self._threshold = -np.log(level)
        self._state = np.frombuffer(state, start.dtype)[0:1].copy() if state else start

    def to_bytes(self) -> bytes:
        """Return the state, from which another test of the same kind can continue."""
        return self._state.tobytes()

    @property
    def log_wealth(self) -> float:
        """The natural logarithm of the wealth now; 0 at first."""
        return float(self._get("log_wealth"))

    @property
    def p_value(self) -> float:
        """Probability that a stream without a change ever gives a wealth so high, at most.

        It is 1 over the highest wealth so far, and holds whenever one looks (Ville 1939): an
        anytime-valid p-value.
        """
        return float(np.exp(-self._get("highest_log_wealth")))

    @property
    def alarm(self) -> Moment | None:
        """The event that raised the alarm; None: there is no alarm. An alarm stays."""
        return self._moment("alarm")

    def _get(self, name: str) -> Float64Array:
        field: Float64Array = self._state[name][0]
        return field

    def _moment(self, name: str) -> Moment | None:
        event = int(self._get(f"{name}_event"))
        return Moment(event, float(self._get(f"{name}_time"))) if event else None

    def _raise_alarm(self, bets: ContinuedBets, seen: int, times: Float64Array) -> int | None:
        """Record the first of m events at which the wealth reaches its limit; return its index.

        None: none of them does, or there is an alarm already.

        Args:
            bets: after each of the events.
            seen: how many events there were before.
            times: [m].
        """
        state = self._state[0]
        reached = bets.log_wealth >= self._threshold
        if state["alarm_event"] or not reached.any():
            return None
        index = int(reached.argmax())
        state["alarm_event"], state["alarm_time"] = seen + index + 1, times[index]
        return index

    def _keep_wealth(self, bets: ContinuedBets) -> None:
        state = self._state[0]
        state["log_wealths"] = bets.log_wealths[:, -1]
        state["log_wealth"] = bets.log_wealth[-1]
        state["highest_log_wealth"] = max(state["highest_log_wealth"], bets.log_wealth.max())


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
