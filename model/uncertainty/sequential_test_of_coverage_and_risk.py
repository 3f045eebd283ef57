"""Sequential test of a promise: are more labels wrong, or more sets without the true class?

Two promises are tested, as true labels arrive one after another. The risk: of the answers that do
not abstain, at most the share `max_risk` is wrong. The coverage: a prediction set misses the true
class with a probability of at most 1 - coverage. Each event is a miss or none, and the promise
bounds the probability p of a miss, given all events before. A bettor supposes that from one event
on a share s of the images misses for sure, and multiplies its wealth by 1 + s (1/p - 1) at a miss,
else by 1 - s. That has a mean of at most 1 while the promise holds, so the wealth ever reaches 1/a
with a probability of at most a (Ville 1939; betting as in Waudby-Smith & Ramdas 2024). The alarm
may be looked at after every label. The wealth is the average over SHARES and over the event at
which the promise breaks (`model.uncertainty.change_point_bets`).

The risk is promised of one bundle, so p = max_risk. The coverage of split conformal sets is
promised over the draw of the n validation images, too: given these, that of one bundle is a little
higher or lower, and a test against 1 - coverage would find that error after enough labels. Exact is
this: a threshold leaves g of the n + 1 gaps between the validation scores beyond it, and the next
score is equally likely to fall into each gap between all scores so far. So after s labels with k
misses, p = (g + k) / (n + 1 + s), a Polya urn, as in `model.uncertainty.drift`. With
class-conditional sets, whose thresholds come from the images of one class each, that is an
approximation.

Knows no bundle and no label's text.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from model.uncertainty.change_point_bets import MAX_CHUNK, WealthOverTime, continue_bets
from model.uncertainty.whole_ranks import rank_from

Float64Array = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

SHARES = (0.003, 0.01, 0.03, 0.1, 0.3)
"""The shares of images that bettors suppose to miss for sure."""

_SHARES = np.array(SHARES)[:, np.newaxis]
_LEAST_PROBABILITY = 1e-6
"""A promise that allows less is tested as one that allows this, which can only delay an alarm."""
_STATE = np.dtype(
    [
        ("events", "f8"),
        ("misses", "f8"),
        ("log_wealths", "f8", (len(SHARES),)),
        ("log_wealth", "f8"),
        ("highest_log_wealth", "f8"),
        ("alarm_event", "f8"),
        ("alarm_time", "f8"),
    ]
)
"""What is remembered: how many events and misses there were, the log of each bettor's wealth, that
of all now and at its highest, and the event that raised the alarm (0: none) with its time."""


class PromisedRateTest(WealthOverTime):
    """Tests a stream of events, of which at most a promised share may be misses."""

    def __init__(self, level: float, state: bytes = b"") -> None:
        """Begin a test, or continue one.

        Args:
            level: 0 < level < 1, the largest probability of an alarm while the promise holds.
            state: of `to_bytes`; empty for a new test.
        """
        super().__init__(level, _new_state(), state)

    def observe_risk(self, misses: BoolArray, max_risks: Float64Array, times: Float64Array) -> None:
        """Continue with m answers that did not abstain.

        Args:
            misses: bool [m], whether each label was wrong.
            max_risks: [m] in 0..1, the error rate that each answer promised.
            times: [m], when the true labels arrived, seconds since 1970.
        """
        self._observe(misses, max_risks, times)

    def observe_coverage(
        self, misses: BoolArray, coverage: float, validation_images: int, times: Float64Array
    ) -> None:
        """Continue with m prediction sets of one coverage and kind.

        Args:
            misses: bool [m], whether each set missed the true class.
            coverage: 0 < coverage < 1.
            validation_images: n, at least 1.
            times: [m], when the true labels arrived, seconds since 1970.
        """
        gaps = validation_images + 1
        beyond = gaps - int(rank_from(coverage, gaps))
        missed = self.misses + np.cumsum(misses) - misses
        self._observe(
            misses, (beyond + missed) / (gaps + self.events + np.arange(len(misses))), times
        )

    @property
    def events(self) -> int:
        """How many events have been observed."""
        return int(self._get("events"))

    @property
    def misses(self) -> int:
        """How many of them were misses."""
        return int(self._get("misses"))

    def _observe(self, misses: BoolArray, probabilities: Float64Array, times: Float64Array) -> None:
        allowed = np.clip(probabilities, _LEAST_PROBABILITY, 1)
        ratios = np.where(misses, 1 / allowed, 0.0)
        log_factors = np.log1p(_SHARES * (ratios - 1))
        for start in range(0, len(misses), MAX_CHUNK):
            chunk = slice(start, start + MAX_CHUNK)
            self._continue(log_factors[:, chunk], misses[chunk], times[chunk])

    def _continue(self, log_factors: Float64Array, misses: BoolArray, times: Float64Array) -> None:
        state = self._state[0]
        seen = int(state["events"])
        bets = continue_bets(state["log_wealths"], log_factors, seen)
        self._raise_alarm(bets, seen, times)
        self._keep_wealth(bets)
        state["events"] += len(misses)
        state["misses"] += misses.sum()


def level_of_coverage_test(level: float, number: int) -> float:
    """Return the level of the `number`-th tested coverage, from 0; the risk has half of all.

    A quarter, an eighth, …: however many there are, all levels together are at most `level`.
    """
    return level / float(2 ** (number + 2))


def level_of_risk_test(level: float) -> float:
    """Return the level of the test of the risk."""
    return level / 2


def worst_alarm(tests: Iterable[PromisedRateTest]) -> PromisedRateTest | None:
    """Return the test with an alarm, else the one with the most evidence; None: there is none."""
    return max(tests, key=lambda test: (test.alarm is not None, test.log_wealth), default=None)


def _new_state() -> NDArray[np.void]:
    state = np.zeros(1, _STATE)
    state["log_wealths"] = -np.inf
    return state
