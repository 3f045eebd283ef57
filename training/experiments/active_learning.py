"""Runs active learning: train, choose images of a pool, label them, and train again from scratch.

After Gal, Islam & Ghahramani 2017. The labels of the pool are known, and hidden until an image is
chosen. Two equal trials on one machine give the same result.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch.nn.functional import cross_entropy

from model.bundle.architecture_description import Architecture
from model.dropout import masks
from model.uncertainty.uncertainty_measures import Uncertainty, softmax, summarise
from training.data.batches import image_batches, pixel_mean_and_std, to_channels_last
from training.data.dataset import Dataset, Split
from training.experiments.paper_networks import build_active_learning
from training.experiments.trial import loss_and_error
from training.export.mc_statistics_graph import mc_statistics_of
from training.network.classifier import Classifier
from training.selection.acquisition import acquisition_values, rank
from training.selection.batchbald import choose_batch
from training.selection.pool_scores import PoolScores
from training.selection.selection_config import BATCHBALD, Method

Sampling = masks.Design | Literal["none"]
"""The design of the dropout masks; none for weight scaling alone, which is deterministic."""

_VALIDATION_IMAGES = 100
_PRIOR_STRENGTHS = (0.0, 0.1, 1.0)
"""The weight decay is one of these, divided by the number of labels, as in the paper's code."""

Rows = NDArray[np.int64]


class ActiveTrial(BaseModel):
    """All that determines the result of one run of active learning."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str
    method: Method
    sampling: Sampling = "orthogonal"
    labels_per_class: int = 2
    """Labels at the start; the classes are balanced then."""
    labels_per_step: int = 10
    labels_per_check: int = 20
    max_labels: int
    target_error: float
    """The run ends where a check finds a test error of at most this, 0..1."""
    pool_images: int
    """Unlabelled images, drawn anew for each step, that are scored."""
    samples: int
    training_steps: int
    batch_size: int = 16
    learning_rate: float = 0.002
    seed: int = 0


class ActiveCheck(BaseModel):
    """The test error (share, 0..1) with so many labels."""

    model_config = ConfigDict(frozen=True)

    labels: int
    test_error: float


class ActiveResult(BaseModel):
    """The learning curve of one run."""

    model_config = ConfigDict(frozen=True)

    checks: tuple[ActiveCheck, ...]
    prior_strength: float


def run_active_trial(trial: ActiveTrial, data: Dataset) -> ActiveResult:
    """Label as `trial` describes until the target error or the most labels are reached."""
    torch.manual_seed(trial.seed)
    generator = np.random.default_rng(trial.seed)
    labelled = _balanced_rows(data.train.labels, trial.labels_per_class, generator)
    start = len(labelled)
    strength = _choose_prior_strength(trial, data, labelled, generator)
    checks: list[ActiveCheck] = []
    while True:
        network = train_network(trial, data, labelled, strength)
        if (len(labelled) - start) % trial.labels_per_check == 0:
            _, error = loss_and_error(network, data.test)
            checks.append(ActiveCheck(labels=len(labelled), test_error=error))
            if error <= trial.target_error or len(labelled) >= trial.max_labels:
                return ActiveResult(checks=tuple(checks), prior_strength=strength)
        unlabelled = np.setdiff1d(np.arange(len(data.train)), labelled)
        pool = generator.permutation(unlabelled)[: trial.pool_images]
        chosen = choose_images(trial, network, data.train.take(pool), len(labelled))
        labelled = np.concatenate([labelled, pool[chosen]])


def choose_images(trial: ActiveTrial, network: Classifier, pool: Split, seed: int) -> Rows:
    """Return the rows of the images of `pool`, in random order, that the method wants labelled.

    seed: of the dropout masks, which are the same for all images.
    """
    count = trial.labels_per_step
    if trial.method == "random":
        return np.arange(count)
    logits = _sample_logits(trial, network, pool, seed)
    if trial.method == BATCHBALD:
        probabilities = softmax(logits).transpose(0, 2, 1).astype(np.float32)
        threads = torch.get_num_threads()
        return np.array([row for row, _ in choose_batch(probabilities, count, seed, threads)])
    uncertainty = summarise(mc_statistics_of(logits.shape[2]), logits)
    return rank(acquisition_values(trial.method, _pool_scores(uncertainty), seed))[:count]


def train_network(
    trial: ActiveTrial, data: Dataset, rows: Rows, prior_strength: float
) -> Classifier:
    """Train a fresh network on the training images of `rows`; return it in evaluation mode."""
    labelled = data.train.take(rows)
    architecture = Architecture(dropout=0.5, classes=len(data.class_names), input=data.input)
    network = build_active_learning(architecture, pixel_mean_and_std(data.train)).train()
    optimizer = torch.optim.Adam(
        network.parameters(), trial.learning_rate, weight_decay=prior_strength / len(rows)
    )
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, trial.training_steps)
    images = to_channels_last(torch.from_numpy(labelled.images).float() / 255)
    labels = torch.from_numpy(labelled.labels)
    for _ in range(trial.training_steps):
        batch = torch.randint(len(rows), (trial.batch_size,))
        optimizer.zero_grad()
        cross_entropy(network(images[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return network.eval()


def _choose_prior_strength(
    trial: ActiveTrial, data: Dataset, rows: Rows, generator: np.random.Generator
) -> float:
    """Return the prior strength with the least loss on a hundred validation images."""
    drawn = generator.permutation(len(data.validation))[:_VALIDATION_IMAGES]
    validation = data.validation.take(drawn)
    losses = {
        strength: loss_and_error(train_network(trial, data, rows, strength), validation)[0]
        for strength in _PRIOR_STRENGTHS
    }
    return min(losses, key=losses.__getitem__)


def _balanced_rows(labels: NDArray[np.int64], count: int, generator: np.random.Generator) -> Rows:
    """Draw `count` rows of each class: int64 [K * count]."""
    return np.concatenate(
        [
            generator.permutation(np.flatnonzero(labels == label))[:count]
            for label in np.unique(labels)
        ]
    )


@torch.no_grad()
def _sample_logits(
    trial: ActiveTrial, network: Classifier, pool: Split, seed: int
) -> NDArray[np.float32]:
    """Return the logits float32 [N, T, K] of thinned networks, or of the whole one as T = 1."""
    layers = network.head.dropout_layers
    if trial.sampling == "none":
        drawn = [torch.ones(1, layer.width) for layer in layers]
    else:
        arrays = masks.draw(seed, trial.samples, layers, trial.sampling)
        drawn = [torch.tensor(array) for array in arrays]
    features = torch.cat([network.trunk(images) for images in image_batches(pool)])
    logits: NDArray[np.float32] = network.head.sample(features, drawn).numpy()
    return logits


def _pool_scores(uncertainty: Uncertainty) -> PoolScores:
    return PoolScores(
        rows=np.arange(len(uncertainty.labels)),
        labels=uncertainty.labels,
        confidences=uncertainty.confidences(),
        mutual_information=uncertainty.mutual_information,
        predictive_entropy=uncertainty.predictive_entropy,
        variation_ratio=uncertainty.variation_ratio,
        typicality=uncertainty.typicality,
    )
