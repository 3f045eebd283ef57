"""Compare OOD scores: which one detects classes unseen in training?

    python -m benchmarks.novelty [--data fashion-mnist] [--splits 4] [--epochs 6] [--record docs]

For each split a network is trained on a random half of the classes. Scores are fitted on its
training images, and should be higher for the validation images of its own classes than for those of
the other half. Test images and other data sets are not used, so they may judge the chosen score.
"served score" is the one that bundles have; the others see the features or the logits alone.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score

from model.uncertainty.uncertainty_measures import softmax
from training.config import TrainingConfig
from training.data.batches import image_batches
from training.data.dataset import Dataset, Split, load_dataset
from training.experiments.experiment_record import Record, format_mean_std
from training.export.ood_score import fit_ood_score
from training.export.ood_statistics import PIXELS_PER_CHANNEL, features_and_statistics
from training.fitting.training_loop import fit
from training.network.classifier import Classifier

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Scores = Callable[["HalfTrained", float], Floats]

_SHRINKAGES = (0.001, 0.01, 0.03, 0.1, 0.3)


@dataclass(frozen=True)
class HalfTrained:
    """Features and logits, float64, of a network that was trained on half of the classes."""

    train_features: Floats
    """[N, F], features of the training images."""
    labels: NDArray[np.int64]
    """[N], labels of the training images."""
    features: Floats
    """[M, F], features of the validation images of all classes."""
    logits: Floats
    """[M, K], logits of the same images."""
    served_scores: Floats
    """[M], the score that bundles have, fitted on all training images; of the same images."""
    in_distribution: NDArray[np.bool_]
    """[M]: whether an image is of the trained classes."""


def main(arguments: list[str]) -> None:
    """Train the networks, compare the scores, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--data", default="fashion-mnist", help="data set")
    parser.add_argument("--splits", type=int, default=4, help="draws of half of the classes")
    parser.add_argument("--epochs", type=int, default=6, help="passes over the images, each split")
    parser.add_argument("--threads", type=int, help="processor threads; default one a core")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("DROPSERVE_DATA_DIR"))
    parser.add_argument("--record", type=Path, help="folder of the notes")
    options = parser.parse_args(arguments)
    config = TrainingConfig(
        data=options.data,
        epochs=options.epochs,
        threads=options.threads,
        data_dir=options.data_dir,
    )
    data = load_dataset(config)
    networks = [train_on_half(config, data, seed) for seed in range(options.splits)]
    record = compare(config, networks)
    record.print(Console())
    if options.record:
        record.add_to(options.record, f"python -m benchmarks.novelty --data {options.data}")


