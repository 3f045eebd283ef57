"""Lets the layers that depend on the whole batch, or on chance, act as in one process.

Batch normalisation takes its statistics over the images of all processes. torch's `SyncBatchNorm`
does the same on GPUs alone. Dropout draws the masks of all processes and uses its own part. Knows
no trainer and no data set.
"""

from functools import partial
from typing import Any

import torch
from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import Tensor, distributed, nn
from torch.nn import functional

from training.data.shard import Shard
from training.distributed.process_group import mean_over_processes
from training.network.classifier import BatchNorm


class SynchronisedLayers(LayerSync):
    """Replaces what the layers compute in training mode; their weights and names stay."""

    def __init__(self, shard: Shard) -> None:
        """Take the part of each batch that this process has."""
        self._shard = shard

    def apply(self, model: nn.Module) -> nn.Module:
        """Let the layers of `model` act as if this process had the whole batch."""
        for module in model.modules():
            if isinstance(module, BatchNorm):
                module.forward = partial(_batch_norm, module)  # type: ignore[method-assign]
            elif isinstance(module, nn.Dropout):
                module.forward = partial(_dropout, module, self._shard)  # type: ignore[method-assign]
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Undo `apply`."""
        for module in model.modules():
            if isinstance(module, BatchNorm | nn.Dropout):
                vars(module).pop("forward", None)
        return model


class _MeanOverProcesses(torch.autograd.Function):
    """The mean of a tensor over all processes; so is the gradient, as that of the mean loss."""

    @staticmethod
    def forward(_context: Any, x: Tensor) -> Tensor:
        """Return the mean, of the same shape."""
        return mean_over_processes(x)

    @staticmethod
    def backward(_context: Any, *gradients: Tensor) -> Tensor:
        """Return the mean of the gradients."""
        return mean_over_processes(gradients[0])


def _batch_norm(layer: BatchNorm, x: Tensor) -> Tensor:
    """Normalise x, float [N, C] or [N, C, H, W], by the moments of all processes.

    All processes have as many images.
    """
    if not layer.training:
        return type(layer).forward(layer, x)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert layer.momentum is not None
    others = [dim for dim in range(x.ndim) if dim != 1]
    own = torch.stack(torch.var_mean(x.to(layer.running_mean.dtype), others, correction=0))
    variances, means = _gather(own).unbind(1)
    mean = means.mean(0)
    variance = (variances + (means - mean) ** 2).mean(0)
    with torch.no_grad():
        count = x.numel() // x.shape[1] * distributed.get_world_size()
        layer.running_mean.lerp_(mean, layer.momentum)
        layer.running_var.lerp_(variance * (count / (count - 1)), layer.momentum)
        assert layer.num_batches_tracked is not None
        layer.num_batches_tracked += 1
    scale = layer.weight * torch.rsqrt(variance + layer.eps)
    shape = [1, -1, *[1] * (x.ndim - 2)]
    shift = layer.bias - mean * scale
    return torch.addcmul(shift.view(shape), x, scale.view(shape)).to(x.dtype)


def _gather(own: Tensor) -> Tensor:
    """Return the tensors of all processes, stacked in the order of ranks, with gradients."""
    count, rank = distributed.get_world_size(), distributed.get_rank()
    padded = functional.pad(own.unsqueeze(0), [0, 0] * own.ndim + [rank, count - 1 - rank])
    gathered: Tensor = _MeanOverProcesses.apply(padded) * count  # type: ignore[no-untyped-call]
    return gathered


def _dropout(layer: nn.Dropout, shard: Shard, x: Tensor) -> Tensor:
    """Apply to x, float [N, ...], the masks that one process would draw for these images."""
    if not layer.training:
        return x

    def draw(count: int) -> Tensor:
        return functional.dropout(x.new_ones(count, *x.shape[1:]), layer.p)

    return x * shard.draw(draw, len(x))
