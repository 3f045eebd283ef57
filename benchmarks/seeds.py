"""Train a data set with several seeds: how far is the accuracy of one training from the mean?

    python -m benchmarks.seeds [--data digits] [--seeds 10] [--splits] [--record docs] [-- OPTIONS]

Each seed is one `python -m training` of its own, one after the other, with the default options and
those after `--`. The metrics are those of the exported bundle on the test images.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.machine import describe_machine, end_like_ctrl_c
from model.bundle.store import MANIFEST_FILE
from training.experiments.experiment_record import Record


@dataclass(frozen=True)
class Outcome:
    """One training: the metrics of its bundle, with all units kept, and its time."""

    seed: int
    images: int
    """Number of test images."""
    accuracy: float
    """0..1, on the test images."""
    nll: float
    """Nats."""
    ece: float
    """0..1."""
    wall_seconds: float
    """From the start of the command to its end: imports, training, export and report."""
    cpu_seconds: float
    """Processor time of all threads in the same span."""

    @property
    def wrong(self) -> int:
        """Number of test images with another label than the true one."""
        return round((1 - self.accuracy) * self.images)


def main(arguments: list[str]) -> None:
    """Train with each seed, print the outcomes and record them."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data", default="digits", help="data set")
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds, from 0")
    parser.add_argument("--splits", action="store_true", help="draw the split anew with each seed")
    parser.add_argument("--record", type=Path, help="folder of the notes")
    parser.add_argument("options", nargs="*", help="of python -m training, after --")
    options = parser.parse_args(arguments)
    end_like_ctrl_c()
    outcomes = []
    for seed in range(options.seeds):
        split = ["--split-seed", str(seed)] if options.splits else []
        outcomes.append(train(seed, ["--data", options.data, *split, *options.options]))
        sys.stderr.write(f"seed {seed}: {_percent(outcomes[-1].accuracy)}\n")
    record = describe(options.data, options.splits, options.options, outcomes)
    record.print(Console())
    if options.record:
        command = ["python -m benchmarks.seeds", "--data", options.data]
        command += ["--seeds", str(options.seeds), *["--splits"] * options.splits]
        command += ["--", *options.options] if options.options else []
        record.add_to(options.record, " ".join(command))


def train(seed: int, options: Sequence[str]) -> Outcome:
    """Run `python -m training` in folders of its own; return what its bundle reached.

    Raises:
        CalledProcessError: the training failed; it has printed why.
    """
    with tempfile.TemporaryDirectory() as folder:
        folders = ["--output", f"{folder}/models", "--runs", f"{folder}/runs"]
        command = [sys.executable, "-m", "training", *options, "--seed", str(seed), *folders]
        wall, cpu = time.perf_counter(), _cpu_seconds_of_children()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)  # noqa: S603
        wall, cpu = time.perf_counter() - wall, _cpu_seconds_of_children() - cpu
        (file,) = Path(folder, "models").glob(f"*/*/{MANIFEST_FILE}")
        test = json.loads(file.read_text())["metrics"]["test"]
    return Outcome(seed, test["images"], test["accuracy"], test["nll"], test["ece"], wall, cpu)


def describe(
    data: str, splits: bool, options: Sequence[str], outcomes: Sequence[Outcome]
) -> Record:
    """Return the record of the outcomes: one row for each, then their mean and the worst."""
    mean = [float(np.mean([each[i] for each in map(_metrics, outcomes)])) for i in range(5)]
    worst = min(outcomes, key=lambda each: each.accuracy)
    varied = "seeds and draws of the split" if splits else "seeds, one draw of the split"
    with_options = f" with `{' '.join(options)}`" if options else ""
    return Record(
        name=f"seeds-{data}",
        title=f"{data}: how far one seed is from the mean",
        setting=f"{len(outcomes)} {varied}, the default options{with_options}; each exported "
        f"bundle on {outcomes[0].images:,} test images, of which one is "
        f"{_percent(1 / outcomes[0].images)}. Seconds are of the whole command.",
        columns=("seed", "accuracy", "wrong", "NLL", "ECE", "seconds", "CPU seconds"),
        rows=[
            *((str(each.seed), *_cells(each.wrong, _metrics(each))) for each in outcomes),
            ("mean", *_cells(float(np.mean([each.wrong for each in outcomes])), mean)),
        ],
        finding=f"Mean accuracy {_percent(mean[0])}, the worst {_percent(worst.accuracy)} (seed "
        f"{worst.seed}), the best {_percent(max(each.accuracy for each in outcomes))}; mean NLL "
        f"{mean[1]:.4f}, mean ECE {mean[2]:.4f}. One training takes {mean[3]:.0f} s, "
        f"{mean[4]:.0f} s of processor time, on {describe_machine()}.",
        figure=_figure(data, outcomes),
    )


def _metrics(outcome: Outcome) -> list[float]:
    return [
        outcome.accuracy,
        outcome.nll,
        outcome.ece,
        outcome.wall_seconds,
        outcome.cpu_seconds,
    ]


def _cells(wrong: float, metrics: Sequence[float]) -> tuple[str, ...]:
    accuracy, nll, ece, wall, cpu = metrics
    return (
        _percent(accuracy),
        f"{wrong:g}",
        f"{nll:.4f}",
        f"{ece:.4f}",
        f"{wall:.0f}",
        f"{cpu:.0f}",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _cpu_seconds_of_children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _figure(data: str, outcomes: Sequence[Outcome]) -> Figure:
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    accuracies = [100 * each.accuracy for each in outcomes]
    axes.plot([each.seed for each in outcomes], accuracies, "o")
    axes.axhline(float(np.mean(accuracies)), linestyle="--", label="mean")
    axes.set(xlabel="seed", ylabel="test accuracy, %", title=f"{data}: accuracy by seed")
    axes.set_xticks([each.seed for each in outcomes])
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


if __name__ == "__main__":
    main(sys.argv[1:])
