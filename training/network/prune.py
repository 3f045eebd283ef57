"""Leaving dead units out of a network: a smaller one with the same answers. Knows no data set.

A dead ReLU gives 0 on every input, so the weights into it and out of it may go. In `alexnet` only
the fully connected layers of the head are pruned: its grouped convolutions need their widths, and
its response normalisation counts neighbouring channels.
"""

from collections.abc import Iterable
from copy import deepcopy

import torch
from torch import Tensor, nn

from training.fitting.diagnostics import LayerHealth
from training.network.classifier import Classifier, HiddenLayer


def prune(network: Classifier, health: Iterable[LayerHealth]) -> tuple[Classifier, int]:
    """Return a copy of a ReLU `network` without its dead units, and how many went.

    Each layer keeps one unit at least. The network itself is not changed.

    Args:
        network: its activations are ReLU.
        health: of its hidden layers, in order.
    """
    pruned, removed = deepcopy(network), 0
    hidden_layers = pruned.hidden_layers()
    followers = [hidden.layer for hidden in hidden_layers[1:]] + [pruned.head.layers[-1]]
    for hidden, layer_health, follower in zip(hidden_layers, health, followers, strict=True):
        if not _prunable(pruned, hidden, follower):
            continue
        dead = set(layer_health.dead_units)
        kept = torch.tensor([unit for unit in range(hidden.units) if unit not in dead] or [0])
        removed += hidden.units - len(kept)
        _keep_outputs(hidden, kept)
        _keep_inputs(follower, kept, hidden_units=layer_health.units)
    inner = [layer.in_features for layer in pruned.head.layers if isinstance(layer, nn.Linear)]
    pruned.head.widths = (*inner, pruned.head.widths[-1])
    return pruned, removed


def difference(one: Classifier, other: Classifier, batches: Iterable[Tensor]) -> float:
    """Return the largest difference of a logit over images float32 [N, C, H, W]."""
    with torch.no_grad():
        return max(float((one(images) - other(images)).abs().max()) for images in batches)


def _prunable(network: Classifier, hidden: HiddenLayer, follower: nn.Module) -> bool:
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
    """Drop the weights of the units that went; a flattened channel is a block of inputs."""
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
