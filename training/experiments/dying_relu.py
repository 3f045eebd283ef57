"""The dying ReLU problem: do leaky slopes revive dead units (Maas et al. 2013)?

Units are killed on purpose in two ways: a share of them starts with a bias far below zero, or the
first epoch has a learning rate far too high. Slope 0 is ReLU.
"""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from training.experiments.experiment_record import Record, format_mean_std, format_percent
from training.experiments.trial import Trial, TrialResult
from training.experiments.trial_runner import TrialRunner

_SLOPES = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
_RATE = 0.01
_MOMENTUM = 0.9


@dataclass(frozen=True)
class KillMethod:
    """A way to make units die."""

    title: str
    share: float = 0.0
    bias: float = 0.0
    shock_rate: float | None = None


_CONTROL = KillMethod("unharmed")
_KILL_METHODS = (
    _CONTROL,
    KillMethod("bias -5 in 90 % of the units", share=0.9, bias=-5.0),
    KillMethod("rate 0.15 in the first epoch", shock_rate=0.15),
)


@dataclass(frozen=True)
class Plan:
    """The data set, the network, the length of the training, and the slopes to compare."""

    data: str
    widths: tuple[int, ...]
    epochs: int
    slopes: tuple[float, ...]


_FULL = Plan("fashion-mnist", (128, 128, 128), epochs=10, slopes=_SLOPES)
_QUICK = Plan("digits", (64, 64), epochs=3, slopes=_SLOPES[::3])


def run(runner: TrialRunner) -> Record:
    """Train with each way to kill and each slope, and count the dead units."""
    plan = _QUICK if runner.quick else _FULL
    results = {
        (kill.title, slope): runner.repeat_over_seeds(_trial(plan, kill, slope))
        for kill in _KILL_METHODS
        for slope in plan.slopes
    }
    units = sum(plan.widths)
    rows = [
        (
            title,
            "0 (ReLU)" if slope == 0 else f"{slope:g}",
            format_mean_std([max_dead_units(result) for result in repeats], "{:.0f}"),
            format_mean_std([result.last.dead for result in repeats], "{:.0f}"),
            *_accuracy(repeats, results[_CONTROL.title, slope]),
        )
        for (title, slope), repeats in results.items()
    ]
    return Record(
        name="dying",
        title="Dying units, and slopes that revive them",
        setting=f"{len(plan.widths)} hidden layers of {plan.widths[0]} units on {plan.data}, SGD "
        f"with momentum {_MOMENTUM} at rate {_RATE:g}, batches of 128, {plan.epochs} epochs, "
        f"{runner.seed_count}. A unit counts as dead where its weighted sum is above 0 on "
        f"none of the validation images; of {units} units in all.",
        columns=(
            "killed by",
            "slope",
            "most dead",
            "dead at last",
            "test accuracy",
            "points lost",
        ),
        rows=rows,
        finding=_finding(plan, results),
        figure=_figure(plan, results, units),
    )


def max_dead_units(result: TrialResult) -> int:
    """Return the largest number of units that were dead at one check."""
    return max(check.dead for check in result.checks)


def _trial(plan: Plan, kill: KillMethod, slope: float) -> Trial:
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


def _accuracy(repeats: list[TrialResult], control: list[TrialResult]) -> tuple[str, str]:
    """Format the test accuracy, and the percentage points lost against `control`, seed by seed."""
    diverged = sum(result.diverged for result in repeats)
    if diverged:
        return f"diverged ({diverged} of {len(repeats)})", "-"
    lost = [100 * (m - u) for m, u in zip(_errors(repeats), _errors(control), strict=True)]
    return format_percent([1 - error for error in _errors(repeats)]), format_mean_std(lost)


def _errors(results: list[TrialResult]) -> list[float]:
    return [result.test_error or 0.0 for result in results]


def _finding(plan: Plan, results: dict[tuple[str, float], list[TrialResult]]) -> str:
    sentences = []
    for kill in _KILL_METHODS[1:]:
        arms = {slope: results[kill.title, slope] for slope in plan.slopes}
        sentences.append(f"Killed by {kill.title}: {describe_deaths(arms)}.")
    return " ".join(["Means over the seeds.", *sentences])


def describe_deaths(arms: dict[float, list[TrialResult]]) -> str:
    """Say what becomes of the units with slope 0 and with the slope of the least error."""
    errors = {slope: float(np.mean(_errors(repeats))) for slope, repeats in arms.items()}
    best = min(errors, key=errors.__getitem__)
    parts = []
    for slope in dict.fromkeys((0.0, best)):
        most = np.mean([max_dead_units(result) for result in arms[slope]])
        left = np.mean([result.last.dead for result in arms[slope]])
        parts.append(
            f"with slope {slope:g} the most that are dead at once are {most:.0f}, at last "
            f"{left:.0f}, and the test error is {100 * errors[slope]:.2f} %"
        )
    runaway = [f"{slope:g}" for slope, repeats in arms.items() if any(o.diverged for o in repeats)]
    parts += [f"slopes {', '.join(runaway)} diverged"] if runaway else []
    return "; ".join(parts)


def _figure(plan: Plan, results: dict[tuple[str, float], list[TrialResult]], units: int) -> Figure:
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    grid = figure.subplots(1, len(_KILL_METHODS), sharey=True)
    for axes, kill in zip(grid, _KILL_METHODS, strict=True):
        for index, slope in enumerate(plan.slopes):
            checks = results[kill.title, slope][0].checks
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
