"""Measures how a network's hidden units fire and how large its gradients are, after each epoch.

A unit is a neuron of a dense layer or a channel of a convolution; it fires where the input of its
activation is above 0. Positions within an image are not independent, so images are counted: a
channel fires on an image if any position does. Knows no data set, no cause and no remedy.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.optim import Optimizer

from training.network.activations import BOUNDED_ACTIVATIONS
from training.network.classifier import Classifier, HiddenLayer

NEARLY_DEAD = 1e-3
"""A unit that fires on some images, but on a smaller share than this, is nearly dead."""

SATURATED = 0.01
"""An output of a bounded activation is saturated within this share of its range from an end."""

Reduce = Callable[..., Tensor]
"""As `Strategy.reduce` of Lightning: combines a tensor over processes by its `reduce_op`."""

OUTPUT_LAYER = "output"
"""The name in `gradient_norms` of the layer that outputs the logits."""


def firing_rate_bound(images: int) -> float:
    """Return the upper 95 % confidence bound of the firing rate of a unit silent on all `images`.

    Source: the rule of three (Hanley & Lippman-Hand 1983).
    """
    return min(1.0, 3 / images)


class LayerHealth(BaseModel):
    """How the units of one hidden layer fire on a set of images, in evaluation mode."""

    model_config = ConfigDict(frozen=True)

    name: str
    """As `HiddenLayer.name`."""
    units: int
    images: int
    """The number of images measured."""
    dead_units: tuple[int, ...]
    """Indices of the units that fired on no image; none for tanh and sigmoid, which never die."""
    nearly_dead: int
    always_on: int
    """Units that fired at every position of every image, where ReLU and its kin are linear."""
    silenced_by_bias: int
    """Dead units that would fire on some image if their bias were 0."""
    sparsity: float
    """Share, over units, positions and images, of activation inputs that were not above 0."""
    saturated: float | None
    """Share of saturated outputs; None for unbounded activations."""

    @property
    def dead(self) -> int:
        """The number of dead units."""
        return len(self.dead_units)


class EpochDiagnostics(BaseModel):
    """The layers' health on the validation images after one epoch, and the epoch's gradients."""

    model_config = ConfigDict(frozen=True)

    layers: tuple[LayerHealth, ...]
    gradient_norms: dict[str, float]
    """For each layer, the L2 norm of the gradient of its weights, averaged over the steps."""


class ActivationMonitor:
    """A context manager that counts how a network's activations fire while it runs."""

    def __init__(self, network: Classifier) -> None:
        self._counts = [_ActivationCounts(hidden) for hidden in network.hidden_layers()]
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        self._handles = [
            counts.hidden.activation.register_forward_hook(counts.add) for counts in self._counts
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def gather(self, reduce: Reduce) -> None:
        """Add what other processes have counted on their images."""
        for counts in self._counts:
            counts.gather(reduce)

    def health(self) -> tuple[LayerHealth, ...]:
        """Return the health of each hidden layer so far, in the order of computation."""
        return tuple(counts.health() for counts in self._counts)


def diagnose(network: Classifier, batches: Iterable[Tensor]) -> tuple[LayerHealth, ...]:
    """Run a network on images in evaluation mode and return the health of its hidden layers.

    batches: images float32 [N, C, H, W] in 0..1. The network is left in the mode it was in.
    """
    was_training = network.training
    network.eval()
    try:
        with ActivationMonitor(network) as monitor, torch.no_grad():
            for images in batches:
                network(images)
    finally:
        network.train(was_training)
    return monitor.health()


class GradientNorms:
    """Averages each layer's gradient norm (L2) over steps.

    The sums stay on the device until `means` is called, so that no step waits for a transfer.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    def add(self, network: Classifier) -> None:
        """Add the norms of the gradients that the network's weights have now."""
        self._steps += 1
        for name, layer in weighted_layers(network).items():
            if layer.weight.grad is not None:
                norm = torch.linalg.vector_norm(layer.weight.grad)
                self._sums[name] = self._sums.get(name, torch.zeros_like(norm)) + norm

    def means(self) -> dict[str, float]:
        """Return the mean norm by layer; empty before the first step."""
        return {name: float(total) / self._steps for name, total in self._sums.items()}


class Diagnosis(Callback):
    """Records the diagnostics of each epoch; they are saved in checkpoints.

    The trained module has the `Classifier` as its attribute `network`.
    """

    def __init__(self) -> None:
        self.epochs: list[EpochDiagnostics] = []
        self._monitor: ActivationMonitor | None = None
        self._norms = GradientNorms()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discard the gradients of the last epoch."""
        self._norms = GradientNorms()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Add this step's gradients."""
        self._norms.add(network_of(pl_module))

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to count activations."""
        self._monitor = ActivationMonitor(network_of(pl_module)).__enter__()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the counts and the gradients of the epoch, while the validated weights are in."""
        assert self._monitor is not None
        self._monitor.__exit__()
        self._monitor.gather(trainer.strategy.reduce)
        layers, norms = self._monitor.health(), self._norms.means()
        self.epochs.append(EpochDiagnostics(layers=layers, gradient_norms=norms))

    def state_dict(self) -> dict[str, Any]:
        """Return the recorded epochs for a checkpoint."""
        return {"epochs": [epoch.model_dump() for epoch in self.epochs]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the recorded epochs from a checkpoint."""
        self.epochs = [EpochDiagnostics.model_validate(epoch) for epoch in state_dict["epochs"]]


@dataclass(frozen=True)
class DeathsAndRevivals:
    """Deaths and revivals of the units of one layer, summed over the epochs."""

    deaths: int
    revivals: int


def count_deaths_and_revivals(
    before: Sequence[LayerHealth], epochs: Sequence[EpochDiagnostics]
) -> Mapping[str, DeathsAndRevivals]:
    """Count, by layer, units that are dead after an epoch but were not before it, and the reverse.

    Args:
        before: the health before the first step.
        epochs: the diagnostics of each epoch.
    """
    moments = [before, *(epoch.layers for epoch in epochs)]
    counts = {}
    for layers in zip(*moments, strict=True):
        dead = [set(layer.dead_units) for layer in layers]
        counts[layers[0].name] = DeathsAndRevivals(
            deaths=sum(len(now - past) for past, now in pairwise(dead)),
            revivals=sum(len(past - now) for past, now in pairwise(dead)),
        )
    return counts


def network_of(module: LightningModule) -> Classifier:
    """Return the network that `module` trains."""
    network = module.network
    assert isinstance(network, Classifier)
    return network


def weighted_layers(network: Classifier) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return the layers by name: the hidden layers in order, then the output layer."""
    layers = {hidden.name: hidden.layer for hidden in network.hidden_layers()}
    output = network.head.layers[-1]
    assert isinstance(output, nn.Linear)
    return layers | {OUTPUT_LAYER: output}


class _ActivationCounts:
    """Running counts of one activation layer, updated by a forward hook."""

    def __init__(self, hidden: HiddenLayer) -> None:
        self.hidden = hidden
        self._images = self._inputs = 0
        zeros = torch.zeros(hidden.units, dtype=torch.int64, device=hidden.layer.weight.device)
        self._fired = zeros  # by unit: images on which it fires
        self._highest = zeros - torch.inf  # by unit: greatest input
        self._lowest = zeros + torch.inf
        self._silent_inputs = zeros.sum()
        self._saturated_outputs = zeros.sum()

    def add(self, _module: nn.Module, inputs: tuple[Tensor], outputs: Tensor) -> None:
        """Forward hook: count one batch of inputs and outputs [N, units] or [N, units, H, W]."""
        (x,) = inputs
        positions = tuple(range(2, x.ndim))
        high, low = (x.amax(positions), x.amin(positions)) if positions else (x, x)
        self._images += len(x)
        self._inputs += x.numel()
        self._fired = self._fired + (high > 0).sum(0)
        self._highest = torch.maximum(self._highest, high.amax(0))
        self._lowest = torch.minimum(self._lowest, low.amin(0))
        self._silent_inputs = self._silent_inputs + (x <= 0).sum()
        if isinstance(self.hidden.activation, BOUNDED_ACTIVATIONS):
            self._saturated_outputs = self._saturated_outputs + _count_saturated(
                self.hidden.activation, outputs
            )

    def gather(self, reduce: Reduce) -> None:
        """Add the counts of other processes, which are on other images."""
        seen = torch.tensor([self._images, self._inputs], device=self._fired.device)
        self._images, self._inputs = reduce(seen, reduce_op="sum").tolist()
        self._fired = reduce(self._fired, reduce_op="sum")
        self._silent_inputs = reduce(self._silent_inputs, reduce_op="sum")
        self._saturated_outputs = reduce(self._saturated_outputs, reduce_op="sum")
        self._highest = reduce(self._highest, reduce_op="max")
        self._lowest = reduce(self._lowest, reduce_op="min")

    def health(self) -> LayerHealth:
        """Return the health of the layer on the images counted so far."""
        bounded = isinstance(self.hidden.activation, BOUNDED_ACTIVATIONS)
        images, inputs = max(1, self._images), max(1, self._inputs)
        dead = (self._highest <= 0) & (not bounded)  # a unit with NaN inputs is not dead
        bias = self.hidden.bias
        unbiased = self._highest if bias is None else self._highest - bias.detach()
        nearly = (self._fired > 0) & (self._fired < NEARLY_DEAD * images) & (not bounded)
        return LayerHealth(
            name=self.hidden.name,
            units=self.hidden.units,
            images=self._images,
            dead_units=tuple(dead.nonzero().flatten().tolist()),
            nearly_dead=int(nearly.sum()),
            always_on=0 if bounded else int((self._lowest > 0).sum()),
            silenced_by_bias=int((dead & (unbiased > 0)).sum()),
            sparsity=float(self._silent_inputs) / inputs,
            saturated=float(self._saturated_outputs) / inputs if bounded else None,
        )


def _count_saturated(activation: nn.Module, outputs: Tensor) -> Tensor:
    scaled = outputs if isinstance(activation, nn.Sigmoid) else (outputs + 1) / 2
    return ((scaled < SATURATED) | (scaled > 1 - SATURATED)).sum()
