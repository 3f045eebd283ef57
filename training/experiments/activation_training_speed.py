"""Epochs to 25 % training error, ReLU against tanh and others (Krizhevsky et al. 2012, figure 1).

Trains a network of four convolutions without regularisation, each activation at the learning rate
that reaches the target first in its own sweep.
"""

from dataclasses import dataclass
from typing import get_args

import numpy as np
from matplotlib.figure import Figure

from model.bundle.architecture_description import ActivationName
from training.experiments.experiment_record import Record, format_mean_std
from training.experiments.target_crossing import first_crossing
from training.experiments.trial import (
    GIVE_UP_ERROR,
    GIVE_UP_SHARE,
    Trial,
    TrialActivation,
    TrialResult,
)
from training.experiments.trial_runner import TrialRunner

TARGET = 0.25
"""The training error at which a trial stops."""
MOMENTUM = 0.9
CHECK_IMAGES = 4_000
GIVE_UP_RULE = (
    f"A run with more than {100 * GIVE_UP_ERROR:g} % wrong after {GIVE_UP_SHARE:.0%} of its epochs "
    "is given up."
)
_NAMES: tuple[ActivationName, ...] = get_args(ActivationName)


@dataclass(frozen=True)
class Plan:
    """A data set, and how long and how often its trials are measured."""

    data: str
    title: str
    epochs: int
    checks_per_epoch: int


_FULL = (
    Plan("cifar-10", "CIFAR-10", epochs=40, checks_per_epoch=1),
    Plan("fashion-mnist", "Fashion-MNIST", epochs=1, checks_per_epoch=40),
)
_QUICK = (Plan("digits", "digits", epochs=4, checks_per_epoch=2),)
_RATES = (0.01, 0.03, 0.1, 0.003)
_WIDTHS = (16, 16, 32, 32)


def run(runner: TrialRunner) -> Record:
    """Sweep the learning rate of each activation, repeat the fastest, and compare with ReLU."""
    plans = _QUICK if runner.quick else _FULL
    rates = _RATES[:1] if runner.quick else _RATES
    arms_by_plan = {
        plan: {
            name: repeat_at_fastest_rate(runner, build_arm(plan, name), rates) for name in _NAMES
        }
        for plan in plans
    }
    rows, compared = [], []
    for plan, arms in arms_by_plan.items():
        relu = arms["relu"][1]
        for name, (rate, repeats) in arms.items():
            ratio = format_ratio(repeats, relu)
            rows.append((plan.title, name, f"{rate:g}", format_epochs(repeats, plan), ratio))
        compared.append(f"On {plan.title} {compare_tanh(arms['tanh'][1], relu, plan)}.")
    return Record(
        name="activations",
        title="Epochs to 25 % training error, ReLU against tanh and others",
        setting=_setting(runner, tuple(plans), rates),
        columns=("data", "activation", "rate", "epochs to 25 %", "times ReLU's"),
        rows=rows,
        finding=" ".join(compared) + " The paper found about six times, on all of CIFAR-10 with a "
        "network whose sizes it does not give.",
        figure=_figure(arms_by_plan),
    )


def _setting(runner: TrialRunner, plans: tuple[Plan, ...], rates: tuple[float, ...]) -> str:
    sizes = [f"{len(runner.dataset(plan.data).train):,} of {plan.title}" for plan in plans]
    tried = ", ".join(f"{rate:g}" for rate in sorted(rates))
    return (
        f"a network of four convolutions (16-16-32-32 channels, pooled between) on "
        f"{' and '.join(sizes)} training images, without regularisation. SGD with momentum "
        f"{MOMENTUM}, batches of 128; the learning rate of each arm is the fastest of {tried} in "
        f"a sweep of its own. {GIVE_UP_RULE} {runner.seed_count}. The training "
        f"error is measured in evaluation mode on {CHECK_IMAGES:,} training images, and the epoch "
        "interpolated between measurements."
    )


def epochs_to_target(result: TrialResult, target: float) -> float:
    """Return the epoch at which the training error first falls to `target`, as `first_crossing`."""
    return first_crossing(
        [check.epoch for check in result.checks],
        [check.train_error for check in result.checks],
        target,
    )


