import logging
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn

from model.bundle.architecture_description import Architecture, PresetName
from model.images.preprocessing import InputSpec
from model.inference.predictor import Predictor
from tests.training.conftest import classifier, one_pixel
from training.data.dataset import Dataset, DatasetDefaults, Split
from training.export.to_onnx import PARITY_TOLERANCE, check_parity, export_graphs
from training.fitting.unit_diagnostics import diagnose
from training.network.classifier import Classifier, build_classifier, count_parameters
from training.network.prune import prune
from training.pipeline import prune_if_unchanged

DIGIT = InputSpec(channels=1, height=8, width=8, resize="pad")
FEW = hypothesis_settings(max_examples=12)


def preset(name: PresetName, seed: int) -> Classifier:
    torch.manual_seed(seed)
    network = build_classifier(Architecture(preset=name, classes=5, input=DIGIT))
    network(torch.rand(32, 1, 8, 8))  # batch normalisation has seen images
    return network.eval()


def small_alexnet(seed: int) -> Classifier:
    """A network with response normalisation in the trunk and three dense layers in the head."""
    torch.manual_seed(seed)
    trunk = nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.LocalResponseNorm(5), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 6, 2, groups=2), nn.ReLU(), nn.Flatten()),
    )
    return classifier(trunk, [24, 20, 15, 5]).eval()


def kill(network: Classifier, seed: int) -> dict[str, set[int]]:
    """Kill up to half the units of each layer, by a bias that no image overcomes."""
    generator = torch.Generator().manual_seed(seed)
    killed = {}
    for hidden in network.hidden_layers():
        count = int(torch.randint(0, hidden.units // 2 + 1, (1,), generator=generator))
        units = torch.randperm(hidden.units, generator=generator)[:count]
        assert hidden.bias is not None
        with torch.no_grad():
            hidden.bias[units] = -1e3
        killed[hidden.name] = set(units.tolist())
    return killed


def max_logit_difference(one: Classifier, other: Classifier, images: Tensor) -> float:
    with torch.no_grad():
        return float((one(images) - other(images)).abs().max())


def dead_units(network: Classifier, images: Tensor) -> list[tuple[int, ...]]:
    return [layer.dead_units for layer in diagnose(network, [images])]


@pytest.mark.parametrize("name", ["cnn", "mlp"])
@FEW
@given(seed=st.integers(0, 1_000))
def test_pruned_network_is_smaller_with_the_same_logits(name: PresetName, seed: int) -> None:
    network = preset(name, seed)
    killed = kill(network, seed)
    before, images = deepcopy(network.state_dict()), torch.rand(64, 1, 8, 8)
    dead = dead_units(network, images)
    smaller, removed = prune(network, dead)

    layers = zip(smaller.hidden_layers(), network.hidden_layers(), dead, strict=True)
    for pruned_layer, layer, units in layers:
        assert killed[layer.name] <= set(units)
        assert pruned_layer.units == layer.units - len(units) > 0
    assert removed == sum(map(len, dead)) >= sum(map(len, killed.values()))
    assert (count_parameters(smaller) < count_parameters(network)) == (removed > 0)
    assert max_logit_difference(network, smaller, images) <= 1e-5
    assert not any(layer.dead for layer in diagnose(smaller, [images]))
    features = smaller.trunk(images)
    assert [layer.width for layer in smaller.head.dropout_layers] == [features.shape[1]]
    assert [layer.p for layer in smaller.head.dropout_layers] == [0.5]

    assert network.state_dict().keys() == before.keys()
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])


@FEW
@given(seed=st.integers(0, 1_000))
def test_prune_with_response_normalisation_prunes_only_the_head(seed: int) -> None:
    network = small_alexnet(seed)
    kill(network, seed)
    images = torch.rand(64, 1, 8, 8)
    dead = dead_units(network, images)
    smaller, removed = prune(network, dead)
    assert [layer.units for layer in smaller.hidden_layers()[:2]] == [8, 6]
    assert removed == sum(map(len, dead[2:]))
    assert max_logit_difference(network, smaller, images) <= 1e-5
    widths = [layer.width for layer in smaller.head.dropout_layers]
    assert widths == [24, 20 - len(dead[2])]
    assert smaller.head.widths == (*widths, 15 - len(dead[3]), 5)


