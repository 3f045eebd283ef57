"""Runs the trials of an experiment once each, and caches their results as JSON.

After an interruption, the same command continues after the last complete trial.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TypeVar

import torch
from pydantic import BaseModel, ValidationError

from model.atomic_file_writing import write_whole
from model.bundle.store import require_writable
from training.config import DatasetConfig
from training.data.dataset import Dataset, load_dataset
from training.data.excluded_files import counted
from training.experiments.settings import ExperimentSettings
from training.experiments.trial import Trial, TrialResult, run_trial

logger = logging.getLogger(__name__)

SWEEP_SEED = 1_000
"""The seed of every sweep; the repetitions of an arm never use it."""
RESULTS_VERSION = 1
"""To be raised when the same options give other results, so that cached results are not used."""

Cached = TypeVar("Cached", bound=BaseModel)


@dataclass(frozen=True)
class Plan:
    """The data set, the dense network, the length of its training, and its learning-rate sweep."""

    data: str
    widths: tuple[int, ...]
    epochs: int
    sweep_epochs: int
    rates: tuple[float, ...]


class TrialRunner:
    """Runs trials, or reads their results from the folder of earlier runs."""

    def __init__(self, settings: ExperimentSettings) -> None:
        self.quick = settings.quick
        self.seeds = range(1 if settings.quick else settings.seeds)
        self.folder = settings.output / settings.experiment
        self.data = None if settings.data is None else (settings.data,)
        """The data sets of an experiment with several that are wanted; None: all."""
        self._settings = settings
        self._data: dict[str, Dataset] = {}
        require_writable(self.folder)
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)

    @property
    def seed_count(self) -> str:
        """How many seeds there are, in words such as `3 seeds`."""
        return counted(len(self.seeds), "seed")

    def dataset(self, name: str) -> Dataset:
        """Return a data set, which is loaded only once."""
        if name not in self._data:
            settings = self._settings
            self._data[name] = load_dataset(
                DatasetConfig(data=name, data_dir=settings.data_dir, cache_dir=settings.cache_dir)
            )
        return self._data[name]

    def run_all(self, trials: Sequence[Trial]) -> list[TrialResult]:
        """Run the trials that have no cached result; return the results of all, in order."""
        results = []
        for number, trial in enumerate(trials, start=1):
            start = perf_counter()
            result = self.cached(trial, TrialResult, partial(self._run, trial))
            last = result.last
            logger.info(
                "%d of %d · %s · rate %g, seed %d: epoch %.2f, training error %.2f %%, validation "
                "error %.2f %%, %d dead (%.0f s)",
                *(
                    number,
                    len(trials),
                    trial_label(trial),
                    trial.learning_rate,
                    trial.seed,
                    last.epoch,
                ),
                *(100 * last.train_error, 100 * last.validation_error, last.dead),
                perf_counter() - start,
            )
            results.append(result)
        return results

    def repeat_over_seeds(self, arm: Trial) -> list[TrialResult]:
        """Run an arm once per seed; each run measures the test images at its end."""
        return self.run_all(
            [arm.model_copy(update={"seed": n, "tested": True}) for n in self.seeds]
        )

    def best_learning_rate(
        self, arm: Trial, rates: Sequence[float], cost: Callable[[TrialResult], float]
    ) -> float:
        """Return the learning rate with the least `cost` in a sweep that sees no test images.

        Diverged trials are left out. A single rate is returned without a sweep.
        """
        results = {rate: self.run_sweep_trial(arm, rate) for rate in rates if len(rates) > 1}
        costs = {rate: cost(each) for rate, each in results.items() if not each.diverged}
        return min(costs, key=costs.__getitem__, default=rates[0])

    def run_sweep_trial(self, arm: Trial, rate: float) -> TrialResult:
        """Run an arm once at one learning rate, with the seed of sweeps."""
        trial = arm.model_copy(update={"learning_rate": rate, "seed": SWEEP_SEED})
        return self.run_all([trial])[0]

    def cached(self, key: BaseModel, kind: type[Cached], make: Callable[[], Cached]) -> Cached:
        """Return the cached model of `key`, or call `make` and cache what it returns.

        The defaults of `key` count, too: with others the result is made again. So is one whose
        file is damaged.
        """
        text = f"{RESULTS_VERSION} {key.model_dump_json()}"
        file = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        if file.is_file():
            try:
                return kind.model_validate_json(file.read_bytes())
            except ValidationError:
                logger.warning("The result in %s is damaged; it is made again.", file)
        made = make()
        write_whole(file, made.model_dump_json().encode())
        return made

    def _run(self, trial: Trial) -> TrialResult:
        return run_trial(trial, self.dataset(trial.data))[0]


def describe_sweep(rates: Sequence[float], epochs: int) -> str:
    """Return the sentence on the learning rates that `TrialRunner.best_learning_rate` chose."""
    if len(rates) == 1:
        return f"The rate is {rates[0]:g}."
    tried = ", ".join(f"{rate:g}" for rate in sorted(rates))
    return (
        f"The rate of each arm is the one of {tried} with the least validation loss after "
        f"{counted(epochs, 'epoch')}."
    )


def trial_label(trial: Trial) -> str:
    """Return a short label of a trial for the log."""
    slope = f" {trial.negative_slope:g}" if trial.activation == "leaky_relu" else ""
    parts = [trial.data, trial.activation + slope]
    if trial.dropout:
        parts.append(f"dropout {trial.dropout:g}")
    if trial.max_norm:
        parts.append(f"max-norm {trial.max_norm:g}")
    return ", ".join(parts)
