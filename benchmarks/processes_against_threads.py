"""Compares the images per second of N training processes of one thread with one of N threads.

    python -m benchmarks.processes_against_threads [--count 2] [--steps 200] [--repetitions 3]

Both train the default network on random pixels with batches of 128 images in all, by turns, so that
other load on the machine affects both. The time is that between the steps of the second half.
"""

import argparse
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from lightning.pytorch import Callback

from benchmarks.machine import end_like_ctrl_c
from benchmarks.training_loop import BATCH_SIZE, EPOCHS, random_images
from training.config import TrainingConfig
from training.distributed.launcher import find_processes, is_launched, launch
from training.fitting.training_loop import fit, help_fit

_MODULE = "benchmarks.processes_against_threads"
_RESULT = re.compile(r"^([\d.]+) images/s$", re.MULTILINE)


class StepTimes(Callback):
    """Records when each step ended, in seconds."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        """Forget the steps of the epoch before, in which memory is allocated."""
        self.ends = []

    def on_train_batch_end(self, *_: Any) -> None:
        """Record the end of a step."""
        self.ends.append(time.perf_counter())


def main(arguments: list[str]) -> int:
    """Measure both by turns and print the medians; in a process that was launched, train."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--count", type=int, default=2, help="processes, or threads of one")
    parser.add_argument("--steps", type=int, default=200, help="steps of each training")
    parser.add_argument("--repetitions", type=int, default=3, help="trainings of each kind")
    parser.add_argument("--processes", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if is_launched():
        _train(options.steps, threads=options.count // options.processes)
        return 0
    if options.processes:
        return launch(_MODULE, arguments, options.processes, 1)
    end_like_ctrl_c()
    _compare(options)
    return 0


def _compare(options: argparse.Namespace) -> None:
    rates: dict[int, list[float]] = {1: [], options.count: []}
    for _ in range(options.repetitions):
        for processes, measured in rates.items():
            measured.append(_measure(processes, options))
    for processes, measured in rates.items():
        shown = ", ".join(f"{rate:.0f}" for rate in measured)
        threads = options.count // processes
        sys.stdout.write(
            f"{processes} x {threads} threads: {median(measured):.0f} images/s (of {shown})\n"
        )
    ratio = median(many / one for one, many in zip(*rates.values(), strict=True))
    sys.stdout.write(f"{options.count} processes against one, pair by pair: {ratio:.2f}\n")


def _measure(processes: int, options: argparse.Namespace) -> float:
    """Return the images per second of one training in processes of its own."""
    numbers = {"count": options.count, "steps": options.steps, "processes": processes}
    flags = [text for name, number in numbers.items() for text in (f"--{name}", str(number))]
    command = [sys.executable, "-m", _MODULE, *flags]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}  # as `python -m training` has it
    output = subprocess.run(  # noqa: S603
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    found = _RESULT.search(output.stdout)
    assert found is not None
    return float(found[1])


def _train(steps: int, threads: int) -> None:
    logging.getLogger("training").setLevel(logging.ERROR)
    config = TrainingConfig(epochs=EPOCHS, threads=threads, weight_averaging=0)
    processes, data = find_processes(config), random_images(steps // EPOCHS * BATCH_SIZE)
    timing = StepTimes()
    with tempfile.TemporaryDirectory() as run:
        if processes.rank > 0:
            help_fit(config, data, Path(run), False, processes)
            return
        fit(config, data, Path(run), False, [timing], processes)
    seconds = (timing.ends[-1] - timing.ends[0]) / (len(timing.ends) - 1)
    sys.stdout.write(f"{BATCH_SIZE / seconds:.1f} images/s\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
