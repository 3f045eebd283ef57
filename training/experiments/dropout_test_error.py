"""MNIST without dropout, with dropout, and with dropout and max-norm (Srivastava et al. 2014)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from training.experiments.experiment_record import Record, format_percent
from training.experiments.trial import Check, Trial, TrialResult
from training.experiments.trial_runner import Plan, TrialRunner, describe_sweep

_RATES = (0.001, 0.0003)


@dataclass(frozen=True)
class Arm:
    """One variant of the training: dropout probabilities and the limit on weight norms."""

    title: str
    input_dropout: float
    dropout: float
    max_norm: float | None


_ARMS = (
    Arm("no dropout", 0.0, 0.0, None),
    Arm("dropout", 0.2, 0.5, None),
    # At these rates no weight norm exceeds 1.8, so the paper's limits of 2 to 4 have no effect.
    Arm("dropout + max-norm 1", 0.2, 0.5, 1.0),
)

_FULL = Plan("mnist", (1024,) * 3, epochs=30, sweep_epochs=4, rates=_RATES)
_QUICK = Plan("digits", (128,) * 3, epochs=4, sweep_epochs=1, rates=_RATES[:1])


def run(runner: TrialRunner) -> Record:
    """Sweep the learning rate of each variant, repeat the best, and compare."""
    plan = _QUICK if runner.quick else _FULL
    results, rows = {}, []
    for arm in _ARMS:
        trial = _trial(plan, arm)
        sweep = trial.model_copy(update={"epochs": plan.sweep_epochs})
        rate = runner.best_learning_rate(
            sweep, plan.rates, lambda result: result.last.validation_loss
        )
        repeats = runner.repeat_over_seeds(trial.model_copy(update={"learning_rate": rate}))
        results[arm.title] = repeats
        rows.append(
            (
                arm.title,
                f"{rate:g}",
                format_percent([result.test_error or 0.0 for result in repeats]),
                format_percent([result.last.train_error for result in repeats]),
                format_percent([mean_sparsity(result) for result in repeats]),
            )
        )
    return Record(
        name="dropout",
        title="Dropout against overfitting, after Srivastava et al. 2014",
        setting=f"three hidden layers of {plan.widths[0]} ReLU on {plan.data}, Adam "
        f"and a rate that falls linearly to 0 over {plan.epochs} epochs, batches of 128, no "
        "augmentation; dropout zeroes 20 % of the pixels and 50 % of the hidden units. "
        f"{describe_sweep(plan.rates, plan.sweep_epochs)} {runner.seed_count}.",
        columns=("arm", "rate", "test error", "training error", "sparsity of hidden units"),
        rows=rows,
        finding=_finding(results),
        figure=_figure(results),
    )


def mean_sparsity(result: TrialResult) -> float:
    """Return the sparsity on the validation images, averaged over the hidden layers."""
    return float(np.mean([layer.sparsity for layer in result.health]))


def _trial(plan: Plan, arm: Arm) -> Trial:
    return Trial(
        data=plan.data,
        widths=plan.widths,
        input_dropout=arm.input_dropout,
        dropout=arm.dropout,
        max_norm=arm.max_norm,
        optimizer="adam",
        schedule="linear",
        epochs=plan.epochs,
    )


def _errors(results: list[TrialResult]) -> list[float]:
    return [100 * (result.test_error or 0.0) for result in results]


def _finding(results: dict[str, list[TrialResult]]) -> str:
    plain, dropped, limited = (float(np.mean(_errors(repeats))) for repeats in results.values())
    overfit = results[_ARMS[0].title][0]
    return (
        f"The test error is {plain:.2f} % without dropout, {dropped:.2f} % with it and "
        f"{limited:.2f} % with max-norm besides: {dropped - plain:+.2f} and {limited - plain:+.2f} "
        "points. The paper has 1.60 %, 1.25 % and 1.06 %, from far longer training. Without "
        "dropout and with the first seed the training error ends at "
        f"{100 * overfit.last.train_error:.2f} %, and the validation loss "
        f"{describe_loss(overfit.checks)}."
    )


def describe_loss(checks: Sequence[Check]) -> str:
    """Say where the validation loss has its least value, and where it ends."""
    least, last = min(checks, key=lambda check: check.validation_loss), checks[-1]
    if least is last:
        return f"has its least value, {last.validation_loss:.3f}, at the end"
    return (
        f"goes from its least, {least.validation_loss:.3f} after epoch {least.epoch:g}, to "
        f"{last.validation_loss:.3f}"
    )


def _figure(results: dict[str, list[TrialResult]]) -> Figure:
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    errors, losses = figure.subplots(1, 2)
    for index, (title, repeats) in enumerate(results.items()):
        checks = repeats[0].checks[1:]
        epochs = [check.epoch for check in checks]
        for split, style in (("train", ":"), ("validation", "-")):
            for axes, metric, scale in ((errors, "error", 100), (losses, "loss", 1)):
                axes.plot(
                    epochs,
                    [scale * getattr(check, f"{split}_{metric}") for check in checks],
                    style,
                    color=f"C{index}",
                    label=f"{title}, {'training' if split == 'train' else split}",
                )
    errors.set(title="Error", xlabel="epoch", ylabel="wrong answers (%)", ylim=(0, 4))
    losses.set(title="Cross-entropy", xlabel="epoch", ylabel="loss (nats)", yscale="log")
    for axes in (errors, losses):
        axes.grid(alpha=0.3)
    figure.legend(*errors.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
