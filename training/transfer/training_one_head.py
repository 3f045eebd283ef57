"""Trains one head on features that do not change. Knows no backbone and no folds."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from training.fitting.learning_rate_schedule import one_cycle
from training.network.classifier import Head

_BATCH_SIZE = 512
_MIN_STEPS = 200
_EPOCHS = 20


@dataclass(frozen=True)
class HeadOptions:
    """What is chosen for a head by its cross-fitted NLL."""

    dropout: float
    """Probability of zeroing, 0..1."""
    weight_decay: float
    """Decoupled, of AdamW."""
    learning_rate: float
    """Peak of the one-cycle schedule."""


def fit_head(
    head: Head,
    features: Tensor,
    labels: Tensor,
    options: HeadOptions,
    seed: int,
    class_weights: Tensor | None = None,
) -> list[float]:
    """Train a head in place, with one random view of each image a step; return the losses.

    The schedule ends at a rate of 0, so its last weights are the result: nothing is stopped early.

    Args:
        head: with fresh weights; is left in evaluation mode.
        features: float32 [N, V, F], of V views of N images.
        labels: int64 [N].
        options: of the training.
        seed: of the order, the views and the dropout.
        class_weights: of each class in the loss, float32 [K]; None for equal ones.
    """
    count, views, _ = features.shape
    size = min(count, _BATCH_SIZE)
    steps = max(_MIN_STEPS, _EPOCHS * -(-count // size))
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        head.parameters(), options.learning_rate, weight_decay=options.weight_decay
    )
    schedule = one_cycle(optimizer, options.learning_rate, steps)
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head.train()
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(steps):
            if len(order) < size:
                order = torch.randperm(count, generator=generator)
            rows, order = order[:size], order[size:]
            drawn = torch.randint(views, (size,), generator=generator)
            logits = head(features[rows, drawn])
            loss = functional.cross_entropy(logits, labels[rows], class_weights)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
    head.eval()
    return losses