def build_arm(plan: Plan, name: TrialActivation) -> Trial:
    """Describe a trial of the network of four convolutions that stops at the target."""
    return Trial(
        data=plan.data,
        network="convolutions",
        widths=_WIDTHS,
        activation=name,
        momentum=MOMENTUM,
        epochs=plan.epochs,
        checks_per_epoch=plan.checks_per_epoch,
        stop_at_train_error=TARGET,
        check_images=CHECK_IMAGES,
    )


def repeat_at_fastest_rate(
    runner: TrialRunner, arm: Trial, rates: tuple[float, ...]
) -> tuple[float, list[TrialResult]]:
    """Sweep the learning rate of an arm; return the fastest, and its results over the seeds."""
    rate = _fastest_rate(runner, arm, rates)
    return rate, runner.repeat_over_seeds(arm.model_copy(update={"learning_rate": rate}))


def _fastest_rate(runner: TrialRunner, arm: Trial, rates: tuple[float, ...]) -> float:
    """Return the learning rate that reaches the target first.

    Once a rate has reached it, the next rates run for no more epochs than it took. If none reaches
    it, return the rate with the least training error at the end.
    """
    costs = {}
    limit: float = arm.epochs
    for rate in rates:
        result = runner.run_sweep_trial(arm.model_copy(update={"epochs": limit}), rate)
        epochs = epochs_to_target(result, TARGET)
        reached = not np.isnan(epochs)
        costs[rate] = (not reached, epochs if reached else result.last.train_error)
        if reached:
            limit = min(limit, result.last.epoch)
    return min(costs, key=costs.__getitem__)


def format_epochs(results: list[TrialResult], plan: Plan) -> str:
    """Format the epochs to the target over seeds, or how many seeds did not reach it.

    Those that were given up, which might have reached it later, are counted besides.
    """
    epochs = _epochs(results)
    missed = int(np.isnan(epochs).sum())
    if not missed:
        return format_mean_std(epochs)
    given_up = sum(result.last.train_error > GIVE_UP_ERROR for result in results)
    besides = f", {given_up} given up before" if given_up else ""
    return f"not within {plan.epochs} ({missed} of {len(results)} seeds{besides})"


def format_ratio(results: list[TrialResult], relu: list[TrialResult]) -> str:
    """Format the ratio of epochs, computed seed by seed so that its deviation can be given."""
    ratios = [own / other for own, other in zip(_epochs(results), _epochs(relu), strict=True)]
    return "-" if np.isnan(ratios).any() else format_mean_std(ratios)


def compare_tanh(tanh: list[TrialResult], relu: list[TrialResult], plan: Plan) -> str:
    """Say how many times as many epochs as ReLU tanh takes, or what each takes."""
    ratio = format_ratio(tanh, relu)
    if ratio == "-":
        return f"tanh: {format_epochs(tanh, plan)}; ReLU: {format_epochs(relu, plan)}"
    return f"tanh takes {ratio} times as many epochs as ReLU"


def _epochs(results: list[TrialResult]) -> list[float]:
    return [epochs_to_target(result, TARGET) for result in results]


def _figure(
    arms_by_plan: dict[Plan, dict[ActivationName, tuple[float, list[TrialResult]]]],
) -> Figure:
    figure = Figure(figsize=(6.2 * len(arms_by_plan), 4.6), layout="constrained")
    grid = figure.subplots(1, len(arms_by_plan), squeeze=False)[0]
    for axes, (plan, arms) in zip(grid, arms_by_plan.items(), strict=True):
        for index, (name, (_, repeats)) in enumerate(arms.items()):
            for result in repeats:
                axes.plot(
                    [check.epoch for check in result.checks],
                    [100 * check.train_error for check in result.checks],
                    color=f"C{index}",
                    linestyle="--" if name in ("tanh", "sigmoid") else "-",
                    label=name if result is repeats[0] else None,
                )
        axes.axhline(100 * TARGET, color="black", linewidth=0.8, linestyle=":")
        axes.set(title=plan.title, xlabel="epoch", ylabel="training error (%)", ylim=(20, 95))
        axes.grid(alpha=0.3)
    grid[-1].legend(loc="upper right", ncols=2)
    return figure
