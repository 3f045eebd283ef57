"""From a network's health to its likely cause and what to try; one sentence a sick layer.

Measures nothing. The causes are told apart by evidence: units that were dead before the first step
were born so; dead units that would fire without their bias were pushed there by it; others fell
silent while training, which a learning rate too high for the network does (Lu et al. 2019).
"""

from collections.abc import Sequence

from model.bundle.architecture import ActivationName
from training.fitting.diagnostics import Epoch, LayerHealth, rate_bound

DEAD_SHARE = 0.1
"""A layer with at least this share of dead units is sick."""

SATURATED_SHARE = 0.5
"""A layer whose outputs stand near an end of their range this often is sick."""

LINEAR_SHARE = 0.5
"""A layer with at least this share of units that are always on is hardly more than linear."""

VANISHED = 1e-3
"""Gradients have vanished where the smallest layer's norm is this share of the largest's."""

_LEAK = "--activation leaky_relu"


def advise(
    activation: ActivationName,
    learning_rate: float,
    before: Sequence[LayerHealth],
    after: Sequence[LayerHealth],
    epochs: Sequence[Epoch],
) -> list[str]:
    """Return a sentence or two for each sickness found; none for a healthy network.

    Args:
        activation: of the hidden layers.
        learning_rate: the highest of the run.
        before: the health before the first step.
        after: the health of the weights that were kept.
        epochs: what each epoch left behind.
    """
    sentences = []
    for born, now in zip(before, after, strict=True):
        if now.dead >= DEAD_SHARE * now.units and now.dead:
            sentences.append(_dead(activation, learning_rate, born, now))
        if now.saturated is not None and now.saturated >= SATURATED_SHARE:
            sentences.append(_saturated(activation, learning_rate, born, now))
        if now.always_on >= LINEAR_SHARE * now.units:
            sentences.append(
                f"{now.name}: {now.always_on} of {now.units} units fire at every place of all "
                f"{now.images:,} images, so they only add a linear map; biases that grew large are "
                f"the likely cause. Try --learning-rate {learning_rate / 3:.2g}."
            )
    return sentences + _vanished(activation, epochs)


def _dead(
    activation: ActivationName, learning_rate: float, born: LayerHealth, now: LayerHealth
) -> str:
    dead = set(now.dead_units)
    lower = f"--learning-rate {learning_rate / 3:.2g}"
    if activation != "relu":
        return (
            f"{now.name}: {now.dead} of {now.units} units are silent: none of {now.images:,} "
            "images takes them above 0. Below it they still pass gradients, so training may wake "
            f"them. The likely cause is a learning rate too high for this network. Try {lower}."
        )
    if 2 * len(dead & set(born.dead_units)) >= len(dead):
        if 2 * now.silenced_by_bias >= len(dead):
            cause, remedy = "biases that start below zero", f"biases of 0, or {_LEAK}"
        else:
            cause = "the initialisation: they were dead before the first step"
            remedy = f"{_LEAK}, another --seed, or He initialisation if you changed it"
    elif 2 * now.silenced_by_bias >= len(dead):
        cause, remedy = "biases that training drove below zero", f"{lower}, or {_LEAK}"
    else:
        cause, remedy = "a learning rate too high for this network", f"{lower}, or {_LEAK}"
    return (
        f"{now.name}: {now.dead} of {now.units} units are dead: they fired on none of "
        f"{now.images:,} images, so each fires on fewer than {rate_bound(now.images):.2%} of such "
        f"images (95 %). The likely cause is {cause}. Try {remedy}."
    )


def _saturated(
    activation: ActivationName, learning_rate: float, born: LayerHealth, now: LayerHealth
) -> str:
    from_the_start = (born.saturated or 0.0) >= SATURATED_SHARE
    cause = "the initialisation" if from_the_start else "weights that grew large"
    remedy = (
        "Glorot initialisation" if from_the_start else f"--learning-rate {learning_rate / 3:.2g}"
    )
    return (
        f"{now.name}: {now.saturated:.0%} of the {activation} outputs stand at an end of their "
        f"range, where the gradient is almost 0. The likely cause is {cause}. Try {remedy}, or "
        "--activation relu."
    )


def _vanished(activation: ActivationName, epochs: Sequence[Epoch]) -> list[str]:
    # A wholly dead layer has no gradient at all, and a sentence of its own.
    seen = epochs[-1].gradient_norms if epochs else {}
    norms = {name: norm for name, norm in seen.items() if norm > 0}
    if not norms or not min(norms.values()) < VANISHED * max(norms.values()):
        return []
    smallest, largest = min(norms, key=norms.__getitem__), max(norms, key=norms.__getitem__)
    relu = activation == "relu"
    remedy = "--preset cnn, whose layers are normalised" if relu else "--activation relu"
    sentence = (
        f"Gradients vanish: {norms[smallest]:.1e} at {smallest} against {norms[largest]:.1e} at "
        f"{largest}. The likely cause is the activation, {activation}, in a network this deep. Try "
        f"{remedy}."
    )
    return [sentence]
