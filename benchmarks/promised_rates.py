"""Measure the alarm for broken promises: how often it is false, and after how many labels it comes.

    python -m benchmarks.promised_rates [--streams 500] [--labels 5000]

Streams of true labels are drawn in which the promise just holds, for the risk and for prediction
sets whose threshold comes from a draw of validation images of its own, and streams in which more
labels miss than promised, from the first one or after labels that keep the promise. The exit status
is 1 if false alarms are more frequent than their level.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from model.uncertainty.sequential_test_of_coverage_and_risk import (
    PromisedRateTest,
    level_of_coverage_test,
    level_of_risk_test,
)

_RATE = 0.01
"""`--feedback-alarm-rate` by default."""
_MAX_RISK, _COVERAGE, _VALIDATION_IMAGES = 0.05, 0.9, 1000
_GOOD_SHARE = 0.8
"""Before a promise breaks, so many of the misses that it permits happen."""
_POWER_STREAMS, _POWER_LABELS = 100, 10_000

Misses = NDArray[np.bool_]


@dataclass(frozen=True)
class Promise:
    """A promise: how its test is fed, its level, and how often it may miss."""

    name: str
    level: float
    permitted: float
    observe: Callable[[PromisedRateTest, Misses, NDArray[np.float64]], None]
    kept: Callable[[np.random.Generator, int], Misses]
    """Draws a stream in which the promise just holds."""

    def alarm(self, misses: Misses) -> int | None:
        """Return the label at which a stream raises the alarm; None: it does not."""
        test = PromisedRateTest(self.level)
        self.observe(test, misses, np.zeros(len(misses)))
        return None if test.alarm is None else test.alarm.event


def _sets_that_miss(generator: np.random.Generator, labels: int) -> Misses:
    scores = np.sort(generator.random(_VALIDATION_IMAGES))
    rank = int(np.ceil((_VALIDATION_IMAGES + 1) * _COVERAGE))
    return np.asarray(generator.random(labels) > scores[rank - 1])


PROMISES = (
    Promise(
        f"max_risk {_MAX_RISK}",
        level_of_risk_test(_RATE),
        _MAX_RISK,
        lambda test, misses, times: test.observe_risk(
            misses, np.full(len(misses), _MAX_RISK), times
        ),
        lambda generator, labels: generator.random(labels) < _MAX_RISK,
    ),
    Promise(
        f"coverage {_COVERAGE}",
        level_of_coverage_test(_RATE, 0),
        1 - _COVERAGE,
        lambda test, misses, times: test.observe_coverage(
            misses, _COVERAGE, _VALIDATION_IMAGES, times
        ),
        _sets_that_miss,
    ),
)


def main(arguments: Sequence[str]) -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--streams", type=int, default=500, help="streams that keep the promise")
    parser.add_argument("--labels", type=int, default=5000, help="labels of each of them")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    generator = np.random.default_rng(options.seed)
    console = Console()
    is_met = True
    for promise in PROMISES:
        streams = (promise.kept(generator, options.labels) for _ in range(options.streams))
        false = sum(promise.alarm(each) is not None for each in streams)
        is_met &= false <= promise.level * options.streams
        console.print(
            f"{promise.name}: {false} false alarms in {options.streams} streams of "
            f"{options.labels:,} labels; the level {promise.level:g} permits "
            f"{promise.level * options.streams:g}",
            highlight=False,
        )
    table = Table("promise", "misses", "kept before", "found", "labels: median", "95 %")
    for row in _power(generator):
        table.add_row(*row)
    console.print(table)
    return 0 if is_met else 1


def _power(generator: np.random.Generator) -> Iterator[tuple[str, ...]]:
    for promise in PROMISES:
        for factor in (1.5, 2.0, 4.0):
            for before in (0, 10_000):
                found = sorted(_delays(generator, promise, factor, before))
                late = found[min(len(found) - 1, int(0.95 * len(found)))]
                yield (
                    promise.name,
                    f"{factor * promise.permitted:.3g}",
                    f"{before:,}",
                    f"{len(found)} of {_POWER_STREAMS}",
                    f"{found[len(found) // 2]:,}",
                    f"{late:,}",
                )


def _delays(
    generator: np.random.Generator, promise: Promise, factor: float, before: int
) -> Iterator[int]:
    """Yield how many labels after the break each stream raises its alarm."""
    for _ in range(_POWER_STREAMS):
        good = generator.random(before) < _GOOD_SHARE * promise.permitted
        bad = generator.random(_POWER_LABELS) < factor * promise.permitted
        alarm = promise.alarm(np.concatenate([good, bad]))
        if alarm is not None and alarm > before:
            yield alarm - before


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
