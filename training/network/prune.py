"""Removes dead units from a network, which leaves its logits as they are. Knows no data set.

A dead ReLU unit outputs 0 for every input, so the weights into it and out of it can be removed. In
`alexnet` only the dense layers of the head are pruned: its grouped convolutions need their widths,
and its response normalisation sums over neighbouring channels.
"""

from collections.abc import Collection, Iterable
from copy import deepcopy

import torch
from torch import Tensor, nn

from training.network.classifier import Classifier, HiddenLayer


def prune(network: Classifier, dead_units: Iterable[Collection[int]]) -> tuple[Classifier, int]:
    """Return a copy of `network` without its dead units, and the number of units removed.

    Each layer keeps at least one unit. `network` is not changed.

    Args:
        network: a network whose activations are ReLU.
        dead_units: for each hidden layer, in order, the indices of the units that never fire.
    """
    smaller, removed = deepcopy(network), 0
    hidden_layers = smaller.hidden_layers()
    followers = [hidden.layer for hidden in hidden_layers[1:]] + [smaller.head.layers[-1]]
    for hidden, dead, follower in zip(hidden_layers, dead_units, followers, strict=True):
        if not _can_prune(smaller, hidden, follower):
            continue
        units = hidden.units
        kept = torch.tensor(sorted(set(range(units)) - set(dead)) or [0])
        removed += units - len(kept)
        _keep_outputs(hidden, kept)
        _keep_inputs(follower, kept, hidden_units=units)
    inner = [layer.in_features for layer in smaller.head.layers if isinstance(layer, nn.Linear)]
    smaller.head.widths = (*inner, smaller.head.widths[-1])
    return smaller, removed


def _can_prune(network: Classifier, hidden: HiddenLayer, follower: nn.Module) -> bool:
    if any(isinstance(module, nn.LocalResponseNorm) for module in network.trunk.modules()):
        return hidden.layer in list(network.head.layers)
    return isinstance(follower, nn.Conv2d | nn.Linear)


def _keep_outputs(hidden: HiddenLayer, kept: Tensor) -> None:
    layer, norm = hidden.layer, hidden.norm
    _replace(layer, "weight", layer.weight[kept])
    if layer.bias is not None:
        _replace(layer, "bias", layer.bias[kept])
    if isinstance(layer, nn.Conv2d):
        layer.out_channels = len(kept)
    else:
        layer.out_features = len(kept)
    if norm is not None:
        for name in ("weight", "bias"):
            _replace(norm, name, getattr(norm, name)[kept])
        for name in ("running_mean", "running_var"):
            setattr(norm, name, getattr(norm, name)[kept])
        norm.num_features = len(kept)


def _keep_inputs(follower: nn.Module, kept: Tensor, hidden_units: int) -> None:
    """Remove the weights of removed units; a flattened channel is a block of inputs."""
    assert isinstance(follower, nn.Conv2d | nn.Linear)
    if isinstance(follower, nn.Conv2d):
        _replace(follower, "weight", follower.weight[:, kept])
        follower.in_channels = len(kept)
        return
    blocks = follower.weight.reshape(len(follower.weight), hidden_units, -1)
    _replace(follower, "weight", blocks[:, kept].flatten(1))
    follower.in_features = follower.weight.shape[1]


def _replace(module: nn.Module, name: str, value: Tensor) -> None:
    setattr(module, name, nn.Parameter(value.detach().clone()))
