"""What an image is reduced to before it is scored, in torch and in the exported graph."""

from pathlib import Path
from typing import get_args

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from model.bundle.architecture_description import ActivationName, Architecture, PresetName
from model.bundle.store import HEAD_FILE, MODEL_FILE
from model.dropout.sampling_methods import FixedSamples
from model.images.preprocessing import InputSpec
from model.inference.predictor import Predictor
from tests.exported import DIGIT
from training.export.ood_graph import count_statistics, read_statistics
from training.export.ood_statistics import (
    MAX_TAPPED_LAYERS,
    PIXELS_PER_CHANNEL,
    THUMBNAIL_SIZE,
    average,
    evenly_spread,
    features_and_statistics,
    names_of_statistics,
    root_mean_differences,
    tapped_layers,
    thumbnail,
)
from training.export.to_onnx import PARITY_TOLERANCE, check_parity, export_graphs
from training.network.classifier import CNN_FEATURES, Classifier, build_classifier
from training.network.prune import prune

COLOUR = InputSpec(channels=3, height=16, width=12, resize="pad")


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
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 1_000),
)
def test_average_is_the_mean_of_each_channel(
    images: int, channels: int, height: int, width: int, seed: int
) -> None:
    values = np.random.default_rng(seed).normal(size=(images, channels, height, width))
    averages = average(torch.tensor(values, dtype=torch.float32)).numpy()
    expected = values.mean(axis=(2, 3), keepdims=True)
    assert averages.shape == expected.shape
    np.testing.assert_allclose(averages, expected, atol=1e-6)


@given(
    height=st.integers(4, 100),
    width=st.integers(4, 100),
    channels=st.integers(1, 3),
    seed=st.integers(0, 1_000),
)
def test_pixels_of_a_thumbnail_are_means_of_equal_rectangles(
    height: int, width: int, channels: int, seed: int
) -> None:
    values = np.random.default_rng(seed).random((2, channels, height, width))
    small = thumbnail(torch.tensor(values, dtype=torch.float32)).numpy()
    rows, columns = small.shape[2:]
    tall, wide = height // rows, width // columns
    covered = values[:, :, : rows * tall, : columns * wide]
    expected = covered.reshape(2, channels, rows, tall, columns, wide).mean(axis=(3, 5))
    np.testing.assert_allclose(small, expected, atol=1e-6)


@given(size=st.integers(4, 100))
def test_thumbnail_has_about_the_same_size_for_images_of_any_size(size: int) -> None:
    """Its rectangles have whole pixels, so a strip narrower than one of them may be left over."""
    side = thumbnail(torch.zeros(1, 1, size, size)).shape[2]
    assert min(size, THUMBNAIL_SIZE) <= side < 2 * THUMBNAIL_SIZE
    left_over = size - side * (size // side)
    assert left_over < size / THUMBNAIL_SIZE


def test_differences_of_neighbours_are_those_to_the_right_and_below() -> None:
    image = torch.tensor([[0.0, 0.5, 1.0], [0.25, 0.75, 1.25]])[None, None]
    right, below = root_mean_differences(image)
    assert right.item() ** 2 == pytest.approx(0.5)
    assert below.item() ** 2 == pytest.approx(0.25)
    assert not any(each.any() for each in root_mean_differences(torch.full((1, 3, 4, 4), 0.5)))


@pytest.mark.parametrize("level", [0.0, 1 / 3, 0.1, 1.0])
def test_statistics_of_a_blank_image_are_its_brightness(level: float) -> None:
    network = network_of()
    with torch.no_grad():
        _, statistics = features_and_statistics(network, torch.full((1, 1, 8, 8), level))
    values = statistics[0].numpy()
    pixels = values[:PIXELS_PER_CHANNEL]
    small = values[-CNN_FEATURES - 8 * 8 : -CNN_FEATURES]
    np.testing.assert_allclose(np.append(pixels, small), level, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "numbers"), [(8, [1, 2, 3, 4]), (64, [1, 3, 4, 5, 7])], ids=["all", "spread"]
)
def test_activations_of_at_most_five_convolutions_before_the_last_are_averaged(
    size: int, numbers: list[int]
) -> None:
    network = network_of(InputSpec(channels=1, height=size, width=size, resize="pad"))
    names = [layer.name for layer in tapped_layers(network)]
    assert names == [f"convolution {number}" for number in numbers]
    assert names_of_statistics(network) == ["pixels", *names, "thumbnail", "features"]


@pytest.mark.parametrize(
    ("candidates", "spread"),
    [("", ""), ("a", "a"), ("ab", "a"), ("abcdef", "abcde"), ("abcdefghij", "acegi")],
)
def test_at_most_five_are_spread_evenly_over_all_but_the_last(candidates: str, spread: str) -> None:
    assert "".join(evenly_spread(candidates)) == spread


