"""Units killed on purpose, and what a slope below zero does for them (Maas et al. 2013).

Two ways to kill: a share of the units starts with a bias far below zero; or the first epoch runs at
a rate far too high. Slope 0 is ReLU.
"""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from training.experiments.record import Record, percent, spread
from training.experiments.trial import Outcome, Trial
from training.experiments.trial_runner import Lab

_SLOPES = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
_RATE = 0.01
_MOMENTUM = 0.9


@dataclass(frozen=True)
class Kill:
    """A way to kill."""

    title: str
    share: float = 0.0
    bias: float = 0.0
    shock_rate: float | None = None


_UNHARMED = Kill("unharmed")
_KILLS = (
    _UNHARMED,
    Kill("bias -5 in 90 % of the units", share=0.9, bias=-5.0),
    Kill("rate 0.15 in the first epoch", shock_rate=0.15),
)


@dataclass(frozen=True)
class Plan:
    """How large and how long."""

    data: str
    widths: tuple[int, ...]
    epochs: int
    slopes: tuple[float, ...]


_FULL = Plan("fashion-mnist", (128, 128, 128), epochs=10, slopes=_SLOPES)
_QUICK = Plan("digits", (64, 64), epochs=3, slopes=_SLOPES[::3])


def run(lab: Lab) -> Record:
    """Kill, train, count."""
    plan = _QUICK if lab.quick else _FULL
    outcomes = {
        (kill.title, slope): lab.repeat(_trial(plan, kill, slope))
        for kill in _KILLS
        for slope in plan.slopes
    }
    units = sum(plan.widths)
    rows = [
        (
            title,
            "0 (ReLU)" if slope == 0 else f"{slope:g}",
            spread([peak(outcome) for outcome in repeats], "{:.0f}"),
            spread([outcome.last.dead for outcome in repeats], "{:.0f}"),
            *_accuracy(repeats, outcomes[_UNHARMED.title, slope]),
        )
        for (title, slope), repeats in outcomes.items()
    ]
    return Record(
        name="dying",
        title="Dying units, and slopes that revive them",
        setting=f"{len(plan.widths)} hidden layers of {plan.widths[0]} units on {plan.data}, SGD "
        f"with momentum {_MOMENTUM} at rate {_RATE:g}, batches of 128, {plan.epochs} epochs, "
        f"{len(lab.seeds)} seeds. A unit counts as dead where its weighted sum is above 0 on none "
        f"of the validation images; of {units} units in all.",
        columns=(
            "killed by",
            "slope",
            "most dead",
            "dead at last",
            "test accuracy",
            "points lost",
        ),
        rows=rows,
        finding=_finding(plan, outcomes),
        figure=_figure(plan, outcomes, units),
    )


def peak(outcome: Outcome) -> int:
    """Return the most units that were dead at one moment."""
    return max(check.dead for check in outcome.checks)


def _trial(plan: Plan, kill: Kill, slope: float) -> Trial:
    return Trial(
        data=plan.data,
        widths=plan.widths,
        activation="relu" if slope == 0 else "leaky_relu",
        negative_slope=slope,
        learning_rate=_RATE,
        momentum=_MOMENTUM,
        epochs=plan.epochs,
        killed_share=kill.share,
        killing_bias=kill.bias,
        shock_rate=kill.shock_rate,
    )


def _accuracy(repeats: list[Outcome], unharmed: list[Outcome]) -> tuple[str, str]:
    """Say the test accuracy, and the points lost against the unharmed, seed by seed."""
    diverged = sum(outcome.diverged for outcome in repeats)
    if diverged:
        return f"diverged ({diverged} of {len(repeats)})", "-"
    lost = [100 * (m - u) for m, u in zip(_errors(repeats), _errors(unharmed), strict=True)]
    return percent([1 - error for error in _errors(repeats)]), spread(lost)


def _errors(outcomes: list[Outcome]) -> list[float]:
    return [outcome.test_error or 0.0 for outcome in outcomes]


def _finding(plan: Plan, outcomes: dict[tuple[str, float], list[Outcome]]) -> str:
    sentences = []
    for kill in _KILLS[1:]:
        arms = {slope: outcomes[kill.title, slope] for slope in plan.slopes}
        errors = {slope: float(np.mean(_errors(repeats))) for slope, repeats in arms.items()}
        best = min(errors, key=errors.__getitem__)
        parts = []
        for slope in dict.fromkeys((0.0, best)):
            most = np.mean([peak(outcome) for outcome in arms[slope]])
            left = np.mean([outcome.last.dead for outcome in arms[slope]])
            parts.append(
                f"with slope {slope:g} at most {most:.0f} are dead, {left:.0f} at last, and the "
                f"test error is {100 * errors[slope]:.2f} %"
            )
        runaway = [f"{slope:g}" for slope in plan.slopes if any(o.diverged for o in arms[slope])]
        parts += [f"slopes {', '.join(runaway)} diverged"] if runaway else []
        sentences.append(f"Killed by {kill.title}: " + "; ".join(parts) + ".")
    return " ".join(sentences)


def _figure(plan: Plan, outcomes: dict[tuple[str, float], list[Outcome]], units: int) -> Figure:
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    grid = figure.subplots(1, len(_KILLS), sharey=True)
    for axes, kill in zip(grid, _KILLS, strict=True):
        for index, slope in enumerate(plan.slopes):
            checks = outcomes[kill.title, slope][0].checks
            axes.plot(
                [check.epoch for check in checks],
                [100 * check.dead / units for check in checks],
                color=f"C{index}",
                label="slope 0 (ReLU)" if slope == 0 else f"slope {slope:g}",
            )
        axes.set(title=kill.title, xlabel="epoch", ylim=(-3, 100))
        axes.grid(alpha=0.3)
    grid[0].set_ylabel("dead units (%)")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(plan.slopes))
    return figure
