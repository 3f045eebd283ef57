"""How a network's hidden units fire, and how large its gradients are, epoch by epoch.

Knows no data set by name, no cause and no report. A unit is a neuron of a dense layer or a channel
of a convolution; it fires where the input of its activation is above 0. One input is one image:
places within an image are not independent, so a channel fires on an image where any place does.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.optim import Optimizer

from training.network.activations import BOUNDED
from training.network.classifier import Classifier, HiddenLayer

NEARLY_DEAD = 1e-3
"""A unit that fires on a smaller share of the images than this, but on some, is nearly dead."""

SATURATED = 0.01
"""A bounded activation is saturated within this share of its range from either end."""

OUTPUT_LAYER = "output"
"""The name, among the gradients, of the layer that gives the logits."""


def rate_bound(images: int) -> float:
    """Upper end of the 95 % interval of the firing rate of a unit silent on all `images`.

    Source: the rule of three (Hanley & Lippman-Hand 1983).
    """
    return min(1.0, 3 / images)


class LayerHealth(BaseModel):
    """One activation layer over one set of images, in evaluation mode."""

    model_config = ConfigDict(frozen=True)

    name: str
    units: int
    images: int
    dead_units: tuple[int, ...]
    """Indices of the units that fired on no image; none for tanh and sigmoid, which never die."""
    nearly_dead: int
    always_on: int
    """Units that fired at every place of every image: to these images they are linear."""
    silenced_by_bias: int
    """Dead units that would fire on some image if their bias were 0."""
    sparsity: float
    """Share of all units, places and images at which the activation's input was not above 0."""
    saturated: float | None
    """Share of outputs near an end of the range; None for unbounded activations."""

    @property
    def dead(self) -> int:
        """Count the dead units."""
        return len(self.dead_units)


class Epoch(BaseModel):
    """What one epoch left behind: the layers' health on validation images, the mean gradients."""

    model_config = ConfigDict(frozen=True)

    layers: tuple[LayerHealth, ...]
    gradient_norms: dict[str, float]
    """Mean over the epoch's steps of the L2 norm of the loss's gradient by a layer's weights."""