@pytest.mark.parametrize("preset", ["cnn", "alexnet"])
def test_tapped_layers_are_in_their_order_from_the_first_and_without_the_last(
    preset: PresetName,
) -> None:
    network = network_of(InputSpec(channels=3, height=63, width=63, resize="crop"), preset)
    layers = network.hidden_layers()
    convolutions = [layer.name for layer in layers if isinstance(layer.layer, nn.Conv2d)]
    names = [layer.name for layer in tapped_layers(network)]
    assert names == [name for name in convolutions if name in names]
    assert names[0] == convolutions[0]
    assert convolutions[-1] not in names
    assert len(names) == min(MAX_TAPPED_LAYERS, len(convolutions) - 1)


def test_network_without_convolutions_has_the_statistics_of_the_image_and_features() -> None:
    network = network_of(preset="mlp")
    assert not tapped_layers(network)
    assert names_of_statistics(network) == ["pixels", "thumbnail", "features"]


@pytest.mark.parametrize("spec", [DIGIT, COLOUR], ids=["grey", "colour"])
def test_statistics_are_of_pixels_activations_thumbnail_and_features_in_this_order(
    spec: InputSpec,
) -> None:
    network = network_of(spec)
    images = torch.rand(6, spec.channels, spec.height, spec.width)
    activations: list[Tensor] = []
    for layer in tapped_layers(network):
        layer.activation.register_forward_hook(
            lambda _module, _inputs, output: activations.append(output)
        )
    with torch.no_grad():
        features, statistics = features_and_statistics(network, images)
        tapped = list(activations)
        assert len(tapped) == len(tapped_layers(network)) == 4
        torch.testing.assert_close(features, network.trunk(images), rtol=0, atol=0)
    pixels = PIXELS_PER_CHANNEL * spec.channels
    parts = [
        images.mean(dim=(2, 3)),
        (images**2).mean(dim=(2, 3)).sqrt(),
        *(values.mean(dim=(2, 3)) for values in tapped),
        thumbnail(images).flatten(1),
        features,
    ]
    assert sum(part.shape[1] for part in parts[:2]) == pixels
    torch.testing.assert_close(statistics, torch.cat(parts, dim=1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(statistics[:, -CNN_FEATURES:], features, rtol=0, atol=0)


def shape_of(spec: InputSpec) -> tuple[int, int, int]:
    return spec.channels, spec.height, spec.width


def check_graph(network: Classifier, spec: InputSpec, folder: Path) -> None:
    """Assert that the exported graphs give torch's statistics, logits and samples."""
    shape = shape_of(spec)
    images = np.random.default_rng(1).random((70, *shape), dtype=np.float32)
    images[0], images[1] = 0, 0.7  # blanks
    export_graphs(network, shape, folder, with_statistics=True)
    statistics, logits = read_statistics(folder / MODEL_FILE, [images])
    with torch.no_grad():
        features, expected = features_and_statistics(network, torch.from_numpy(images))
        expected_logits = network.head(features).numpy()
    np.testing.assert_allclose(statistics, expected.numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-4)
    assert count_statistics(folder / MODEL_FILE) == expected.shape[1]
    predictor = Predictor.open(folder, network.head.dropout_layers)
    assert check_parity(network, predictor, images[:48]) <= PARITY_TOLERANCE


@pytest.mark.parametrize("activation", get_args(ActivationName))
def test_exported_graphs_have_parity_for_every_activation(
    activation: ActivationName, tmp_path: Path
) -> None:
    check_graph(network_of(activation=activation), DIGIT, tmp_path)


@pytest.mark.parametrize(
    ("preset", "spec"),
    [
        ("mlp", DIGIT),
        ("cnn", COLOUR),
        ("mlp", COLOUR),
        pytest.param(
            "alexnet",
            InputSpec(channels=3, height=63, width=65, resize="crop"),
            marks=pytest.mark.training,  # for its seconds alone
        ),
    ],
)
def test_exported_graphs_have_parity_for_other_networks(
    preset: PresetName, spec: InputSpec, tmp_path: Path
) -> None:
    network = network_of(spec, preset)
    check_graph(network, spec, tmp_path)
    head = onnxruntime.InferenceSession(tmp_path / HEAD_FILE)
    masks = [f"mask_{number}" for number in range({"alexnet": 2}.get(preset, 1))]
    assert [each.name for each in head.get_inputs()] == ["features", *masks]
    predictor = Predictor.open(tmp_path, network.head.dropout_layers)
    features = predictor.predict(np.zeros((4, *shape_of(spec)), np.float32)).features
    assert predictor.sample(features, FixedSamples(0, 5)).shape == (4, 5, 5)


def test_exported_graph_gives_the_statistics_of_a_pruned_network(tmp_path: Path) -> None:
    network = network_of()
    dead = [(0, 2) for _ in network.hidden_layers()]
    smaller, removed = prune(network, dead)
    assert removed == sum(map(len, dead))
    check_graph(smaller.eval(), DIGIT, tmp_path)
