"""Nine activations in a deep dense network on Fashion-MNIST with plain SGD; why sigmoid fails."""

from typing import get_args

from matplotlib.figure import Figure

from model.bundle.architecture import ActivationName
from training.experiments.record import Record, percent
from training.experiments.trial import Outcome, Trial
from training.experiments.trial_runner import Lab, Plan

_NAMES: tuple[ActivationName, ...] = get_args(ActivationName)
_FIXED_RATE = 0.01
_RATES = (0.003, 0.03, 0.1, 0.3)


_FULL = Plan("fashion-mnist", (256,) * 6, epochs=10, sweep_epochs=3, rates=_RATES)
_QUICK = Plan("digits", (64,) * 6, epochs=3, sweep_epochs=1, rates=_RATES[1:2])


def run(lab: Lab) -> Record:
    """Train each activation at one common rate, and at the one that suits it."""
    plan = _QUICK if lab.quick else _FULL
    fixed = {name: lab.repeat(_arm(plan, name, _FIXED_RATE)) for name in _NAMES}
    rates = {name: _best_rate(lab, plan, name) for name in _NAMES}
    tuned = {name: lab.repeat(_arm(plan, name, rates[name])) for name in _NAMES}
    rows = [
        (
            name,
            percent([1 - (outcome.test_error or 0.0) for outcome in fixed[name]]),
            percent([_sick(outcome) for outcome in fixed[name]]),
            f"{_gradient_ratio(fixed[name][0]):.1e}",
            f"{rates[name]:g}",
            percent([1 - (outcome.test_error or 0.0) for outcome in tuned[name]]),
        )
        for name in _NAMES
    ]
    return Record(
        name="table",
        title="Nine activations in a deep network with plain SGD",
        setting=f"{len(plan.widths)} hidden layers of {plan.widths[0]} units on {plan.data}, SGD "
        f"without momentum, batches of 128, {plan.epochs} epochs, {len(lab.seeds)} seeds; one rate "
        f"for all ({_FIXED_RATE:g}), then for each the best on validation images of "
        f"{_listed(plan)} in {plan.sweep_epochs} epochs.",
        columns=(
            "activation",
            f"test accuracy at {_FIXED_RATE:g}",
            "dead units or saturated outputs",
            "first layer's gradient / last's",
            "best rate",
            "test accuracy at it",
        ),
        rows=rows,
        finding=_finding(fixed, tuned),
        figure=_figure(fixed),
    )


def _arm(plan: Plan, name: ActivationName, rate: float) -> Trial:
    return Trial(
        data=plan.data,
        widths=plan.widths,
        activation=name,
        learning_rate=rate,
        epochs=plan.epochs,
    )


def _best_rate(lab: Lab, plan: Plan, name: ActivationName) -> float:
    arm = _arm(plan, name, _FIXED_RATE).model_copy(update={"epochs": plan.sweep_epochs})
    return lab.best_rate(
        arm, (_FIXED_RATE, *plan.rates), lambda outcome: outcome.last.validation_loss
    )


def _listed(plan: Plan) -> str:
    return ", ".join(f"{rate:g}" for rate in sorted((_FIXED_RATE, *plan.rates)))


def _sick(outcome: Outcome) -> float:
    """Share of dead units, or of saturated outputs, over all hidden layers."""
    shares = [
        layer.dead / layer.units if layer.saturated is None else layer.saturated
        for layer in outcome.health
    ]
    return sum(shares) / len(shares)


def _gradient_ratio(outcome: Outcome) -> float:
    norms = list(outcome.gradient_norms.values())
    return norms[0] / norms[-1]


def _finding(
    fixed: dict[ActivationName, list[Outcome]], tuned: dict[ActivationName, list[Outcome]]
) -> str:
    sigmoid, relu = _gradient_ratio(fixed["sigmoid"][0]), _gradient_ratio(fixed["relu"][0])
    accuracy = percent([1 - (outcome.test_error or 0.0) for outcome in fixed["sigmoid"]])
    better = percent([1 - (outcome.test_error or 0.0) for outcome in tuned["sigmoid"]])
    return (
        f"Sigmoid reaches {accuracy} at the common rate and {better} at its best. In the first "
        f"epoch the gradient of its first layer is {sigmoid:.1e} of its output layer's; ReLU's is "
        f"{relu:.1e}. Each sigmoid layer multiplies the gradient by a slope of at most 1/4. A "
        "published table of this kind has sigmoid at 10.0 %, tanh 87.6, ReLU 88.6, LeakyReLU 88.9, "
        "ELU 87.3 and Swish 88.7."
    )


def _figure(fixed: dict[ActivationName, list[Outcome]]) -> Figure:
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    accuracy, gradient = figure.subplots(1, 2)
    for index, (name, outcomes) in enumerate(fixed.items()):
        checks, norms = outcomes[0].checks, outcomes[0].gradient_norms
        style = {"color": f"C{index}", "linestyle": "--" if name in ("tanh", "sigmoid") else "-"}
        accuracy.plot(
            [check.epoch for check in checks],
            [100 * (1 - check.validation_error) for check in checks],
            label=name,
            **style,
        )
        gradient.plot(range(1, len(norms) + 1), list(norms.values()), marker=".", **style)
    accuracy.set(
        title=f"Learning rate {_FIXED_RATE:g}", xlabel="epoch", ylabel="validation accuracy (%)"
    )
    gradient.set(
        title="Gradients in the first epoch",
        xlabel="layer (the last gives the logits)",
        ylabel="L2 norm, mean over the steps",
        yscale="log",
    )
    for axes in (accuracy, gradient):
        axes.grid(alpha=0.3)
    figure.legend(loc="outside right center")
    return figure
