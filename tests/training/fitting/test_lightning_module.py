from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from model.bundle.architecture_description import Architecture
from model.images.preprocessing import InputSpec
from tests.training.conftest import same_weights, weight_norms
from training.data.augmentation import build_augmentation
from training.fitting.lightning_module import ClassifierModule, apply_max_norm
from training.network.classifier import Classifier, Head, build_classifier


@given(max_norm=st.floats(0.1, 5), seed=st.integers(0, 1_000))
def test_apply_max_norm_rescales_only_long_weight_vectors(max_norm: float, seed: int) -> None:
    torch.manual_seed(seed)
    architecture = Architecture(
        classes=2, input=InputSpec(channels=1, height=4, width=4, resize="pad")
    )
    trunk = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 6), nn.ReLU())
    network = Classifier(trunk, Head([6, 2], architecture, dropout_count=1))
    before = deepcopy(network)
    apply_max_norm(network, max_norm)
    for old, new in zip(before.hidden_layers(), network.hidden_layers(), strict=True):
        short = weight_norms(old.layer) <= max_norm * (1 - 1e-6)
        assert torch.equal(new.layer.weight[short], old.layer.weight[short])
        cut = weight_norms(old.layer) > max_norm
        torch.testing.assert_close(
            weight_norms(new.layer)[cut],
            torch.full([int(cut.sum())], max_norm).double(),
            rtol=1e-5,
            atol=0,
        )
        cosines = functional.cosine_similarity(
            new.layer.weight.flatten(1), old.layer.weight.flatten(1)
        )
        torch.testing.assert_close(cosines, torch.ones_like(cosines))
        assert old.layer.bias is not None
        assert new.layer.bias is not None
        assert torch.equal(new.layer.bias, old.layer.bias)
    assert same_weights(before.head, network.head)


@pytest.mark.parametrize("samples", [1, 3])
def test_training_step_averages_the_loss_of_thinned_heads(samples: int) -> None:
    spec = InputSpec(channels=1, height=8, width=8, resize="pad")
    network = build_classifier(Architecture(classes=3, input=spec)).train()
    runs = []
    network.trunk.register_forward_hook(lambda *_: runs.append(1))
    module = ClassifierModule(network, 3, build_augmentation("none", 0), dropout_samples=samples)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 0, 1])
    torch.manual_seed(0)
    loss = module.training_step((images, labels), 0)
    assert len(runs) == 1
    torch.manual_seed(0)
    features = network.trunk(images.float() / 255)
    kept = functional.dropout(torch.ones(5, samples, features.shape[1]), 0.5)
    losses = [
        functional.cross_entropy(network.head.layers[0](features * kept[:, t]), labels)
        for t in range(samples)
    ]
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def test_training_step_weighs_each_image_by_its_class() -> None:
    spec = InputSpec(channels=1, height=8, width=8, resize="pad")
    network = build_classifier(Architecture(classes=2, input=spec, dropout=0)).eval()
    weights = np.array([0.5, 4.0], np.float32)
    module = ClassifierModule(network, 2, build_augmentation("none", 0), class_weights=weights)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 0, 0, 1])
    losses = functional.cross_entropy(network(images.float() / 255), labels, reduction="none")
    each = torch.from_numpy(weights)[labels]
    expected = (each * losses).sum() / each.sum()
    torch.testing.assert_close(module.training_step((images, labels), 0), expected)
    assert not [name for name in module.state_dict() if "class_weights" in name]
