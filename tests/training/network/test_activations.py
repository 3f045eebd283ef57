from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import erf, expit
from torch import nn

from model.bundle.architecture_description import ActivationName
from training.network.activations import build_activation, initialise_layer

Array = NDArray[np.float64]
FORMULAS: dict[ActivationName, Callable[[Array], Array]] = {
    "relu": lambda x: np.maximum(0, x),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "prelu": lambda x: np.where(x > 0, x, 0.25 * x),
    "rrelu": lambda x: np.where(x > 0, x, x * (1 / 8 + 1 / 3) / 2),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "silu": lambda x: x * expit(x),
    "gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
    "tanh": np.tanh,
    "sigmoid": expit,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_activation_equals_its_formula(name: ActivationName) -> None:
    x = np.linspace(-6, 6, 241)
    activation = build_activation(name).double().eval()
    with torch.no_grad():
        values = activation(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(values, FORMULAS[name](x), atol=1e-12)


def test_leaky_relu_has_the_given_slope() -> None:
    activation = build_activation("leaky_relu", negative_slope=0.2)
    torch.testing.assert_close(activation(torch.tensor([-1.0, 2.0])), torch.tensor([-0.2, 2.0]))


def test_rrelu_draws_its_slope_only_in_training() -> None:
    activation = build_activation("rrelu")
    x = -torch.ones(1000)
    slopes = -activation.train()(x)
    assert slopes.min() >= 1 / 8
    assert slopes.max() <= 1 / 3
    assert slopes.std() > 0.03
    assert (activation.eval()(x) == activation(x)[0]).all()


def gradient(activation: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    activation(x).sum().backward()
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("name", FORMULAS)
def test_activation_gradient_equals_the_slope_of_its_formula(name: ActivationName) -> None:
    step = 1e-5
    x = np.linspace(-6, 6, 240)  # even, so that the kink at 0 is not among them
    slope = (FORMULAS[name](x + step) - FORMULAS[name](x - step)) / (2 * step)
    activation = build_activation(name).double().eval()
    found = gradient(activation, torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, slope, atol=1e-9)  # rounding 1e-16 / step; step² / 6 is less


def test_relu_and_its_gradient_are_zero_at_zero() -> None:
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    assert build_activation("relu")(x).tolist() == [0, 0, 0, 1, 2]
    assert gradient(build_activation("relu"), x).tolist() == [0, 0, 0, 1, 1]


HE, GLOROT = 2 / 400, 2 / (400 + 200)


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("relu", HE),
        ("leaky_relu", HE / (1 + 0.01**2)),
        ("prelu", HE / (1 + 0.25**2)),
        ("rrelu", HE / (1 + ((1 / 8 + 1 / 3) / 2) ** 2)),
        ("elu", HE),
        ("silu", HE),
        ("gelu", HE),
        ("tanh", GLOROT),
        ("sigmoid", GLOROT),
    ],
)
def test_initialise_layer_scales_the_weights_for_the_activation(
    name: ActivationName, variance: float
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(400, 200)
    initialise_layer(layer, name, negative_slope=0.01)
    assert float(layer.weight.detach().var()) == pytest.approx(variance, rel=0.02)  # 4 sigma
    assert (layer.bias == 0).all()