def train_on_half(config: TrainingConfig, data: Dataset, seed: int) -> HalfTrained:
    """Train a network on half of the classes, drawn with a seed."""
    count = len(data.class_names)
    classes = np.sort(np.random.Generator(np.random.PCG64(seed)).permutation(count)[: count // 2])
    half = replace(
        data,
        train=_select_classes(data.train, classes),
        validation=_select_classes(data.validation, classes),
        class_names=tuple(data.class_names[label] for label in classes),
    )
    with tempfile.TemporaryDirectory() as folder:
        network = fit(config, half, Path(folder), resume=False).network.eval()
    train, validation = _run(network, half.train), _run(network, data.validation)
    pixels = PIXELS_PER_CHANNEL * data.input.channels
    score = fit_ood_score(train.statistics, train.logits, half.train.labels, pixels)
    return HalfTrained(
        train_features=train.features.astype(np.float64),
        labels=half.train.labels,
        features=validation.features.astype(np.float64),
        logits=validation.logits.astype(np.float64),
        served_scores=score.score(validation.statistics, validation.logits),
        in_distribution=np.isin(data.validation.labels, classes),
    )


@dataclass(frozen=True)
class _Outputs:
    """The float32 outputs of a network for N images."""

    features: Floats32
    """[N, F]."""
    statistics: Floats32
    """[N, S], what the served score is computed from."""
    logits: Floats32
    """[N, K]."""


def _run(network: Classifier, split: Split) -> _Outputs:
    parts = []
    with torch.no_grad():
        for images in image_batches(split):
            features, statistics = features_and_statistics(network, images)
            parts.append((features, statistics, network.head(features)))
    return _Outputs(*[torch.cat(each).numpy() for each in zip(*parts, strict=True)])


def compare(config: TrainingConfig, networks: list[HalfTrained]) -> Record:
    """Return the record of the AUROC of every score, over the networks."""
    curves = {
        name: [
            [_auroc(each, scores(each, shrinkage)) for each in networks] for shrinkage in shrinkages
        ]
        for name, scores, shrinkages in _SCORES
    }
    rows = [
        (name, f"{shrinkage:g}" if len(shrinkages) > 1 else "-", format_mean_std(aurocs, "{:.4f}"))
        for name, _, shrinkages in _SCORES
        for shrinkage, aurocs in zip(shrinkages, curves[name], strict=True)
    ]
    return Record(
        name="novelty",
        title="Which score detects unseen classes",
        setting=f"{len(networks)} networks, each trained for {config.epochs} epochs on a random "
        f"half of the classes of {config.data}; AUROC of its own classes against the rest, on "
        "validation images, mean and standard deviation. Shrinkage is that of the covariances "
        "towards a sphere. The weights of the served score were chosen on left-out classes too.",
        columns=("score", "shrinkage", "AUROC"),
        rows=rows,
        finding=_finding(curves),
        figure=_figure(curves),
    )


def whitening(centred: Floats, shrinkage: float) -> Floats:
    """Return axes [D, D] on which the covariance of points [N, D] is the identity.

    Args:
        centred: [N, D], with a mean of 0.
        shrinkage: of the covariance towards a sphere, 0..1.
    """
    covariance = centred.T @ centred / len(centred)
    sphere = np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    lengths, directions = np.linalg.eigh((1 - shrinkage) * covariance + shrinkage * sphere)
    least = np.finfo(np.float32).eps * max(lengths.max(), 1)  # where features never move
    axes: Floats = directions / np.sqrt(np.maximum(lengths, least))
    return axes


def class_covariances(network: HalfTrained, shrinkage: float) -> Floats:
    """Return the log-density of the likeliest class, float64 [M], one covariance a class."""
    densities = []
    for label in np.unique(network.labels):
        points = network.train_features[network.labels == label]
        axes = whitening(points - points.mean(axis=0), shrinkage)
        distances = np.square((network.features - points.mean(axis=0)) @ axes).sum(axis=1)
        densities.append(np.linalg.slogdet(axes)[1] - distances / 2)
    likeliest: Floats = np.max(densities, axis=0)
    return likeliest


def shared_covariance(network: HalfTrained, shrinkage: float) -> Floats:
    """Return minus the Mahalanobis distance to the nearest class, float64 [M].

    All classes share one covariance (Lee et al. 2018).
    """
    classes, places = np.unique(network.labels, return_inverse=True)
    means = np.array(
        [network.train_features[network.labels == label].mean(axis=0) for label in classes]
    )
    axes = whitening(network.train_features - means[places], shrinkage)
    distances = np.square((network.features @ axes)[:, np.newaxis] - means @ axes).sum(axis=2)
    nearest: Floats = -distances.min(axis=1)
    return nearest


def relative_mahalanobis(network: HalfTrained, shrinkage: float) -> Floats:
    """Return minus the relative Mahalanobis distance, float64 [M] (Ren et al. 2021).

    It is the distance to the nearest class, less that to the overall mean.
    """
    mean = network.train_features.mean(axis=0)
    axes = whitening(network.train_features - mean, shrinkage)
    farther: Floats = np.square((network.features - mean) @ axes).sum(axis=1)
    return farther + shared_covariance(network, shrinkage)


def served_score(network: HalfTrained, _: float) -> Floats:
    """Return the score that bundles have, float64 [M] (`training.export.ood_score`)."""
    return network.served_scores


def confidence(network: HalfTrained, _: float) -> Floats:
    """Return the maximum softmax probability, float64 [M]."""
    largest: Floats = softmax(network.logits).max(axis=1)
    return largest


def energy(network: HalfTrained, _: float) -> Floats:
    """Return the log-sum-exp of the logits, float64 [M] (Liu et al. 2020)."""
    total: Floats = logsumexp(network.logits, axis=1)
    return total


_NONE = (0.0,)
_SERVED = "served score"
_SCORES: tuple[tuple[str, Scores, tuple[float, ...]], ...] = (
    ("a covariance each", class_covariances, _SHRINKAGES),
    ("one covariance", shared_covariance, _SHRINKAGES),
    ("one covariance, less the middle", relative_mahalanobis, _SHRINKAGES),
    (_SERVED, served_score, _NONE),
    ("maximum probability", confidence, _NONE),
    ("logit energy", energy, _NONE),
)


def _select_classes(split: Split, classes: NDArray[np.int64]) -> Split:
    chosen = np.isin(split.labels, classes)
    labels = np.searchsorted(classes, split.labels[chosen]).astype(np.int64)
    return Split(split.images[chosen], labels)


def _auroc(network: HalfTrained, scores: Floats) -> float:
    return float(roc_auc_score(network.in_distribution, scores))


def _finding(curves: dict[str, list[list[float]]]) -> str:
    means = {name: [float(np.mean(each)) for each in tried] for name, tried in curves.items()}
    densities = {name: tried for name, tried in means.items() if len(tried) > 1}
    best = max(densities, key=lambda name: max(densities[name]))
    shrinkage = _SHRINKAGES[int(np.argmax(densities[best]))]
    served = np.array(curves[_SERVED][0])
    gains = served - curves[best][int(np.argmax(densities[best]))]
    return (
        f"The best density of the features is {best}, with a shrinkage of {shrinkage:g}: "
        f"{max(densities[best]):.4f}. The score that is served, which also sees the pixels and "
        f"activations, has {means[_SERVED][0]:.4f}: it differs by {gains.mean():+.4f}, and is "
        f"higher for {(gains > 0).sum()} of {len(gains)} networks. Logit energy has "
        f"{means['logit energy'][0]:.4f}."
    )


def _figure(curves: dict[str, list[list[float]]]) -> Figure:
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    for index, (name, tried) in enumerate(curves.items()):
        means, deviations = np.mean(tried, axis=1), np.std(tried, axis=1)
        if len(tried) > 1:
            axes.errorbar(_SHRINKAGES, means, deviations, fmt="o-", capsize=3, label=name)
        else:
            axes.axhline(means[0], color=f"C{index}", linestyle="--", label=name)
    axes.set(xscale="log", xlabel="shrinkage of the covariances", ylabel="AUROC of unseen classes")
    axes.set_title("Which score detects unseen classes")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


if __name__ == "__main__":
    main(sys.argv[1:])
