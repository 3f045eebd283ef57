"""Where experiments are done: each trial runs once, and its outcome is kept as JSON.

A lab that is stopped and started again goes on after the last trial that was whole.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TypeVar

import torch
from pydantic import BaseModel

from model.bundle.store import require_writable
from training.config import TrainingConfig
from training.data import dataset as data_sets
from training.data.dataset import DataSet
from training.experiments import trial as trials
from training.experiments.settings import ExperimentSettings
from training.experiments.trial import Outcome, Trial

logger = logging.getLogger(__name__)

SWEEP_SEED = 1_000
"""The seed of every sweep, which no arm's own repetitions have."""

Kept = TypeVar("Kept", bound=BaseModel)


@dataclass(frozen=True)
class Plan:
    """How large and how long a dense network is trained, and the rates of its sweep."""

    data: str
    widths: tuple[int, ...]
    epochs: int
    sweep_epochs: int
    rates: tuple[float, ...]


class Lab:
    """Runs what an experiment asks for, unless its outcome is in the folder already."""

    def __init__(self, settings: ExperimentSettings) -> None:
        self.quick = settings.quick
        self.seeds = range(1 if settings.quick else settings.seeds)
        self.folder = settings.output / settings.experiment
        self._settings = settings
        self._data: dict[str, DataSet] = {}
        require_writable(self.folder)
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)

    def data(self, name: str) -> DataSet:
        """Load a data set; twice the same is loaded once."""
        if name not in self._data:
            settings = self._settings
            self._data[name] = data_sets.load(
                TrainingConfig(data=name, data_dir=settings.data_dir, cache_dir=settings.cache_dir)
            )
        return self._data[name]

    def run(self, todo: Sequence[Trial]) -> list[Outcome]:
        """Run the trials that are not done yet, and return the outcomes of all, in order."""
        outcomes = []
        for number, trial in enumerate(todo, start=1):
            start = perf_counter()
            outcome = self.keep(trial, Outcome, partial(self._outcome, trial))
            last = outcome.last
            logger.info(
                "%d of %d · %s · rate %g, seed %d: epoch %.2f, training error %.2f %%, validation "
                "error %.2f %%, %d dead (%.0f s)",
                *(number, len(todo), name(trial), trial.learning_rate, trial.seed, last.epoch),
                *(100 * last.train_error, 100 * last.validation_error, last.dead),
                perf_counter() - start,
            )
            outcomes.append(outcome)
        return outcomes

    def repeat(self, arm: Trial) -> list[Outcome]:
        """Run an arm once for each seed, and measure the test images at the end of each."""
        return self.run([arm.model_copy(update={"seed": n, "tested": True}) for n in self.seeds])

    def best_rate(
        self, arm: Trial, rates: Sequence[float], cost: Callable[[Outcome], float]
    ) -> float:
        """Return the rate with the least cost, which is never of test images, in a sweep."""
        outcomes = {rate: self.sweep(arm, rate) for rate in rates if len(rates) > 1}
        costs = {rate: cost(each) for rate, each in outcomes.items() if not each.diverged}
        return min(costs, key=costs.__getitem__, default=rates[0])

    def sweep(self, arm: Trial, rate: float) -> Outcome:
        """Run an arm once at one rate, with the seed of sweeps."""
        trial = arm.model_copy(update={"learning_rate": rate, "seed": SWEEP_SEED})
        return self.run([trial])[0]

    def keep(self, description: BaseModel, kind: type[Kept], make: Callable[[], Kept]) -> Kept:
        """Return what was kept under `description`, or make and keep it."""
        text = description.model_dump_json(exclude_defaults=True)
        file = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        if file.is_file():
            return kind.model_validate_json(file.read_bytes())
        made = make()
        whole = file.with_suffix(".part")
        whole.write_text(made.model_dump_json(), encoding="utf-8")
        whole.rename(file)
        return made

    def _outcome(self, trial: Trial) -> Outcome:
        return trials.run(trial, self.data(trial.data))[0]


def name(trial: Trial) -> str:
    """Say shortly what distinguishes a trial."""
    slope = f" {trial.negative_slope:g}" if trial.activation == "leaky_relu" else ""
    parts = [trial.data, trial.activation + slope]
    if trial.dropout:
        parts.append(f"dropout {trial.dropout:g}")
    if trial.max_norm:
        parts.append(f"max-norm {trial.max_norm:g}")
    return ", ".join(parts)
