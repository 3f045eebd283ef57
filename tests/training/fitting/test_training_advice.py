import re
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from model.bundle.architecture_description import ActivationName
from tests.training.conftest import health, one_pixel
from training.config import TrainingConfig
from training.fitting.training_advice import advise
from training.fitting.unit_diagnostics import EpochDiagnostics, LayerHealth, diagnose

RATE = 0.006


def advice(
    before: LayerHealth,
    after: LayerHealth,
    activation: ActivationName = "relu",
    gradients: Sequence[dict[str, float]] = (),
    renormalised: LayerHealth | None = None,
) -> list[str]:
    epochs = [EpochDiagnostics(layers=(after,), gradient_norms=norms) for norms in gradients]
    sentences = advise(activation, RATE, [before], [after], [renormalised or after], epochs)
    for sentence in sentences:
        for option in re.findall(r"--([a-z-]+)", sentence):
            assert option.replace("-", "_") in TrainingConfig.model_fields
    return sentences


@pytest.mark.parametrize(
    ("initial", "final", "phrases"),
    [
        (
            health(dead=40),
            health(dead=40),
            ["the initialisation: they fired on no image before", "--activation leaky_relu"],
        ),
        (
            health(dead=40, silenced_by_bias=40),
            health(dead=40, silenced_by_bias=40),
            ["cause is biases that start below zero.", "--activation leaky_relu"],
        ),
        (
            health(dead=5),
            health(dead=40, silenced_by_bias=30),
            ["cause is biases that training drove below zero.", "--learning-rate 0.002"],
        ),
        (
            health(dead=5),
            health(dead=40, silenced_by_bias=3),
            ["cause is a learning rate too high", "--learning-rate 0.002", "leaky_relu"],
        ),
    ],
)
def test_advise_names_the_cause_of_dead_and_of_silent_units(
    initial: LayerHealth, final: LayerHealth, phrases: list[str]
) -> None:
    (sentence,) = advice(initial, final)
    (of_silent,) = advice(initial, final, "silu")
    assert of_silent.startswith("dense 1: 40 of 100 units are silent: none of 1,000 images takes")
    for phrase in phrases:
        assert (phrase in of_silent) == ("leaky_relu" not in phrase)
    expected = "dense 1: 40 of 100 units are dead: they fired on none of 1,000 images"
    assert sentence.startswith(expected)
    assert "fewer than 0.30% of such images (95 %)" in sentence
    for phrase in phrases:
        assert phrase in sentence


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_advise_blames_running_means_where_the_statistics_of_a_batch_wake_the_units(
    activation: ActivationName,
) -> None:
    (sentence,) = advice(health(), health(dead=40), activation, renormalised=health(dead=4))
    assert "too few steps for batch normalisation's running means" in sentence
    assert sentence.endswith("Try more --epochs, or a smaller --batch-size.")
    (other,) = advice(health(), health(dead=40), activation, renormalised=health(dead=5))
    assert "a learning rate too high" in other


@pytest.mark.parametrize(("dead", "always_on"), [(40, 0), (0, 60)])
def test_advise_calls_no_unit_dead_or_linear_on_a_handful_of_images(
    dead: int, always_on: int
) -> None:
    few, enough = (health(images=count, dead=dead, always_on=always_on) for count in (29, 30))
    assert advice(few, few) == []
    assert len(advice(enough, enough)) == 1


def test_advise_does_not_suggest_leaky_relu_to_leaky_relu() -> None:
    (sentence,) = advice(health(), health(dead=40), "leaky_relu")
    assert "leaky_relu" not in sentence
    assert "still pass gradients" in sentence
    assert f"--learning-rate {RATE / 3:.2g}" in sentence


@pytest.mark.parametrize(
    ("activation", "initial", "cause", "remedy"),
    [
        ("tanh", 0.6, "the initialisation", "Glorot"),
        ("sigmoid", 0.1, "weights that grew large", "--learning-rate 0.002"),
    ],
)
def test_advise_names_the_cause_of_saturated_outputs(
    activation: ActivationName, initial: float, cause: str, remedy: str
) -> None:
    (sentence,) = advice(health(saturated=initial), health(saturated=0.72), activation)
    assert sentence.startswith(f"dense 1: 72% of the {activation} outputs")
    assert f"cause is {cause}." in sentence
    assert f"Try {remedy}" in sentence
    assert "--activation relu" in sentence


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_advise_calls_no_activation_linear_that_bends_above_zero(
    activation: ActivationName,
) -> None:
    assert advice(health(), health(always_on=60), activation) == []


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "prelu", "rrelu", "elu"])
def test_advise_reports_units_that_are_always_on(activation: ActivationName) -> None:
    (sentence,) = advice(health(), health(always_on=60), activation)
    assert sentence.startswith("dense 1: 60 of 100 units fire at every place of all 1,000 images")
    assert "--learning-rate 0.002" in sentence


def test_advise_reports_gradients_that_vanish_in_the_last_epoch() -> None:
    early, late = {"dense 1": 0.5, "output": 1.0}, {"dense 1": 1e-5, "dense 2": 0.4, "output": 0.3}
    (sentence,) = advice(health(), health(), "sigmoid", [early, late])
    assert "1.0e-05 at dense 1 against 4.0e-01 at dense 2" in sentence
    assert "sigmoid" in sentence
    assert "--activation relu" in sentence
    assert advice(health(), health(), "sigmoid", [late, early]) == []


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_advise_is_empty_for_a_healthy_network(activation: ActivationName) -> None:
    saturated = None if activation == "relu" else 0.49
    layer = health(dead=9, silenced_by_bias=9, always_on=49, saturated=saturated)
    assert advice(layer, layer, activation, [{"dense 1": 0.01, "output": 1.0}]) == []
    assert advise(activation, RATE, [layer], [layer], [layer], []) == []


def test_advise_returns_one_sentence_per_unhealthy_layer() -> None:
    before = [health("convolution 1"), health("dense 1"), health("dense 2")]
    after = [health("convolution 1", dead=10), health("dense 1"), health("dense 2", dead=100)]
    first, second = advise("relu", RATE, before, after, after, [])
    assert first.startswith("convolution 1: 10 of 100")
    assert second.startswith("dense 2: 100 of 100")


def test_advise_explains_diagnosed_networks() -> None:
    """Goes from hand-set weights to the advice; the last network is healthy."""
    images = [torch.linspace(0.1, 1, 50).reshape(-1, 1, 1, 1)]

    def cause(weights: list[float], biases: list[float], activation: nn.Module) -> str:
        (layer,) = diagnose(one_pixel(weights, biases, activation), images)
        return " ".join(advise("relu", RATE, [layer], [layer], [layer], []))

    assert "is the initialisation" in cause([-1.0, -1.0], [0.0, 0.0], nn.ReLU())
    assert "biases that start below zero" in cause([1.0, 1.0], [-2.0, -2.0], nn.ReLU())
    assert "units fire at every place" in cause([1.0, 1.0], [2.0, 2.0], nn.ReLU())
    assert "stand at an end" in cause([0.0, 0.0], [9.0, -9.0], nn.Tanh())
    assert cause([1.0, -1.0], [-0.5, 0.5], nn.ReLU()) == ""


def test_advise_reports_a_layer_without_gradient_as_dead() -> None:
    norms = {"dense 1": 0.0, "dense 2": 1.0, "output": 1.0}
    epochs = [EpochDiagnostics(layers=(), gradient_norms=norms)]
    dead = [health(dead=100)]
    (sentence,) = advise("relu", RATE, [health()], dead, dead, epochs)
    assert "100 of 100 units are dead" in sentence
