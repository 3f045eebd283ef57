"""Krizhevsky et al. 2012, figure 1: epochs to 25 % training error, ReLU against tanh and others.

A four-layer convolutional network without any regularisation; each activation at the learning rate
that its own sweep found fastest.
"""

from dataclasses import dataclass
from typing import get_args

import numpy as np
from matplotlib.figure import Figure

from model.bundle.architecture import ActivationName
from training.experiments.record import Record, spread
from training.experiments.trial import HOPELESS_ERROR, HOPELESS_SHARE, Outcome, Trial
from training.experiments.trial_runner import Lab

TARGET = 0.25
_MOMENTUM = 0.9
_CHECK_IMAGES = 4_000
_NAMES: tuple[ActivationName, ...] = get_args(ActivationName)


@dataclass(frozen=True)
class Arena:
    """One data set, and how long to look."""

    data: str
    title: str
    epochs: int
    checks_per_epoch: int


_FULL = (
    Arena("cifar-10", "CIFAR-10", epochs=40, checks_per_epoch=1),
    Arena("fashion-mnist", "Fashion-MNIST", epochs=1, checks_per_epoch=40),
)
_QUICK = (Arena("digits", "digits", epochs=4, checks_per_epoch=2),)
_RATES = (0.01, 0.03, 0.1, 0.003)
_WIDTHS = (16, 16, 32, 32)


def run(lab: Lab) -> Record:
    """Sweep, repeat, compare."""
    arenas = _QUICK if lab.quick else _FULL
    rates = _RATES[:1] if lab.quick else _RATES
    outcomes = {arena: {name: _arm(lab, arena, name, rates) for name in _NAMES} for arena in arenas}
    rows, ratios = [], []
    for arena, arms in outcomes.items():
        relu = [epochs_to(outcome, TARGET) for outcome in arms["relu"][1]]
        for name, (rate, repeats) in arms.items():
            epochs = [epochs_to(outcome, TARGET) for outcome in repeats]
            ratio = _ratio(epochs, relu)
            rows.append((arena.title, name, f"{rate:g}", _said(epochs, arena), ratio))
            if name == "tanh":
                ratios.append(f"{ratio} on {arena.title}")
    return Record(
        name="activations",
        title="Epochs to 25 % training error, ReLU against tanh and others",
        setting=_setting(lab, tuple(arenas), rates),
        columns=("data", "activation", "rate", "epochs to 25 %", "times ReLU's"),
        rows=rows,
        finding=f"tanh needs {' and '.join(ratios)} times as many epochs as ReLU; the paper found "
        "about six times, on all of CIFAR-10 with a network whose sizes it does not give.",
        figure=_figure(outcomes),
    )


def _setting(lab: Lab, arenas: tuple[Arena, ...], rates: tuple[float, ...]) -> str:
    sizes = [f"{len(lab.data(arena.data).train):,} of {arena.title}" for arena in arenas]
    tried = ", ".join(f"{rate:g}" for rate in sorted(rates))
    return (
        f"a network of four convolutions (16-16-32-32 channels, pooled between) on "
        f"{' and '.join(sizes)} training images, without regularisation. SGD with momentum "
        f"{_MOMENTUM}, batches of 128; the learning rate of each arm is the fastest of {tried} in "
        f"a sweep of its own. A run with more than {100 * HOPELESS_ERROR:g} % wrong after "
        f"{HOPELESS_SHARE:.0%} of its epochs is given up. "
        f"{len(lab.seeds)} seeds. The training error is measured in evaluation mode on "
        f"{_CHECK_IMAGES:,} training images, and the epoch interpolated between measurements."
    )


def epochs_to(outcome: Outcome, target: float) -> float:
    """Return the epoch at which the training error first meets `target`; NaN where it never does.

    Interpolated linearly between two checks.
    """
    before = outcome.checks[0]
    for check in outcome.checks[1:]:
        if check.train_error <= target:
            share = (before.train_error - target) / (before.train_error - check.train_error)
            return before.epoch + share * (check.epoch - before.epoch)
        before = check
    return float("nan")


def _arm(
    lab: Lab, arena: Arena, name: ActivationName, rates: tuple[float, ...]
) -> tuple[float, list[Outcome]]:
    arm = Trial(
        data=arena.data,
        network="convolutions",
        widths=_WIDTHS,
        activation=name,
        momentum=_MOMENTUM,
        epochs=arena.epochs,
        checks_per_epoch=arena.checks_per_epoch,
        stop_at_train_error=TARGET,
        check_images=_CHECK_IMAGES,
    )
    rate = _fastest(lab, arm, rates)
    return rate, lab.repeat(arm.model_copy(update={"learning_rate": rate}))


def _fastest(lab: Lab, arm: Trial, rates: tuple[float, ...]) -> float:
    """Sweep; once a rate has reached the target, the others get no more epochs than it took.

    Where none reaches it, the rate with the least training error at the end wins.
    """
    costs = {}
    limit: float = arm.epochs
    for rate in rates:
        outcome = lab.sweep(arm.model_copy(update={"epochs": limit}), rate)
        epochs = epochs_to(outcome, TARGET)
        reached = not np.isnan(epochs)
        costs[rate] = (not reached, epochs if reached else outcome.last.train_error)
        if reached:
            limit = min(limit, outcome.last.epoch)
    return min(costs, key=costs.__getitem__)


def _said(epochs: list[float], arena: Arena) -> str:
    missed = int(np.isnan(epochs).sum())
    if missed:
        return f"not within {arena.epochs} ({missed} of {len(epochs)} seeds)"
    return spread(epochs)


def _ratio(epochs: list[float], relu: list[float]) -> str:
    """Seed by seed, so that the spread is that of the ratio."""
    ratios = [mine / theirs for mine, theirs in zip(epochs, relu, strict=True)]
    return "-" if np.isnan(ratios).any() else spread(ratios)


def _figure(outcomes: dict[Arena, dict[ActivationName, tuple[float, list[Outcome]]]]) -> Figure:
    figure = Figure(figsize=(6.2 * len(outcomes), 4.6), layout="constrained")
    grid = figure.subplots(1, len(outcomes), squeeze=False)[0]
    for axes, (arena, arms) in zip(grid, outcomes.items(), strict=True):
        for index, (name, (_, repeats)) in enumerate(arms.items()):
            for outcome in repeats:
                axes.plot(
                    [check.epoch for check in outcome.checks],
                    [100 * check.train_error for check in outcome.checks],
                    color=f"C{index}",
                    linestyle="--" if name in ("tanh", "sigmoid") else "-",
                    label=name if outcome is repeats[0] else None,
                )
        axes.axhline(100 * TARGET, color="black", linewidth=0.8, linestyle=":")
        axes.set(title=arena.title, xlabel="epoch", ylabel="training error (%)", ylim=(20, 95))
        axes.grid(alpha=0.3)
    grid[-1].legend(loc="upper right", ncols=2)
    return figure
