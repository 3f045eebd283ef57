import io
import math
from copy import deepcopy
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Trainer
from torch import nn
from torch.nn import functional

from tests.training.conftest import classifier, health, one_pixel
from training.data.batches import Batches
from training.data.dataset import Split
from training.fitting.lightning_module import ClassifierModule
from training.fitting.training_loop import silence_warnings
from training.fitting.unit_diagnostics import (
    DeathsAndRevivals,
    Diagnosis,
    EpochDiagnostics,
    LayerHealth,
    count_deaths_and_revivals,
    diagnose,
    firing_rate_bound,
)
from training.network.classifier import Classifier

IMAGES = 2_000
RAMP = (torch.arange(IMAGES) / IMAGES).reshape(-1, 1, 1, 1)
"""Images of one pixel: 0, 1/2000, …, 1999/2000."""


def bias_to_fire_on(count: int) -> float:
    """Return the bias at which a unit of weight 1 fires on the `count` brightest images of RAMP."""
    return (count - IMAGES + 0.5) / IMAGES


def single_layer(found: tuple[LayerHealth, ...]) -> LayerHealth:
    (layer,) = found
    return layer


def test_diagnose_classifies_the_units_of_a_dense_layer() -> None:
    units = {
        "silenced by its bias": (1.0, -2.0),
        "dead without bias": (-1.0, 0.0),
        "dead with and without its bias": (-1.0, -2.0),
        "without input weight": (0.0, -1.0),
        "nearly dead": (1.0, bias_to_fire_on(1)),
        "just not nearly dead": (1.0, bias_to_fire_on(2)),  # 0.1 % of the images
        "on half the images": (1.0, bias_to_fire_on(1_000)),
        "always on": (1.0, 0.5),
    }
    weights, biases = zip(*units.values(), strict=True)
    assert single_layer(diagnose(one_pixel(weights, biases), [RAMP])) == LayerHealth(
        name="dense 1",
        units=8,
        images=IMAGES,
        dead_units=(0, 1, 2, 3),
        nearly_dead=1,
        always_on=1,
        silenced_by_bias=1,
        sparsity=1 - (1 + 2 + 1_000 + IMAGES) / (8 * IMAGES),
        saturated=None,
    )


def test_diagnose_counts_a_channel_as_firing_where_any_position_does() -> None:
    """The images have two positions, (0, 0) and (0, 1); a channel sees one position at a time."""
    convolution = nn.Conv2d(1, 4, 1)
    nn.init.ones_(convolution.weight)
    with torch.no_grad():
        convolution.bias.copy_(torch.tensor([-2.0, -0.5, 0.0, 0.5]))  # type: ignore[union-attr]
    network = classifier(nn.Sequential(convolution, nn.ReLU(), nn.Flatten()), [8, 2])
    found = single_layer(diagnose(network, [torch.tensor([[[[0.0, 0.0]]], [[[0.0, 1.0]]]])]))
    assert (found.name, found.units, found.images) == ("convolution 1", 4, 2)
    assert found.dead_units == (0,)
    assert found.silenced_by_bias == 1
    assert found.always_on == 1
    assert found.sparsity == 1 - (0 + 1 + 1 + 4) / 16
    one_dark = single_layer(diagnose(network, [torch.zeros(1, 1, 1, 2)]))
    assert one_dark.dead_units == (0, 1, 2)


def test_diagnose_uses_the_bias_of_batch_normalisation() -> None:
    convolution, norm = nn.Conv2d(1, 3, 1, bias=False), nn.BatchNorm2d(3)
    nn.init.ones_(convolution.weight)
    with torch.no_grad():
        norm.bias.copy_(torch.tensor([-5.0, 0.0, -5.0]))
        norm.weight.copy_(torch.tensor([1.0, -1.0, -1.0]))
    network = classifier(nn.Sequential(convolution, norm, nn.ReLU(), nn.Flatten()), [3, 2])
    found = single_layer(diagnose(network, [RAMP]))
    assert found.dead_units == (0, 1, 2)
    assert found.silenced_by_bias == 1


def test_diagnose_does_not_blame_a_missing_bias() -> None:
    dense = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        dense.weight.copy_(torch.tensor([[-1.0], [1.0]]))
    found = single_layer(
        diagnose(classifier(nn.Sequential(nn.Flatten(), dense, nn.ReLU()), [2, 2]), [RAMP])
    )
    assert found.dead_units == (0,)
    assert found.silenced_by_bias == 0


@pytest.mark.parametrize(
    ("activation", "limit"), [(nn.Tanh(), math.atanh(0.98)), (nn.Sigmoid(), math.log(99))]
)
def test_diagnose_counts_saturation_and_no_deaths_of_bounded_activations(
    activation: nn.Module, limit: float
) -> None:
    inputs = [-2 * limit, -limit - 0.01, -limit + 0.01, 0.0, limit - 0.01, limit + 0.01]
    network = one_pixel([0.0] * 6, inputs, activation)
    found = single_layer(diagnose(network, [RAMP]))
    assert found.saturated == 3 / 6
    assert found.sparsity == 4 / 6
    assert found.dead_units == ()
    assert (found.nearly_dead, found.always_on, found.silenced_by_bias) == (0, 0, 0)


def test_diagnose_returns_the_layers_of_trunk_and_head_in_order() -> None:
    trunk = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 7), nn.ReLU())
    network = classifier(trunk, [7, 6, 5, 2])
    found = diagnose(network, [torch.rand(9, 1, 4, 4)])
    assert [(layer.name, layer.units) for layer in found] == [
        *(("convolution 1", 3), ("dense 1", 7)),
        *(("dense 2", 6), ("dense 3", 5)),
    ]
    assert {layer.images for layer in found} == {9}


