"""Epochs to 25 % training error by activation and initialisation (Krizhevsky et al. 2012).

The paper found ReLU six times as fast as tanh. Its weights were drawn from one normal distribution
for all layers, and half of its layers started with biases of 1. Here both that initialisation and
one that is scaled to each layer (He et al. 2015, Glorot & Bengio 2010) are crossed with ReLU and
three bounded activations, each pair at the learning rate that is fastest for it.
"""

from typing import Literal, get_args

import numpy as np
from matplotlib.figure import Figure

from training.experiments.activation_training_speed import (
    CHECK_IMAGES,
    GIVE_UP_RULE,
    MOMENTUM,
    TARGET,
    Plan,
    build_arm,
    compare_tanh,
    format_epochs,
    format_ratio,
    repeat_at_fastest_rate,
)
from training.experiments.experiment_record import Record
from training.experiments.trial import TrialActivation, TrialResult
from training.experiments.trial_runner import TrialRunner

Initialisation = Literal["scaled", "krizhevsky"]
_INITIALISATIONS: tuple[Initialisation, ...] = get_args(Initialisation)
_ACTIVATIONS: tuple[TrialActivation, ...] = ("relu", "tanh", "sigmoid", "softsign")
_TITLES = {"scaled": "scaled to each layer", "krizhevsky": "N(0, .01²), biases 1"}

_FULL = Plan("cifar-10", "CIFAR-10", epochs=80, checks_per_epoch=1)
_QUICK = Plan("digits", "digits", epochs=8, checks_per_epoch=1)
_RATES = (0.03, 0.01, 0.1, 0.003)

Arms = dict[tuple[Initialisation, TrialActivation], tuple[float, list[TrialResult]]]


def run(runner: TrialRunner) -> Record:
    """Sweep the learning rate of each pair, repeat the fastest, and compare with ReLU."""
    plan = _QUICK if runner.quick else _FULL
    rates = _RATES[:1] if runner.quick else _RATES
    arms: Arms = {}
    activations = _ACTIVATIONS[:2] if runner.quick else _ACTIVATIONS
    for initialisation in _INITIALISATIONS:
        for activation in activations:
            arm = build_arm(plan, activation).model_copy(update={"initialisation": initialisation})
            arms[initialisation, activation] = repeat_at_fastest_rate(runner, arm, rates)
    return Record(
        name="initialisation",
        title="Is ReLU faster, or its initialisation?",
        setting=_setting(runner, plan, rates),
        columns=("initialisation", "activation", "rate", "epochs to 25 %", "times ReLU's"),
        rows=_rows(arms, plan),
        finding=_finding(arms, plan),
        figure=_figure(arms, plan),
    )


def _rows(arms: Arms, plan: Plan) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for (initialisation, activation), (rate, repeats) in arms.items():
        ratio = format_ratio(repeats, arms[initialisation, "relu"][1])
        title = _TITLES[initialisation]
        rows.append((title, activation, f"{rate:g}", format_epochs(repeats, plan), ratio))
    return rows


def _finding(arms: Arms, plan: Plan) -> str:
    """Answer the question with the measured ratios of tanh to ReLU."""
    parts = []
    for initialisation in _INITIALISATIONS:
        tanh, relu = (arms[initialisation, name][1] for name in ("tanh", "relu"))
        parts.append(f"Weights {_TITLES[initialisation]}: {compare_tanh(tanh, relu, plan)}.")
    return " ".join([*parts, "The paper found about six times."])


def _setting(runner: TrialRunner, plan: Plan, rates: tuple[float, ...]) -> str:
    tried = ", ".join(f"{rate:g}" for rate in sorted(rates))
    return (
        f"a network of four convolutions (16-16-32-32 channels, pooled between) on "
        f"{len(runner.dataset(plan.data).train):,} of {plan.title} training images, without "
        f"regularisation, SGD with momentum {MOMENTUM}, batches of 128, at most {plan.epochs} "
        f"epochs. Weights are scaled to each layer (He for ReLU, Glorot for the others; biases 0) "
        "or drawn from N(0, .01²) for all layers with biases of 1 in the second and fourth "
        "convolution. The learning rate of each pair is the fastest of "
        f"{tried} in a sweep of its own. {GIVE_UP_RULE} {runner.seed_count}. The training "
        f"error is measured in evaluation mode on {CHECK_IMAGES:,} training images, and the epoch "
        "interpolated."
    )


def _figure(arms: Arms, plan: Plan) -> Figure:
    figure = Figure(figsize=(6.2 * len(_INITIALISATIONS), 4.6), layout="constrained")
    for axes, initialisation in zip(
        np.ravel(figure.subplots(1, len(_INITIALISATIONS), sharey=True)),
        _INITIALISATIONS,
        strict=True,
    ):
        names = [name for initial, name in arms if initial == initialisation]
        for index, activation in enumerate(names):
            for number, result in enumerate(arms[initialisation, activation][1]):
                axes.plot(
                    [check.epoch for check in result.checks],
                    [100 * check.train_error for check in result.checks],
                    color=f"C{index}",
                    label=activation if number == 0 else None,
                )
        axes.axhline(100 * TARGET, color="black", linewidth=0.8, linestyle=":")
        axes.set(title=f"{plan.title}, weights {_TITLES[initialisation]}", xlabel="epoch")
        axes.set(ylabel="training error (%)", ylim=(20, 95))
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right")
    return figure
