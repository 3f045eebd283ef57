from copy import deepcopy

import pytest
import torch
from torch import nn

from tests.training.conftest import classifier, same_weights
from training.data.batches import image_batches
from training.data.dataset import Dataset
from training.fitting.batch_statistics import with_batch_statistics


@pytest.mark.parametrize("training", [True, False])
def test_copy_answers_in_evaluation_mode_as_the_network_does_on_a_batch(
    training: bool, dataset: Dataset
) -> None:
    torch.manual_seed(0)
    layers = (nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU())
    network = classifier(nn.Sequential(*layers), [8, 3]).train(training)
    before, state = deepcopy(network), torch.get_rng_state()
    copy = with_batch_statistics(network, dataset.train)

    assert network.training == training
    assert same_weights(network, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in copy.modules())
    (images,) = image_batches(dataset.train)
    features = network.train().trunk(images)
    spread = (len(images) / (len(images) - 1)) ** 0.5  # the running variance is unbiased
    torch.testing.assert_close(copy.trunk(images) * spread, features, atol=1e-4, rtol=1e-4)


def test_copy_of_a_network_without_batch_normalisation_is_the_same(dataset: Dataset) -> None:
    network = classifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU()), [8, 3])
    assert same_weights(with_batch_statistics(network, dataset.train), network)
