"""Measure how much time MC dropout adds to a deterministic prediction, inside one process.

    python -m benchmarks.sampling_cost models/fashion-mnist/1 [--record docs]

"plain" is the deterministic pass and its probabilities; "summary" is the same pass and the MC
statistics of the Open Inference Protocol; "full" is all that `POST /uncertainty` computes. Masks
are cached. Each round times every call once, in random order, so that other load of the machine
affects all of them alike. Read the ratios: microseconds depend on the machine and its load. The
images are the bundle's golden images, repeated.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console

from model.bundle.store import GOLDEN_FILE, open_bundle
from model.dropout.sampling_methods import FixedSamples
from model.inference.prediction import Float32Array
from model.inference.predictor import Predictor
from model.inference.predictor_loading import load_predictor
from training.experiments.experiment_record import Record

_BATCHES = (1, 16, 32)
_COUNTS = (64, 256)
_SEED = 3
_WARM_UP = 20

Times = NDArray[np.float64]
Call = Callable[[], object]


@dataclass(frozen=True)
class Cost:
    """Times of one batch size and number of samples: the shortest, in microseconds."""

    batch: int
    samples: int
    plain: float
    summary: float
    """Time that the MC statistics of the Open Inference Protocol add."""
    full: float
    """Time that a full uncertainty adds."""
    quartiles: tuple[float, float, float]
    """Time that "summary" adds, as a share of the plain call of the same round."""


def main(arguments: list[str]) -> None:
    """Measure, print the record, and add it to the notes with --record."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("bundle", type=Path, help="folder of a bundle")
    parser.add_argument("--rounds", type=int, default=1_000, help="timings of each call")
    parser.add_argument("--record", type=Path, help="folder of the notes")
    options = parser.parse_args(arguments)
    record = measure(options.bundle, options.rounds)
    record.print(Console())
    if options.record:
        record.add_to(options.record, f"python -m benchmarks.sampling_cost {options.bundle}")


def measure(path: Path, rounds: int) -> Record:
    """Return the record of the bundle in `path`."""
    bundle = open_bundle(path)
    predictor = load_predictor(bundle)
    with np.load(path / GOLDEN_FILE) as golden:
        images = golden["images"]
    costs = [
        cost
        for batch in _BATCHES
        for cost in _costs(predictor, np.resize(images, (batch, *images.shape[1:])), rounds)
    ]
    calibrated = "calibrated" if bundle.manifest.calibration else "not calibrated"
    return Record(
        name="sampling-cost",
        title="Cost of MC dropout samples",
        setting=f"{bundle.manifest.name}, {calibrated}, one thread, {rounds:,} rounds in random "
        "order. Added: by a summary to a plain prediction of the same round, median and "
        "quartiles; at best: the shortest call compared with the shortest, like the times.",
        columns=("batch", "T", "added", "quartiles", "at best", "plain", "summary", "full"),
        rows=[_row(cost) for cost in costs],
        finding=" ".join(
            f"Batch {cost.batch}: {cost.samples} samples add {100 * cost.quartiles[1]:.0f} %, "
            f"at best {100 * cost.summary / cost.plain:.0f} %."
            for cost in costs
        ),
        figure=_figure(costs),
    )


def _costs(predictor: Predictor, images: Float32Array, rounds: int) -> list[Cost]:
    """Time plain calls and sampled ones."""

    def plain() -> object:
        return predictor.predict(images).probabilities

    def sampled(sampling: FixedSamples) -> object:
        return predictor.uncertainty(predictor.predict(images), sampling)

    calls: dict[str, Call] = {"plain": plain}
    for count in _COUNTS:
        calls[f"summary {count}"] = partial(sampled, FixedSamples(_SEED, count, summary_only=True))
        calls[f"full {count}"] = partial(sampled, FixedSamples(_SEED, count))
    times = _times(calls, rounds)
    return [_cost(times, len(images), count) for count in _COUNTS]


def _times(calls: dict[str, Call], rounds: int) -> dict[str, Times]:
    """Return the microseconds of each call in each round, float64 [rounds], by the call's name."""
    generator = np.random.Generator(np.random.PCG64(0))
    names = list(calls)
    times = {name: np.empty(rounds) for name in names}
    for index in range(-_WARM_UP, rounds):
        for name in generator.permutation(names).tolist():
            start = perf_counter()
            calls[name]()
            if index >= 0:
                times[name][index] = 1e6 * (perf_counter() - start)
    return times


def _cost(times: dict[str, Times], batch: int, samples: int) -> Cost:
    plain, summary = times["plain"], times[f"summary {samples}"]
    low, middle, high = np.quantile(summary / plain - 1, (0.25, 0.5, 0.75)).tolist()
    return Cost(
        batch=batch,
        samples=samples,
        plain=float(plain.min()),
        summary=float(summary.min() - plain.min()),
        full=float(times[f"full {samples}"].min() - plain.min()),
        quartiles=(low, middle, high),
    )


def _row(cost: Cost) -> tuple[str, ...]:
    low, middle, high = (100 * share for share in cost.quartiles)
    parts = (f"{part:,.0f} µs" for part in (cost.plain, cost.summary, cost.full))
    return (
        str(cost.batch),
        str(cost.samples),
        f"{middle:.1f} %",
        f"{low:.1f}..{high:.1f} %",
        f"{100 * cost.summary / cost.plain:.1f} %",
        *parts,
    )


def _figure(costs: list[Cost]) -> Figure:
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    names = [f"batch {cost.batch}, T = {cost.samples}" for cost in costs]
    full = [100 * cost.full / cost.plain for cost in costs]
    axes.barh(names, full, label="full")
    axes.barh(names, [100 * cost.summary / cost.plain for cost in costs], label="summary")
    axes.invert_yaxis()
    axes.set_xlabel("added to the time of a plain prediction, %")
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    return figure


if __name__ == "__main__":
    main(sys.argv[1:])
