import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel

from training.fitting.weight_averaging import polynomial_decay


def average_of(weights: list[float], share: float) -> float:
    """Return the average after steps that had these weights in turn."""
    layer = nn.Linear(1, 1, bias=False)
    averaged = AveragedModel(layer, multi_avg_fn=polynomial_decay(share), use_buffers=True)
    for weight in weights:
        nn.init.constant_(layer.weight, weight)
        averaged.update_parameters(layer)
    return float(next(averaged.parameters()).detach())


weights = st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=30)


@given(weights=weights)
def test_share_of_one_averages_all_steps_equally(weights: list[float]) -> None:
    assert average_of(weights, 1.0) == pytest.approx(np.mean(weights), abs=1e-4)


@given(weights=weights, share=st.floats(0.01, 1))
def test_average_lies_between_the_weights_and_forgets_the_first(
    weights: list[float], share: float
) -> None:
    low, high = min(weights), max(weights)
    assert low - 1e-5 <= average_of(weights, share) <= high + 1e-5
    assert average_of([1.0] + [0.0] * 100, share) <= 1 / 101 + 1e-6


@pytest.mark.parametrize("steps", [100, 1_000])
def test_average_reaches_back_over_the_same_share_of_any_number_of_steps(steps: int) -> None:
    share = 0.1
    lag = steps - 1 - average_of([float(step) for step in range(steps)], share)
    assert lag / steps == pytest.approx(share / (1 + share), abs=0.01)


def test_weights_that_stay_equal_are_averaged_to_the_same_bits() -> None:
    assert average_of([0.1] * 50, 0.3) == float(np.float32(0.1))


def test_average_copies_the_number_of_batches_and_averages_the_statistics() -> None:
    norm = nn.BatchNorm1d(3)
    averaged = AveragedModel(norm, multi_avg_fn=polynomial_decay(0.5), use_buffers=True)
    means = []
    for _ in range(3):
        norm(torch.rand(4, 3))
        averaged.update_parameters(norm)
        means.append(dict(norm.named_buffers())["running_mean"].clone())
    buffers = dict(averaged.module.named_buffers())
    assert buffers["num_batches_tracked"] == norm.num_batches_tracked == 3
    second = means[0] + (means[1] - means[0]) / 1.5
    torch.testing.assert_close(buffers["running_mean"], second + (means[2] - second) / 2)