class ActivationMonitor:
    """Counts how a network's activations fire while it runs, between `with` and its end."""

    def __init__(self, network: Classifier) -> None:
        self._tallies = [_ActivationCounts(hidden) for hidden in network.hidden_layers()]
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        self._handles = [
            tally.hidden.activation.register_forward_hook(tally.add) for tally in self._tallies
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def health(self) -> tuple[LayerHealth, ...]:
        """Return what was counted, a layer an entry, in the order of computation."""
        return tuple(tally.health() for tally in self._tallies)


def diagnose(network: Classifier, batches: Iterable[Tensor]) -> tuple[LayerHealth, ...]:
    """Run images float32 [N, C, H, W], batch by batch, in evaluation mode, and return the health.

    The network comes back in the mode it was in.
    """
    was_training = network.training
    network.eval()
    try:
        with ActivationMonitor(network) as watch, torch.no_grad():
            for images in batches:
                network(images)
    finally:
        network.train(was_training)
    return watch.health()


class GradientNorms:
    """Means over steps of each layer's gradient, L2 norm; they stay on the device until asked."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = 0

    def add(self, network: Classifier) -> None:
        """Take in the gradients that the network's weights hold now."""
        self._steps += 1
        for name, layer in weighted_layers(network).items():
            if layer.weight.grad is not None:
                norm = torch.linalg.vector_norm(layer.weight.grad)
                self._sums[name] = self._sums.get(name, torch.zeros_like(norm)) + norm

    def means(self) -> dict[str, float]:
        """Return the mean of each layer; empty before the first step."""
        return {name: float(total) / self._steps for name, total in self._sums.items()}


class Diagnosis(Callback):
    """Watches each validation and each gradient of a run; part of the checkpoints.

    The module it rides on has the `Classifier` as its attribute `network`.
    """

    def __init__(self) -> None:
        self.epochs: list[Epoch] = []
        self._watch: ActivationMonitor | None = None
        self._norms = GradientNorms()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last epoch's gradients."""
        self._norms = GradientNorms()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Add this step's gradients."""
        self._norms.add(network_of(pl_module))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._watch = ActivationMonitor(network_of(pl_module)).__enter__()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what was counted, with the gradients of the steps before it."""
        assert self._watch is not None
        self._watch.__exit__()
        layers, norms = self._watch.health(), self._norms.means()
        self.epochs.append(Epoch(layers=layers, gradient_norms=norms))

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"epochs": [epoch.model_dump() for epoch in self.epochs]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what a checkpoint kept."""
        self.epochs = [Epoch.model_validate(epoch) for epoch in state_dict["epochs"]]


@dataclass(frozen=True)
class Turnover:
    """Deaths and revivals of one layer's units, summed over the epochs."""

    deaths: int
    revivals: int


def turnover(before: Sequence[LayerHealth], epochs: Sequence[Epoch]) -> Mapping[str, Turnover]:
    """Count by layer: units dead after an epoch but not at the one before, and the reverse.

    before: the health before the first step.
    """
    moments = [before, *(epoch.layers for epoch in epochs)]
    counted = {}
    for layers in zip(*moments, strict=True):
        dead = [set(layer.dead_units) for layer in layers]
        counted[layers[0].name] = Turnover(
            deaths=sum(len(now - past) for past, now in pairwise(dead)),
            revivals=sum(len(past - now) for past, now in pairwise(dead)),
        )
    return counted


def network_of(module: LightningModule) -> Classifier:
    """Return the network that a module trains."""
    network = module.network
    assert isinstance(network, Classifier)
    return network


def weighted_layers(network: Classifier) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return the layers that have weights by name: the hidden ones, then the output's."""
    layers = {hidden.name: hidden.layer for hidden in network.hidden_layers()}
    output = network.head.layers[-1]
    assert isinstance(output, nn.Linear)
    return layers | {OUTPUT_LAYER: output}


class _ActivationCounts:
    """The running counts of one activation layer."""

    def __init__(self, hidden: HiddenLayer) -> None:
        self.hidden = hidden
        self._images = self._places = 0
        zeros = torch.zeros(hidden.units, dtype=torch.int64, device=hidden.layer.weight.device)
        self._fired = zeros  # images on which a unit fires
        self._highest = zeros - torch.inf
        self._lowest = zeros + torch.inf
        self._below = zeros.sum()
        self._near_ends = zeros.sum()

    def add(self, _module: nn.Module, inputs: tuple[Tensor], outputs: Tensor) -> None:
        """A forward hook: inputs and outputs [N, units] or [N, units, H, W]."""
        (x,) = inputs
        places = tuple(range(2, x.ndim))
        high, low = (x.amax(places), x.amin(places)) if places else (x, x)
        self._images += len(x)
        self._places += x.numel()
        self._fired = self._fired + (high > 0).sum(0)
        self._highest = torch.maximum(self._highest, high.amax(0))
        self._lowest = torch.minimum(self._lowest, low.amin(0))
        self._below = self._below + (x <= 0).sum()
        if isinstance(self.hidden.activation, BOUNDED):
            self._near_ends = self._near_ends + _near_ends(self.hidden.activation, outputs)

    def health(self) -> LayerHealth:
        bounded = isinstance(self.hidden.activation, BOUNDED)
        images, places = max(1, self._images), max(1, self._places)
        dead = (self._highest <= 0) & (not bounded)  # what is no number is not dead
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
            sparsity=float(self._below) / places,
            saturated=float(self._near_ends) / places if bounded else None,
        )


def _near_ends(activation: nn.Module, outputs: Tensor) -> Tensor:
    scaled = (outputs + 1) / 2 if isinstance(activation, nn.Tanh) else outputs
    return ((scaled < SATURATED) | (scaled > 1 - SATURATED)).sum()
