"""Explains unhealthy layers: for each the likely cause and a remedy, as sentences for the user.

Measures nothing; it reads the diagnostics. Units that were dead before the first step have a bad
initialisation. Units that fire as soon as batch normalisation takes the statistics of training
images are silenced by its own, which lag behind the weights. Dead units that would fire without
their bias were silenced by it. Other units died during training, which a learning rate too high for
the network causes (Lu et al. 2019).
"""

from collections.abc import Sequence

from model.bundle.architecture_description import ActivationName
from training.fitting.unit_diagnostics import EpochDiagnostics, LayerHealth, firing_rate_bound

DEAD_SHARE = 0.1
"""A layer with at least this share of dead units gets advice."""

SATURATED_SHARE = 0.5
"""A layer with at least this share of saturated outputs gets advice."""

LINEAR_SHARE = 0.5
"""A layer with at least this share of units that are always on is almost linear, if its activation
is one of _IDENTITY_ABOVE_ZERO."""

VANISHED_RATIO = 1e-3
"""Gradients vanish where the smallest gradient norm is below this share of the largest."""

TELLING_IMAGES = 30
"""On fewer images a sound unit, too, may fire on none of them or on all."""

_LAGGING_SHARE = 0.1
"""Statistics lag if with others at most this share of a layer's dead units is dead."""
_LEAK = "--activation leaky_relu"
_IDENTITY_ABOVE_ZERO: tuple[ActivationName, ...] = ("relu", "leaky_relu", "prelu", "rrelu", "elu")


def advise(
    activation: ActivationName,
    learning_rate: float,
    before: Sequence[LayerHealth],
    after: Sequence[LayerHealth],
    renormalised: Sequence[LayerHealth],
    epochs: Sequence[EpochDiagnostics],
) -> list[str]:
    """Return the advice for each unhealthy layer; empty for a healthy network.

    Args:
        activation: of the hidden layers.
        learning_rate: the peak of the schedule.
        before: the layers' health before the first step.
        after: the layers' health with the weights of the result.
        renormalised: the same, with batch normalisation's statistics of training images.
        epochs: the diagnostics of each epoch.
    """
    sentences = []
    for initial, final, by_batch in zip(before, after, renormalised, strict=True):
        is_telling = final.images >= TELLING_IMAGES
        if is_telling and final.dead >= DEAD_SHARE * final.units and final.dead:
            sentences.append(_dead_advice(activation, learning_rate, initial, final, by_batch))
        if final.saturated is not None and final.saturated >= SATURATED_SHARE:
            sentences.append(_saturated_advice(activation, learning_rate, initial, final))
        is_linear = activation in _IDENTITY_ABOVE_ZERO
        if is_telling and is_linear and final.always_on >= LINEAR_SHARE * final.units:
            sentences.append(
                f"{final.name}: {final.always_on} of {final.units} units fire at every place of "
                f"all {final.images:,} images, so they only add a linear map; biases that grew "
                f"large are the likely cause. Try --learning-rate {learning_rate / 3:.2g}."
            )
    return sentences + _vanished_gradient_advice(activation, epochs)


def _dead_advice(
    activation: ActivationName,
    learning_rate: float,
    initial: LayerHealth,
    final: LayerHealth,
    by_batch: LayerHealth,
) -> str:
    if by_batch.dead <= _LAGGING_SHARE * final.dead:
        cause = (
            "too few steps for batch normalisation's running means: with those of one batch of "
            "training images most of them fire"
        )
        remedies = ["more --epochs", "a smaller --batch-size"]
    else:
        cause, remedies = _cause_of_dead_units(learning_rate, initial, final)
        if activation == "relu":
            remedies.append(_LEAK)
    units = f"{final.name}: {final.dead} of {final.units} units are"
    if activation == "relu":
        state = (
            f"dead: they fired on none of {final.images:,} images, so each fires on fewer than "
            f"{firing_rate_bound(final.images):.2%} of such images (95 %)"
        )
    else:
        state = (
            f"silent: none of {final.images:,} images takes them above 0. Below it they still pass "
            "gradients, so training may wake them"
        )
    return f"{units} {state}. The likely cause is {cause}. Try {', or '.join(remedies)}."


def _cause_of_dead_units(
    learning_rate: float, initial: LayerHealth, final: LayerHealth
) -> tuple[str, list[str]]:
    """Return the likely cause, and the remedies that help whatever the activation."""
    dead = set(final.dead_units)
    by_bias = 2 * final.silenced_by_bias >= len(dead)
    if 2 * len(dead & set(initial.dead_units)) >= len(dead):
        if by_bias:
            return "biases that start below zero", ["biases of 0"]
        cause = "the initialisation: they fired on no image before the first step"
        return cause, ["another --seed", "He initialisation if you changed it"]
    cause = (
        "biases that training drove below zero"
        if by_bias
        else "a learning rate too high for this network"
    )
    return cause, [f"--learning-rate {learning_rate / 3:.2g}"]


def _saturated_advice(
    activation: ActivationName, learning_rate: float, initial: LayerHealth, final: LayerHealth
) -> str:
    from_the_start = (initial.saturated or 0.0) >= SATURATED_SHARE
    cause = "the initialisation" if from_the_start else "weights that grew large"
    remedy = (
        "Glorot initialisation" if from_the_start else f"--learning-rate {learning_rate / 3:.2g}"
    )
    return (
        f"{final.name}: {final.saturated:.0%} of the {activation} outputs stand at an end of their "
        f"range, where the gradient is almost 0. The likely cause is {cause}. Try {remedy}, or "
        "--activation relu."
    )


def _vanished_gradient_advice(
    activation: ActivationName, epochs: Sequence[EpochDiagnostics]
) -> list[str]:
    # A wholly dead layer has a gradient of 0; its advice is that of dead units.
    last = epochs[-1].gradient_norms if epochs else {}
    norms = {name: norm for name, norm in last.items() if norm > 0}
    if not norms or not min(norms.values()) < VANISHED_RATIO * max(norms.values()):
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