@given(seed=st.integers(0, 1_000), cuts=st.sets(st.integers(1, 39)))
def test_diagnose_does_not_depend_on_the_batches(seed: int, cuts: set[int]) -> None:
    """Uses small integers, whose sums are exact in any order."""
    generator = torch.Generator().manual_seed(seed)
    trunk = nn.Sequential(
        *(nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(36, 12), nn.Tanh()),
    )
    network = classifier(trunk, [12, 2])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randint(-4, 3, parameter.shape, generator=generator))
    images = torch.randint(0, 3, (40, 1, 4, 4), generator=generator).float()
    batches = [images[start:end] for start, end in pairwise([0, *sorted(cuts), 40])]
    assert diagnose(network, batches) == diagnose(network, [images])


@pytest.mark.parametrize("training", [True, False])
def test_diagnose_leaves_the_network_unchanged(training: bool) -> None:
    trunk = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten())
    network = classifier(trunk, [12, 5, 2]).train(training)
    before = deepcopy(network.state_dict())
    first = diagnose(network, [torch.rand(9, 1, 4, 4)])
    assert network.training is training
    assert all(module.training is training for module in network.modules())
    assert not any(module._forward_hooks for module in network.modules())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    network(torch.rand(9, 1, 4, 4))  # no longer counted
    assert [layer.images for layer in first] == [9, 9]


def test_diagnose_removes_its_hooks_after_an_error() -> None:
    network = one_pixel([1.0], [0.0])
    with pytest.raises(RuntimeError):
        diagnose(network, [torch.rand(3, 1, 5, 5)])
    assert not any(module._forward_hooks for module in network.modules())


@given(images=st.integers(1, 10**9))
def test_firing_rate_bound_is_just_above_the_exact_bound(images: int) -> None:
    """The exact bound solves (1 - rate) ** images = 5 %; the rule of three is just above it."""
    exact = -math.expm1(math.log(0.05) / images)
    assert exact <= firing_rate_bound(images) <= 1
    if images >= 100:
        assert firing_rate_bound(images) == pytest.approx(exact, rel=0.02)


def dead_unit_history(*dead: set[int]) -> tuple[list[LayerHealth], list[EpochDiagnostics]]:
    moments = [
        health("dense 1").model_copy(update={"dead_units": tuple(sorted(units))}) for units in dead
    ]
    quiet = health("dense 2", dead=2)
    epochs = [EpochDiagnostics(layers=(moment, quiet), gradient_norms={}) for moment in moments[1:]]
    return [moments[0], quiet], epochs


def test_count_deaths_and_revivals_compares_consecutive_epochs() -> None:
    before, epochs = dead_unit_history({0, 1}, {1, 2}, {1, 2}, {0, 3, 4})
    assert count_deaths_and_revivals(before, epochs) == {
        "dense 1": DeathsAndRevivals(deaths=1 + 3, revivals=1 + 2),
        "dense 2": DeathsAndRevivals(deaths=0, revivals=0),
    }
    assert count_deaths_and_revivals(before, [])["dense 1"] == DeathsAndRevivals(
        deaths=0, revivals=0
    )


RATE = 0.5


class SgdModule(ClassifierModule):
    """Trains by plain gradient descent, so that the test can repeat each step."""

    def __init__(self, network: Classifier) -> None:
        super().__init__(network, 2, lambda images: images.float() / 255)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.network.parameters(), lr=RATE)


def test_diagnosis_records_mean_gradient_norms_of_each_epoch() -> None:
    silence_warnings()
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 7), nn.ReLU())
    network = classifier(trunk, [7, 5, 2], dropout=0.0)
    replica = deepcopy(network)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (12, 1, 4, 4), dtype=np.uint8)
    split = Split(images, generator.integers(0, 2, 12))
    diagnosis = Diagnosis()
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[diagnosis],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(SgdModule(network), Batches(split, 4), Batches(split, 12))

    parameters = dict(replica.named_parameters())
    names = {
        "convolution 1": "trunk.0.weight",
        "dense 1": "trunk.3.weight",
        "dense 2": "head.layers.0.weight",
        "output": "head.layers.1.weight",
    }
    assert len(diagnosis.epochs) == 2
    for epoch in diagnosis.epochs:
        norms = []
        for batch, labels in Batches(split, 4):
            loss = functional.cross_entropy(replica(batch.float() / 255), labels)
            gradients = dict(
                zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True)
            )
            norms.append([float(gradients[name].square().sum().sqrt()) for name in names.values()])
            with torch.no_grad():
                for name, parameter in parameters.items():
                    parameter.sub_(RATE * gradients[name])
        assert len(norms) == 3
        means = dict(zip(names, np.mean(norms, axis=0), strict=True))
        assert epoch.gradient_norms == pytest.approx(means, rel=1e-4)
        expected_health = diagnose(replica, [torch.from_numpy(images).float() / 255])
        assert [layer.dead_units for layer in epoch.layers] == [
            layer.dead_units for layer in expected_health
        ]
        assert [layer.images for layer in epoch.layers] == [12, 12, 12]


def test_diagnosis_survives_a_checkpoint() -> None:
    diagnosis, resumed = Diagnosis(), Diagnosis()
    layers = (health("convolution 1", dead=3), health("dense 1", saturated=0.25))
    diagnosis.epochs = [
        EpochDiagnostics(layers=layers, gradient_norms={"dense 1": 0.1, "output": 1 / 3}),
        EpochDiagnostics(layers=layers[::-1], gradient_norms={}),
    ]
    file = io.BytesIO()
    torch.save(diagnosis.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.epochs == diagnosis.epochs
