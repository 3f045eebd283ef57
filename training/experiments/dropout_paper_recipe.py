"""MNIST with dropout alone, trained as in Srivastava et al. 2014 (section 6.1.1, appendix B.1).

A high learning rate and a high momentum, both for longer than in `dropout`, and in the end on the
validation images too. `dropout` compares dropout with max-norm; this asks how far dropout gets by
itself.
"""

from dataclasses import dataclass

from matplotlib.figure import Figure

from training.experiments.dropout_test_error import mean_sparsity
from training.experiments.experiment_record import Record, format_percent
from training.experiments.trial import Trial, TrialResult
from training.experiments.trial_runner import TrialRunner, describe_sweep

_MOMENTUM = 0.95
_GOAL = 1.30
"""Test error in percent, close enough to the paper's 1.25 to call it reproduced."""


@dataclass(frozen=True)
class Plan:
    """The data set, the hidden layers of each arm, the lengths of the trainings, and the rates."""

    data: str
    arms: tuple[tuple[int, ...], ...]
    epochs: int
    sweep_epochs: int
    rates: tuple[float, ...]


_FULL = Plan(
    "mnist",
    ((1024, 1024, 1024), (2048, 2048)),
    epochs=100,
    sweep_epochs=5,
    rates=(0.03, 0.01, 0.003),
)
_QUICK = Plan("digits", ((64,) * 3, (128,) * 2, (64,)), epochs=4, sweep_epochs=1, rates=(0.03,))


def run(runner: TrialRunner) -> Record:
    """Choose the rate of each network on validation images, then train it on all and test it."""
    plan = _QUICK if runner.quick else _FULL
    results, rows = {}, []
    for widths in plan.arms:
        trial = _trial(plan, widths)
        sweep = trial.model_copy(update={"epochs": plan.sweep_epochs})
        rate = runner.best_learning_rate(
            sweep, plan.rates, lambda result: result.last.validation_loss
        )
        final = {"learning_rate": rate, "trains_on_validation": True}
        repeats = runner.repeat_over_seeds(trial.model_copy(update=final))
        results[_title(widths)] = repeats
        rows.append(
            (
                _title(widths),
                f"{rate:g}",
                format_percent(_errors(repeats)),
                format_percent([result.last.train_error for result in repeats]),
                format_percent([mean_sparsity(result) for result in repeats]),
            )
        )
    return Record(
        name="dropout-recipe",
        title="Dropout alone, with the training of Srivastava et al. 2014",
        setting=_setting(runner, plan),
        columns=("hidden layers", "rate", "test error", "training error", "sparsity"),
        rows=rows,
        finding=_finding(results),
        figure=_figure(results),
    )


def _trial(plan: Plan, widths: tuple[int, ...]) -> Trial:
    return Trial(
        data=plan.data,
        widths=widths,
        input_dropout=0.2,
        dropout=0.5,
        momentum=_MOMENTUM,
        schedule="linear",
        batch_size=100,
        epochs=plan.epochs,
    )


def _title(widths: tuple[int, ...]) -> str:
    return "-".join(map(str, widths))


def _errors(results: list[TrialResult]) -> list[float]:
    return [result.test_error or 0.0 for result in results]


def _setting(runner: TrialRunner, plan: Plan) -> str:
    images = len(runner.dataset(plan.data).train) + len(runner.dataset(plan.data).validation)
    return (
        f"dense networks of ReLU on {plan.data}, dropout of 20 % of the pixels and 50 % of the "
        f"hidden units and no other regularisation, SGD with momentum {_MOMENTUM:g}, batches of "
        f"100, {plan.epochs} epochs with a rate that falls linearly to 0. "
        f"{describe_sweep(plan.rates, plan.sweep_epochs)} The final training has all {images:,} "
        "training and validation images, as the paper's. "
        f"{runner.seed_count}."
    )


def _finding(results: dict[str, list[TrialResult]]) -> str:
    """Say whether the mean of each network is near the paper's 1.25 %."""
    parts = []
    for title, repeats in results.items():
        error = 100 * sum(_errors(repeats)) / len(repeats)
        verdict = "at most" if error <= _GOAL else "above"
        parts.append(f"{title} has a mean test error of {error:.2f} %, {verdict} {_GOAL:.2f} %")
    return "; ".join(parts) + ". The paper has 1.25 % with 1024-1024-1024 ReLU and dropout alone."


def _figure(results: dict[str, list[TrialResult]]) -> Figure:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axes, metric, title in zip(
        figure.subplots(1, 2),
        ("train_error", "train_loss"),
        ("Training error, dropout off", "Training loss, dropout off"),
        strict=True,
    ):
        for index, (name, repeats) in enumerate(results.items()):
            for number, result in enumerate(repeats):
                axes.plot(
                    [check.epoch for check in result.checks[1:]],
                    [getattr(check, metric) for check in result.checks[1:]],
                    color=f"C{index}",
                    label=name if number == 0 else None,
                )
        axes.set(title=title, xlabel="epoch", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
