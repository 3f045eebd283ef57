from typing import get_args

import pytest
import torch
from torch import nn

from model.architecture import ActivationName, Architecture, DropoutLayer, PresetName
from model.errors import SettingsError
from model.network import build, count_parameters
from model.preprocessing import InputSpec


def spec(channels: int, size: int) -> InputSpec:
    return InputSpec.model_validate(
        {"channels": channels, "height": size, "width": size, "resize": "pad"}
    )


@pytest.mark.parametrize(
    ("preset", "channels", "size", "classes", "parameters"),
    [
        ("cnn", 1, 28, 10, 91_386),
        ("mlp", 1, 28, 10, 784 * 500 + 500 + 500 * 10 + 10),
        ("alexnet", 3, 224, 1000, 60_965_224),
        ("alexnet", 3, 227, 1000, 60_965_224),
    ],
)
def test_the_presets_have_their_published_sizes(
    preset: PresetName, channels: int, size: int, classes: int, parameters: int
) -> None:
    with torch.device("meta"):
        architecture = Architecture(preset=preset, classes=classes, input=spec(channels, size))
        assert count_parameters(build(architecture)) == parameters


@pytest.mark.parametrize("size", [4, 8, 12, 28, 32, 64, 150])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_cnn_takes_any_size(channels: int, size: int) -> None:
    network = build(Architecture(classes=7, input=spec(channels, size))).eval()
    images = torch.rand(2, channels, size, size)
    assert network(images).shape == (2, 7)
    assert network.head.dropout_layers == (DropoutLayer(p=0.5, width=96),)
    assert count_parameters(network) < 200_000


def test_alexnet_refuses_images_that_are_too_small() -> None:
    with pytest.raises(SettingsError, match="at least 63 x 63 pixels, but these are 62 x 62"):
        build(Architecture(preset="alexnet", classes=2, input=spec(3, 62)))
    network = build(Architecture(preset="alexnet", classes=2, input=spec(3, 63))).eval()
    assert network(torch.rand(1, 3, 63, 63)).shape == (1, 2)


@pytest.mark.parametrize("activation", get_args(ActivationName))
def test_every_activation_stands_in_every_place(activation: ActivationName) -> None:
    architecture = Architecture(activation=activation, classes=3, input=spec(1, 8))
    network = build(architecture).eval()
    assert torch.isfinite(network(torch.rand(2, 1, 8, 8))).all()


def test_evaluation_drops_nothing_and_training_drops() -> None:
    network = build(Architecture(preset="mlp", classes=3, input=spec(1, 8)))
    images = torch.rand(5, 1, 8, 8)
    network.eval()
    assert torch.equal(network(images), network(images))
    ones = torch.ones(2, 500)
    sampled = network.head.sample(network.trunk(images), [ones])
    torch.testing.assert_close(sampled[:, 0], network(images))
    network.train()
    assert not torch.equal(network(images), network(images))


def test_the_first_layer_sees_normalised_pixels() -> None:
    network = build(Architecture(classes=3, input=spec(3, 8)), [0.1, 0.5, 0.2], [0.1, 0.2, 0.4])
    assert isinstance(network.trunk, nn.Sequential)
    normalised = network.trunk[0](torch.full((1, 3, 8, 8), 0.5))
    torch.testing.assert_close(normalised[0, :, 0, 0], torch.tensor([4.0, 0.0, 0.75]))
