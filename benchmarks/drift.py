"""Measure the drift alarm: how often it is false, and how soon it is raised.

    python -m benchmarks.drift --bundle models/fashion-mnist/1 --ood mnist [--record docs]

Streams are drawn from the test images of the data set that a bundle was trained on, and, where the
images drift, from those of another one, `--ood`, that are mixed in. Ranks are those that the
service computes. Several bundles may be named, each `--bundle` with an `--ood`. The exit status is
1 if false alarms are more than twice as frequent as the level allows or, with 1,000 validation
images or more, a drift of 5 % is detected too rarely.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console

from model.bundle.store import Bundle, open_bundle
from model.dropout.sampling_methods import FixedSamples
from model.images.preprocessing import to_float
from model.inference.predictor import Predictor
from model.inference.predictor_loading import load_predictor
from model.uncertainty.calibration import Calibrator
from model.uncertainty.drift import DriftTest
from training.evaluate import load_data
from training.evaluation_config import EvaluationConfig
from training.experiments.experiment_record import Record

Ranks = NDArray[np.int64]
"""int64 [m, 2]: the ranks of typicality and confidence of m images among the validation images."""

_FIGURES = 2
_CHUNK = 500
_SHARES = (0.01, 0.05, 0.2)
"""Shares of a drifting stream that are images of the other data set."""
_HORIZON = 1000
"""Images after the change within which the alarm has to be raised."""
_TESTED_SHARE, _LEAST_DETECTED, _LEAST_VALIDATION_IMAGES = 0.05, 0.95, 1000
_MOST_FALSE = 2
"""False alarms may be this many times as frequent as the level: 200 streams are few."""


@dataclass(frozen=True)
class Measured:
    """A bundle and the ranks of its test images and of the other data set's."""

    name: str
    other: str
    validation_images: int
    test: Ranks
    ood: Ranks


@dataclass(frozen=True)
class Alarm:
    """An alarm of one stream, in images from the change on; negative before it."""

    delay: int
    since: int


@dataclass(frozen=True)
class Row:
    """The outcome of all streams of one kind; None is a stream without an alarm."""

    measured: Measured
    stream: str
    share: float
    """Share of other images; 0 for streams without drift."""
    alarms: Sequence[Alarm | None]

    @property
    def counted(self) -> int:
        """The number of streams; with drift, of those without an alarm before the change."""
        return sum(alarm is None or alarm.delay > 0 for alarm in self.alarms)

    @property
    def raised(self) -> float:
        """Share of the counted streams with an alarm."""
        return len(self.delays) / max(1, self.counted)

    @property
    def delays(self) -> list[int]:
        """Images from the change to each alarm."""
        return sorted(each.delay for each in self.alarms if each is not None and each.delay > 0)

    def meets_bar(self, level: float) -> bool:
        """Whether false alarms are rare enough for a level, or detections frequent enough."""
        if self.share == 0:
            return self.raised <= _MOST_FALSE * level
        if self.share == _TESTED_SHARE:
            few = self.measured.validation_images < _LEAST_VALIDATION_IMAGES
            return few or self.raised >= _LEAST_DETECTED
        return True


