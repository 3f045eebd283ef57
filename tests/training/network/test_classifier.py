from typing import get_args

import pytest
import torch
from torch import nn

from model.bundle.architecture_description import (
    ActivationName,
    Architecture,
    DropoutLayer,
    PresetName,
)
from model.errors import SettingsError
from model.images.preprocessing import InputSpec
from training.network.classifier import Classifier, Head, build_classifier, count_parameters


def spec(channels: int, size: int) -> InputSpec:
    return InputSpec.model_validate(
        {"channels": channels, "height": size, "width": size, "resize": "pad"}
    )


@pytest.mark.parametrize(
    ("preset", "channels", "size", "classes", "parameters"),
    [
        ("cnn", 1, 28, 10, 97_754),
        ("cnn", 1, 8, 10, 42_330),
        ("mlp", 1, 28, 10, 784 * 500 + 500 + 500 * 10 + 10),
        ("alexnet", 3, 224, 1000, 60_965_224),
        ("alexnet", 3, 227, 1000, 60_965_224),
    ],
)
def test_presets_have_their_published_parameter_counts(
    preset: PresetName, channels: int, size: int, classes: int, parameters: int
) -> None:
    with torch.device("meta"):
        architecture = Architecture(preset=preset, classes=classes, input=spec(channels, size))
        assert count_parameters(build_classifier(architecture)) == parameters


@pytest.mark.parametrize("size", [4, 8, 12, 28, 32, 64, 150])
@pytest.mark.parametrize("channels", [1, 3])
def test_cnn_accepts_any_image_size(channels: int, size: int) -> None:
    network = build_classifier(Architecture(classes=7, input=spec(channels, size))).eval()
    images = torch.rand(2, channels, size, size)
    assert network(images).shape == (2, 7)
    assert network.head.dropout_layers == (DropoutLayer(p=0.5, width=96),)
    assert count_parameters(network) < 330_000


def test_alexnet_refuses_images_that_are_too_small() -> None:
    with pytest.raises(SettingsError, match="at least 63 x 63 pixels, but these are 62 x 62"):
        build_classifier(Architecture(preset="alexnet", classes=2, input=spec(3, 62)))
    network = build_classifier(Architecture(preset="alexnet", classes=2, input=spec(3, 63))).eval()
    assert network(torch.rand(1, 3, 63, 63)).shape == (1, 2)


@pytest.mark.parametrize("activation", get_args(ActivationName))
def test_cnn_runs_with_every_activation(activation: ActivationName) -> None:
    architecture = Architecture(activation=activation, classes=3, input=spec(1, 8))
    network = build_classifier(architecture).eval()
    assert torch.isfinite(network(torch.rand(2, 1, 8, 8))).all()


def test_classifier_drops_features_only_in_training() -> None:
    network = build_classifier(Architecture(preset="mlp", classes=3, input=spec(1, 8)))
    images = torch.rand(5, 1, 8, 8)
    network.eval()
    assert torch.equal(network(images), network(images))
    ones = torch.ones(2, 500)
    sampled = network.head.sample(network.trunk(images), [ones])
    torch.testing.assert_close(sampled[:, 0], network(images))
    network.train()
    assert not torch.equal(network(images), network(images))


def test_first_layer_normalises_pixels() -> None:
    network = build_classifier(
        Architecture(classes=3, input=spec(3, 8)), [0.1, 0.5, 0.2], [0.1, 0.2, 0.4]
    )
    assert isinstance(network.trunk, nn.Sequential)
    normalised = network.trunk[0](torch.full((1, 3, 8, 8), 0.5))
    torch.testing.assert_close(normalised[0, :, 0, 0], torch.tensor([4.0, 0.0, 0.75]))


GREY, RGB = spec(1, 8), spec(3, 63)


@pytest.mark.parametrize(
    ("preset", "image", "convolutions", "dense"),
    [
        ("cnn", GREY, [16, 16, 32, 32, 64], [96]),
        ("mlp", GREY, [], [500]),
        ("alexnet", RGB, [96, 256, 384, 384, 256], [4096, 4096]),
    ],
)
def test_hidden_layers_are_named_in_the_order_of_computation(
    preset: PresetName, image: InputSpec, convolutions: list[int], dense: list[int]
) -> None:
    with torch.device("meta"):
        network = build_classifier(Architecture(preset=preset, classes=7, input=image))
    hidden = network.hidden_layers()
    names = [f"convolution {index + 1}" for index in range(len(convolutions))]
    names += [f"dense {index + 1}" for index in range(len(dense))]
    assert [each.name for each in hidden] == names
    assert [each.units for each in hidden] == [*convolutions, *dense]
    assert all(isinstance(each.activation, nn.ReLU) for each in hidden)
    assert len({id(each.activation) for each in hidden}) == len(hidden)
    assert network.head.layers[-1] not in [each.layer for each in hidden]
    for each in hidden:
        normalised = preset == "cnn"
        assert (each.norm is not None) == normalised
        assert each.bias is (each.norm.bias if each.norm is not None else each.layer.bias)
        assert each.bias is not None
        assert each.bias.shape == (each.units,)


def test_hidden_layer_has_its_own_normalisation_and_activation() -> None:
    network = build_classifier(Architecture(classes=7, input=GREY)).eval()
    x = torch.rand(2, 1, 8, 8)
    seen: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []
    assert isinstance(network.trunk, nn.Sequential)
    for module in network.trunk:
        before, x = x, module(x)
        seen.append((module, before, x))
    outputs = {id(module): after for module, _, after in seen}
    inputs = {id(module): before for module, before, _ in seen}
    for each in network.hidden_layers():
        last = each.layer if each.norm is None else each.norm
        assert inputs[id(each.activation)] is outputs[id(last)]


def test_hidden_layer_without_bias_or_normalisation_has_no_bias() -> None:
    trunk = nn.Sequential(
        *(nn.Conv2d(1, 6, 3, bias=False), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(6 * 6 * 6, 5, bias=False), nn.ReLU()),
    )
    head = Head([5, 2], Architecture(classes=2, input=GREY), dropout_count=1)
    hidden = Classifier(trunk, head).hidden_layers()
    assert [each.name for each in hidden] == ["convolution 1", "dense 1"]
    assert [each.bias for each in hidden] == [None, None]