def test_pruned_head_gives_the_same_samples_with_the_kept_units_masks() -> None:
    network = preset("mlp", 0)
    kill(network, 0)
    images = torch.rand(16, 1, 8, 8)
    dead = dead_units(network, images)
    smaller, _ = prune(network, dead)
    kept = [unit for unit in range(500) if unit not in dead[0]]
    masks = (torch.rand(7, 500) < 0.5) * 2.0
    torch.testing.assert_close(
        smaller.head.sample(smaller.trunk(images), [masks[:, kept]]),
        network.head.sample(network.trunk(images), [masks]),
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize("name", ["cnn", "mlp"])
def test_prune_keeps_one_unit_of_a_wholly_dead_layer(name: PresetName) -> None:
    network = preset(name, 0)
    for hidden in network.hidden_layers():
        assert hidden.bias is not None
        nn.init.constant_(hidden.bias, -1e3)
    images = torch.rand(9, 1, 8, 8)
    smaller, removed = prune(network, dead_units(network, images))
    assert [layer.units for layer in smaller.hidden_layers()] == [1] * len(network.hidden_layers())
    assert removed == sum(layer.units - 1 for layer in network.hidden_layers())
    assert max_logit_difference(network, smaller, images) <= 1e-5


@pytest.mark.parametrize("name", ["cnn", "alexnet's head"])
def test_pruned_network_exports_within_the_parity_tolerance(name: str, tmp_path: Path) -> None:
    network = preset("cnn", 3) if name == "cnn" else small_alexnet(3)
    assert any(kill(network, 3).values())
    images = np.random.default_rng(0).random((32, 1, 8, 8), dtype=np.float32)
    smaller, removed = prune(network, dead_units(network, torch.from_numpy(images)))
    assert removed > 0
    export_graphs(smaller, (1, 8, 8), tmp_path)
    predictor = Predictor.open(tmp_path, smaller.head.dropout_layers)
    assert check_parity(smaller, predictor, images) <= PARITY_TOLERANCE
    logits = predictor.predict(images).logits
    with torch.no_grad():
        np.testing.assert_allclose(logits, network(torch.from_numpy(images)), atol=PARITY_TOLERANCE)


def one_pixel_dataset(train: int, validation: int, test: int) -> Dataset:
    """A data set with one image of one pixel per split."""

    def split(value: int) -> Split:
        return Split(np.full((1, 1, 1, 1), value, np.uint8), np.zeros(1, np.int64))

    return Dataset(
        name="one pixel",
        class_names=("a", "b"),
        input=InputSpec(channels=1, height=1, width=1, resize="pad"),
        train=split(train),
        validation=split(validation),
        test=split(test),
        defaults=DatasetDefaults(1, 2, "none", shift=0),
    )


@pytest.mark.parametrize(
    ("data", "removed_units"),
    [
        (one_pixel_dataset(0, 0, 10), 1),
        (one_pixel_dataset(255, 0, 0), 0),
        (one_pixel_dataset(0, 255, 0), 0),
    ],
)
def test_prune_if_unchanged_keeps_units_that_fire_in_training_or_validation(
    data: Dataset, removed_units: int
) -> None:
    """The second unit fires only on pixels above one half, the first on every image."""
    network = one_pixel([1.0, 1.0], [1.0, -0.5]).eval()
    smaller, removed = prune_if_unchanged(network, data)
    assert removed == removed_units
    assert [layer.units for layer in smaller.hidden_layers()] == [2 - removed_units]


def test_prune_if_unchanged_prunes_nothing_if_a_test_logit_changes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = one_pixel([1.0, 1.0], [1.0, -0.5]).eval()
    with caplog.at_level(logging.WARNING):
        kept, removed = prune_if_unchanged(network, one_pixel_dataset(0, 0, 255))
    assert kept is network
    assert removed == 0
    assert "nothing was pruned: without the 1 dead units a test logit moves by" in caplog.text


def test_prune_if_unchanged_allows_large_logits_the_rounding_of_float32() -> None:
    network = preset("mlp", 0)
    last = network.head.layers[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(1e6)
    assert any(kill(network, 0).values())
    images = np.random.default_rng(0).integers(0, 256, (64, 1, 8, 8), np.uint8)
    split = Split(images, np.zeros(64, np.int64))
    data = replace(one_pixel_dataset(0, 0, 0), train=split, validation=split, test=split)
    smaller, removed = prune_if_unchanged(network, data)
    assert removed > 0
    assert max_logit_difference(network, smaller, torch.from_numpy(images) / 255) > PARITY_TOLERANCE