def main(arguments: list[str]) -> int:
    """Measure, print and record; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--bundle", type=Path, action="append", required=True, help="its folder")
    parser.add_argument("--ood", action="append", required=True, help="data set of other images")
    parser.add_argument("--streams", type=int, default=200, help="streams of each kind")
    parser.add_argument("--images", type=int, default=10_000, help="images of a stream")
    parser.add_argument("--level", type=float, default=0.01, help="false-alarm rate")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("DROPSERVE_DATA_DIR"))
    parser.add_argument("--record", type=Path, help="folder of the notes")
    options = parser.parse_args(arguments)
    rows = [
        row
        for bundle, ood in zip(options.bundle, options.ood, strict=True)
        for row in simulate(measure(bundle, ood, options.data_dir), options)
    ]
    met = all(row.meets_bar(options.level) for row in rows)
    record = describe(rows, options, met=met)
    record.print(Console())
    if options.record:
        bundles = " ".join(
            f"--bundle {bundle} --ood {ood}"
            for bundle, ood in zip(options.bundle, options.ood, strict=True)
        )
        record.add_to(options.record, f"python -m benchmarks.drift {bundles}")
    return 0 if met else 1


def measure(folder: Path, ood: str, data_dir: Path | None) -> Measured:
    """Run a bundle over the test images of its own data set and of another."""
    bundle = open_bundle(folder)
    predictor = load_predictor(bundle)
    calibrator = predictor.calibrator
    if calibrator is None:
        raise SystemExit(f"{folder} is uncalibrated; name another bundle.")
    config = EvaluationConfig(bundle=folder, data_dir=data_dir)
    return Measured(
        name=f"{bundle.manifest.name}, {bundle.manifest.training.get('epochs')} epochs",
        other=ood,
        validation_images=calibrator.parameters.images,
        test=_ranks(bundle, None, config, predictor, calibrator),
        ood=_ranks(bundle, ood, config, predictor, calibrator),
    )


def _ranks(
    bundle: Bundle,
    data: str | None,
    config: EvaluationConfig,
    predictor: Predictor,
    calibrator: Calibrator,
) -> Ranks:
    """Return the ranks of a data set's test images; None: the bundle's own data set."""
    images = load_data(bundle, data, config).test.images
    sampling = FixedSamples(0, calibrator.parameters.samples)
    parts = []
    for start in range(0, len(images), _CHUNK):
        prediction = predictor.predict(to_float(images[start : start + _CHUNK]))
        uncertainty = predictor.uncertainty(prediction, sampling)
        parts.append(
            (
                calibrator.typicality_ranks(uncertainty.typicality),
                calibrator.confidence_ranks(uncertainty.mean_probabilities.max(axis=1)),
            )
        )
    return np.stack([np.concatenate(column) for column in zip(*parts, strict=True)], axis=1)


def simulate(measured: Measured, options: argparse.Namespace) -> list[Row]:
    """Return the outcomes of all kinds of streams."""
    generator = np.random.default_rng(0)
    validation_images, level = measured.validation_images, options.level / _FIGURES

    def start(state: Sequence[bytes] = (b"",) * _FIGURES) -> list[DriftTest]:
        return [DriftTest(validation_images, level, each) for each in state]

    def alarm(ranks: Ranks) -> Alarm | None:
        return _observe(start(), ranks, 0)

    def drifting(share: float) -> Ranks:
        ranks = _draw(generator, measured.test, _HORIZON)
        other = generator.random(_HORIZON) < share
        ranks[other] = _draw(generator, measured.ood, int(other.sum()))
        return ranks

    streams = range(options.streams)
    synthetic = [
        alarm(_normal_ranks(generator, validation_images, options.images)) for _ in streams
    ]
    once = [alarm(generator.permutation(measured.test)) for _ in streams]
    drawn, later = [], []
    for _ in streams:
        tests = start()
        drawn.append(_observe(tests, _draw(generator, measured.test, options.images), 0))
        later.append([test.to_bytes() for test in tests])
    rows = [
        Row(measured, "normal scores, new validation scores each time", 0, synthetic),
        Row(measured, f"its {len(measured.test):,} test images in random order", 0, once),
        Row(measured, "test images, drawn with replacement", 0, drawn),
    ]
    for share in _SHARES:
        first = [alarm(drifting(share)) for _ in streams]
        after = [_observe(start(state), drifting(share), options.images) for state in later]
        what = f"{share:.0%} {measured.other}"
        rows.append(Row(measured, f"{what}, from the first image on", share, first))
        rows.append(Row(measured, f"{what}, after {options.images:,} images", share, after))
    return rows


def _normal_ranks(generator: np.random.Generator, validation_images: int, images: int) -> Ranks:
    """Return ranks of normal scores among validation scores of the same distribution."""
    validation = np.sort(generator.normal(size=(validation_images, _FIGURES)), axis=0)
    scores = generator.normal(size=(images, _FIGURES))
    columns = [np.searchsorted(validation[:, each], scores[:, each]) for each in range(_FIGURES)]
    return np.stack(columns, axis=1)


def _draw(generator: np.random.Generator, ranks: Ranks, count: int) -> Ranks:
    return ranks[generator.integers(len(ranks), size=count)]


def _observe(tests: list[DriftTest], ranks: Ranks, change: int) -> Alarm | None:
    """Continue the tests of both figures; return the earlier alarm, counted from `change` on."""
    times = np.zeros(len(ranks))
    for figure, test in enumerate(tests):
        test.observe(ranks[:, figure], times)
    found = [
        Alarm(test.alarm.event - change, test.since.event - change)
        for test in tests
        if test.alarm is not None and test.since is not None
    ]
    return min(found, key=lambda alarm: alarm.delay, default=None)


def describe(rows: list[Row], options: argparse.Namespace, *, met: bool) -> Record:
    """Return the record of all rows."""
    return Record(
        name="drift",
        title="The drift alarm: false alarms and delays",
        setting=f"{options.streams} streams of each kind, of {options.images:,} images without "
        f"drift, or {_HORIZON:,} images from the change on. The level is {options.level:.0%}, half "
        "of it for typicality and half for the confidence. Drifting streams are test images, drawn "
        "with replacement, with a share of test images of the other data set; a stream with an "
        "alarm before the change is not counted there.",
        columns=(
            "bundle",
            "validation images",
            "stream",
            "alarm raised",
            "images until then: median, 95 %",
            "`since` less the change: median",
        ),
        rows=[
            (
                row.measured.name,
                f"{row.measured.validation_images:,}",
                row.stream,
                f"{row.raised:.1%}",
                _delays(row),
                _offset(row),
            )
            for row in rows
        ],
        finding=_finding(rows, options.level, met=met),
        figure=_figure(rows),
    )


def _delays(row: Row) -> str:
    if not row.share or not row.delays:
        return "-"
    return ", ".join(f"{np.quantile(row.delays, each):.0f}" for each in (0.5, 0.95))


def _offset(row: Row) -> str:
    offsets = [each.since - 1 for each in row.alarms if each is not None and each.delay > 0]
    return f"{np.median(offsets):+.0f}" if row.share and offsets else "-"


def _finding(rows: list[Row], level: float, *, met: bool) -> str:
    false = max(row.raised for row in rows if not row.share)
    return (
        f"At most {false:.1%} of the streams without drift had an alarm; the level is {level:.0%}. "
        f"The bars are {'met' if met else 'NOT met'}: no more than {_MOST_FALSE * level:.0%} false "
        f"alarms, and {_TESTED_SHARE:.0%} of other images are noticed within {_HORIZON:,} images "
        f"in {_LEAST_DETECTED:.0%} of the streams, with {_LEAST_VALIDATION_IMAGES:,} validation "
        "images or more."
    )


def _figure(rows: list[Row]) -> Figure:
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        if row.share:
            shares = np.arange(1, len(row.delays) + 1) / max(1, row.counted)
            axes.step(row.delays, shares, where="post", label=f"{row.measured.name}: {row.stream}")
    axes.set(xlabel="images since the change", ylabel="share of streams with an alarm")
    axes.set(xlim=(0, _HORIZON), ylim=(0, 1.02))
    axes.set_title("How soon the drift alarm is raised")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")
    return figure


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
