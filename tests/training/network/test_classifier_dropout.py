"""Dropout as published: it zeroes with probability p, keeps the mean, and is off in evaluation."""

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from model.bundle.architecture_description import Architecture
from tests.exported import DIGIT
from training.network.classifier import Classifier, Head, build_classifier


def identity_head(p: float, width: int) -> Head:
    """Return a head whose logits are its features after dropout."""
    head = Head([width, width], Architecture(dropout=p, classes=2, input=DIGIT), dropout_count=1)
    (layer,) = head.layers
    assert isinstance(layer, nn.Linear)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return head


@given(p=st.floats(0, 0.99), seed=st.integers(0, 2**32 - 1))
def test_dropout_output_is_zero_or_input_over_one_minus_p(p: float, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(40, 16)
    y = identity_head(p, 16).train()(x)
    kept = y != 0
    torch.testing.assert_close(y[kept], (x / (1 - p))[kept])
    if p == 0:
        assert kept.all()
    if 0.1 < p < 0.9:  # all 640 alike has a probability below 0.9 ** 640
        assert 0 < kept.sum() < kept.numel()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_dropout_preserves_the_mean_and_zeroes_a_share_p(p: float) -> None:
    draws = 20_000
    torch.manual_seed(0)
    x = torch.linspace(-2, 3, 50)
    y = identity_head(p, 50).train()(x.expand(draws, 50)).double()
    sigma = x.abs() * math.sqrt(p / (1 - p) / draws)
    assert ((y.mean(0) - x).abs() <= 5 * sigma).all()
    share = (y == 0).double().mean()
    assert abs(share - p) <= 5 * math.sqrt(p * (1 - p) / (draws * 50))


@given(p=st.floats(0, 0.99))
def test_dropout_is_the_identity_in_evaluation(p: float) -> None:
    x = torch.linspace(-2, 3, 50).unsqueeze(0)
    assert torch.equal(identity_head(p, 50).eval()(x), x)


class UnscaledDropout(nn.Module):
    """Srivastava et al. 2014: masks are 0 or 1, and evaluation scales the weights by 1 - p."""

    def __init__(self, network: Classifier, p: float) -> None:
        super().__init__()
        self.trunk, self.p = deepcopy(network.trunk), p
        (layer,) = network.head.layers
        assert isinstance(layer, nn.Linear)
        self.weight = nn.Parameter(layer.weight.detach() / (1 - p))
        self.bias = nn.Parameter(layer.bias.detach().clone())

    def sample(self, images: Tensor, mask: Tensor) -> Tensor:
        return functional.linear(self.trunk(images) * mask, self.weight, self.bias)

    def forward(self, images: Tensor) -> Tensor:
        return functional.linear(self.trunk(images), (1 - self.p) * self.weight, self.bias)


def test_inverted_dropout_trains_like_the_unscaled_formulation() -> None:
    """Train both formulations by gradient descent, from the same weights and random numbers.

    The unscaled formulation has weights 1/(1-p) times as large, so its equivalent learning rate is
    1/(1-p)² times as large.
    """
    p, rate, width = 0.3, 0.1, 500
    digits = load_digits()
    images = torch.from_numpy(digits.images[:512, None] / 16)
    labels = torch.from_numpy(digits.target[:512])
    torch.manual_seed(0)
    ours = (
        build_classifier(Architecture(preset="mlp", dropout=p, classes=10, input=DIGIT))
        .double()
        .train()
    )
    classic = UnscaledDropout(ours, p).double()
    our_optimizer = torch.optim.SGD(ours.parameters(), lr=rate)
    groups: list[dict[str, Any]] = [
        {"params": [*classic.trunk.parameters(), classic.bias]},
        {"params": [classic.weight], "lr": rate / (1 - p) ** 2},
    ]
    classic_optimizer = torch.optim.SGD(groups, lr=rate)
    losses = []
    for step in range(60):
        torch.manual_seed(step)
        loss = functional.cross_entropy(ours(images), labels)
        torch.manual_seed(step)
        kept = functional.dropout(torch.ones(len(images), width).double(), p) > 0
        classic_loss = functional.cross_entropy(classic.sample(images, kept), labels)
        assert classic_loss.item() == pytest.approx(loss.item(), rel=1e-9)
        for optimiser, value in ((our_optimizer, loss), (classic_optimizer, classic_loss)):
            optimiser.zero_grad()
            torch.autograd.backward(value)
            optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3, "the training did not learn"

    masks = (torch.rand(4, width) >= p).double()
    samples = ours.head.sample(ours.trunk(images), [masks / (1 - p)])
    for index, mask in enumerate(masks):
        torch.testing.assert_close(
            samples[:, index], classic.sample(images, mask), rtol=1e-9, atol=1e-9
        )
    torch.testing.assert_close(ours.eval()(images), classic(images), rtol=1e-9, atol=1e-9)
