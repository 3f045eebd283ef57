"""What an image is reduced to before it is scored, in torch and in the exported graph."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.bundle.network_architecture import ActivationName, Architecture, PresetName
from model.bundle.store import MODEL_FILE
from model.images.preprocessing import InputSpec
from tests.exported import DIGIT
from training.export.ood_graph import count_statistics, read_statistics
from training.export.ood_statistics import (
    POOLED_PER_CHANNEL,
    features_and_statistics,
    names_of_statistics,
    pool_channels,
    tapped_layers,
)
from training.export.to_onnx import export_graphs
from training.network.classifier import CNN_FEATURES, Classifier, build_classifier
from training.network.prune import prune

COLOUR = InputSpec(channels=3, height=16, width=12, resize="pad")
POOLED_TOLERANCE = 1e-3
"""The variance is a difference, which float32 rounds by some 1e-7 of the mean square; its root is
the standard deviation of an image that is nearly even."""


def network_of(
    spec: InputSpec = DIGIT, preset: PresetName = "cnn", activation: ActivationName = "relu"
) -> Classifier:
    """Return a network with random weights whose batch normalisation has seen images."""
    torch.manual_seed(0)
    network = build_classifier(
        Architecture(preset=preset, activation=activation, classes=5, input=spec)
    )
    network.train()(torch.rand(32, spec.channels, spec.height, spec.width))
    return network.eval()


@given(
    images=st.integers(1, 4),
    channels=st.integers(1, 5),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 1_000),
)
def test_pooling_gives_mean_deviation_and_maximum_of_each_channel(
    images: int, channels: int, height: int, width: int, seed: int
) -> None:
    values = np.random.default_rng(seed).normal(size=(images, channels, height, width))
    pooled = pool_channels(torch.tensor(values, dtype=torch.float32)).numpy()
    planes = values.reshape(images, channels, -1)
    expected = [planes.mean(axis=2), planes.std(axis=2), planes.max(axis=2)]
    assert pooled.shape == (images, POOLED_PER_CHANNEL * channels)
    np.testing.assert_allclose(pooled, np.concatenate(expected, axis=1), atol=POOLED_TOLERANCE)


@pytest.mark.parametrize("level", [0.0, 1 / 3, 0.1, 1.0])
def test_pooling_of_an_even_channel_has_hardly_any_deviation(level: float) -> None:
    """Rounding may leave the variance below 0, of which the root would be NaN."""
    pooled = pool_channels(torch.full((1, 1, 28, 28), level)).numpy()
    np.testing.assert_allclose(pooled, [[level, 0, level]], atol=POOLED_TOLERANCE)


def test_first_and_middle_convolutions_are_tapped() -> None:
    network = network_of()
    assert [layer.name for layer in tapped_layers(network)] == ["convolution 1", "convolution 3"]
    names = ["pixels", "convolution 1", "convolution 3", "features"]
    assert names_of_statistics(network) == names


def test_network_without_convolutions_has_the_statistics_of_pixels_and_features() -> None:
    network = network_of(preset="mlp")
    assert not tapped_layers(network)
    assert names_of_statistics(network) == ["pixels", "features"]


@pytest.mark.parametrize("spec", [DIGIT, COLOUR], ids=["grey", "colour"])
def test_statistics_are_of_pixels_then_activations_then_features(spec: InputSpec) -> None:
    network = network_of(spec)
    images = torch.rand(6, spec.channels, spec.height, spec.width)
    with torch.no_grad():
        features, statistics = features_and_statistics(network, images)
        torch.testing.assert_close(features, network.trunk(images), rtol=0, atol=0)
    pixels = POOLED_PER_CHANNEL * spec.channels
    torch.testing.assert_close(statistics[:, :pixels], pool_channels(images), rtol=0, atol=0)
    torch.testing.assert_close(statistics[:, -CNN_FEATURES:], features, rtol=0, atol=0)
    tapped = sum(layer.units for layer in tapped_layers(network))
    assert statistics.shape[1] == pixels + POOLED_PER_CHANNEL * tapped + CNN_FEATURES


def check_graph(network: Classifier, spec: InputSpec, folder: Path) -> None:
    """Assert that the exported graph gives the statistics and the logits of torch."""
    shape = (spec.channels, spec.height, spec.width)
    images = np.random.default_rng(1).random((70, *shape), dtype=np.float32)
    images[0], images[1] = 0, 0.7
    export_graphs(network, shape, folder, with_statistics=True)
    statistics, logits = read_statistics(folder / MODEL_FILE, images)
    with torch.no_grad():
        features, expected = features_and_statistics(network, torch.from_numpy(images))
        expected_logits = network.head(features).numpy()
    np.testing.assert_allclose(statistics, expected.numpy(), rtol=1e-4, atol=POOLED_TOLERANCE)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-4)
    assert count_statistics(folder / MODEL_FILE) == expected.shape[1]


@pytest.mark.parametrize("activation", get_args(ActivationName))
def test_exported_graph_gives_the_statistics_of_torch(
    activation: ActivationName, tmp_path: Path
) -> None:
    check_graph(network_of(activation=activation), DIGIT, tmp_path)


@pytest.mark.parametrize(("preset", "spec"), [("mlp", DIGIT), ("cnn", COLOUR), ("mlp", COLOUR)])
def test_exported_graph_gives_the_statistics_of_torch_for_other_networks(
    preset: PresetName, spec: InputSpec, tmp_path: Path
) -> None:
    check_graph(network_of(spec, preset), spec, tmp_path)


def test_exported_graph_gives_the_statistics_of_a_pruned_network(tmp_path: Path) -> None:
    network = network_of()
    dead = [(0, 2) for _ in network.hidden_layers()]
    smaller, removed = prune(network, dead)
    assert removed == sum(map(len, dead))
    check_graph(smaller.eval(), DIGIT, tmp_path)
