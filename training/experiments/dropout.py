"""Srivastava et al. 2014 on MNIST: without dropout, with it, and with max-norm besides."""

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from training.experiments.record import Record, percent
from training.experiments.trial import Outcome, Trial
from training.experiments.trial_runner import Lab, Plan

_RATES = (0.001, 0.0003)


@dataclass(frozen=True)
class Arm:
    """One way to train the network: probabilities of zeroing, and the longest weight vector."""

    title: str
    input_dropout: float
    dropout: float
    max_norm: float | None


_ARMS = (
    Arm("no dropout", 0.0, 0.0, None),
    Arm("dropout", 0.2, 0.5, None),
    # At these rates no weight vector grows beyond 1.8: the paper's bounds of 2 to 4 never bind.
    Arm("dropout + max-norm 1", 0.2, 0.5, 1.0),
)


_FULL = Plan("mnist", (1024,) * 3, epochs=30, sweep_epochs=4, rates=_RATES)
_QUICK = Plan("digits", (128,) * 3, epochs=4, sweep_epochs=1, rates=_RATES[:1])


def run(lab: Lab) -> Record:
    """Sweep, repeat, compare."""
    plan = _QUICK if lab.quick else _FULL
    outcomes, rows = {}, []
    for arm in _ARMS:
        trial = _trial(plan, arm)
        sweep = trial.model_copy(update={"epochs": plan.sweep_epochs})
        rate = lab.best_rate(sweep, plan.rates, lambda outcome: outcome.last.validation_loss)
        repeats = lab.repeat(trial.model_copy(update={"learning_rate": rate}))
        outcomes[arm.title] = repeats
        rows.append(
            (
                arm.title,
                f"{rate:g}",
                percent([outcome.test_error or 0.0 for outcome in repeats]),
                percent([outcome.last.train_error for outcome in repeats]),
                percent([sparsity(outcome) for outcome in repeats]),
            )
        )
    return Record(
        name="dropout",
        title="Dropout against overfitting, after Srivastava et al. 2014",
        setting=f"three hidden layers of {plan.widths[0]} ReLU on {plan.data}, Adam "
        f"and a rate that falls linearly to 0 over {plan.epochs} epochs, batches of 128, no "
        "augmentation; dropout zeroes 20 % of the pixels and 50 % of the hidden units. Rates "
        f"chosen for each arm on validation images in {plan.sweep_epochs} epochs; "
        f"{len(lab.seeds)} seeds.",
        columns=("arm", "rate", "test error", "training error", "sparsity of hidden units"),
        rows=rows,
        finding=_finding(outcomes),
        figure=_figure(outcomes),
    )


def sparsity(outcome: Outcome) -> float:
    """Mean share of silent hidden units on the validation images, over the layers."""
    return float(np.mean([layer.sparsity for layer in outcome.health]))


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


def _errors(outcomes: list[Outcome]) -> list[float]:
    return [100 * (outcome.test_error or 0.0) for outcome in outcomes]


def _finding(outcomes: dict[str, list[Outcome]]) -> str:
    plain, dropped, held = (float(np.mean(_errors(repeats))) for repeats in outcomes.values())
    overfit = outcomes[_ARMS[0].title][0]
    losses = [check.validation_loss for check in overfit.checks]
    least = int(np.argmin(losses))
    return (
        f"The test error is {plain:.2f} % without dropout, {dropped:.2f} % with it and {held:.2f} "
        f"% with max-norm besides: {dropped - plain:+.2f} and {held - plain:+.2f} points. The "
        "paper has 1.60 %, 1.25 % and 1.06 %, from far longer training. Without dropout the "
        f"training error ends at {100 * overfit.last.train_error:.2f} %, and the validation loss "
        f"goes from its least, {losses[least]:.3f} after epoch {least}, to {losses[-1]:.3f}."
    )


def _figure(outcomes: dict[str, list[Outcome]]) -> Figure:
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    errors, losses = figure.subplots(1, 2)
    for index, (title, repeats) in enumerate(outcomes.items()):
        checks = repeats[0].checks[1:]
        epochs = [check.epoch for check in checks]
        for part, style in (("train", ":"), ("validation", "-")):
            for axes, figure_name, scale in ((errors, "error", 100), (losses, "loss", 1)):
                axes.plot(
                    epochs,
                    [scale * getattr(check, f"{part}_{figure_name}") for check in checks],
                    style,
                    color=f"C{index}",
                    label=f"{title}, {'training' if part == 'train' else part}",
                )
    errors.set(title="Error", xlabel="epoch", ylabel="wrong answers (%)", ylim=(0, 4))
    losses.set(title="Cross-entropy", xlabel="epoch", ylabel="loss (nats)", yscale="log")
    for axes in (errors, losses):
        axes.grid(alpha=0.3)
    figure.legend(*errors.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
