"""Which density of the features tells classes that a network has never seen.

    python -m benchmarks.novelty [--data fashion-mnist] [--splits 4] [--epochs 6] [--record docs]

For each split a network learns a drawn half of the classes. Candidates are fitted on its training
images, and should find the validation images of its own classes more typical than those of the
other half. Test images and other data sets have no part in it, so they may judge the one chosen.
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

from model.uncertainty.summary import softmax
from training.config import TrainingConfig
from training.data import dataset as data_sets
from training.data.batches import pixels
from training.data.dataset import DataSet, Split
from training.experiments.record import Record, spread
from training.export.calibrate import whitening
from training.fitting.loop import fit

Floats = NDArray[np.float64]
Scores = Callable[["World", float], Floats]

_SHRINKAGES = (0.001, 0.01, 0.03, 0.1, 0.3)


@dataclass(frozen=True)
class World:
    """A network that knows half of the classes, and what it makes of images; all float64."""

    known: Floats
    """[N, F], features of its training images."""
    labels: NDArray[np.int64]
    """[N], of the same."""
    features: Floats
    """[M, F], of the validation images of all classes."""
    logits: Floats
    """[M, K], of the same."""
    inside: NDArray[np.bool_]
    """[M]: an image of its own classes."""


def main(arguments: list[str]) -> None:
    """Train, compare, record."""
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
    data = data_sets.load(config)
    record = compared(config, [world(config, data, split) for split in range(options.splits)])
    record.print(Console())
    if options.record:
        record.add_to(options.record, f"python -m benchmarks.novelty --data {options.data}")


def world(config: TrainingConfig, data: DataSet, split: int) -> World:
    """Train on half of the classes, drawn with the seed `split`."""
    count = len(data.class_names)
    classes = np.sort(np.random.Generator(np.random.PCG64(split)).permutation(count)[: count // 2])
    half = replace(
        data,
        train=_only(data.train, classes),
        validation=_only(data.validation, classes),
        class_names=tuple(data.class_names[label] for label in classes),
    )
    with tempfile.TemporaryDirectory() as folder:
        network = fit(config, half, Path(folder), resume=False).network.eval()
    with torch.no_grad():
        known = torch.cat([network.trunk(images) for images in pixels(half.train)])
        features = torch.cat([network.trunk(images) for images in pixels(data.validation)])
        logits = network.head(features)
    return World(
        known=known.double().numpy(),
        labels=half.train.labels,
        features=features.double().numpy(),
        logits=logits.double().numpy(),
        inside=np.isin(data.validation.labels, classes),
    )


def compared(config: TrainingConfig, worlds: list[World]) -> Record:
    """Return the AUROC of every candidate, over the worlds."""
    curves = {
        name: [[_auroc(each, scores(each, shrinkage)) for each in worlds] for shrinkage in tried]
        for name, scores, tried in _CANDIDATES
    }
    rows = [
        (name, f"{shrinkage:g}" if len(tried) > 1 else "-", spread(aurocs, "{:.4f}"))
        for name, _, tried in _CANDIDATES
        for shrinkage, aurocs in zip(tried, curves[name], strict=True)
    ]
    return Record(
        name="novelty",
        title="Which density tells unseen classes",
        setting=f"{len(worlds)} networks, each trained for {config.epochs} epochs on a drawn half "
        f"of the classes of {config.data}; AUROC of its own classes against the others, on "
        "validation images, mean and standard deviation. Shrinkage is that of the covariances "
        "towards a sphere.",
        columns=("score", "shrinkage", "AUROC"),
        rows=rows,
        finding=_finding(curves),
        figure=_figure(curves),
    )


def own(world: World, shrinkage: float) -> Floats:
    """Log-density of the likeliest class, each with a covariance of its own."""
    densities = []
    for label in np.unique(world.labels):
        points = world.known[world.labels == label]
        axes = whitening(points - points.mean(axis=0), shrinkage)
        distances = np.square((world.features - points.mean(axis=0)) @ axes).sum(axis=1)
        densities.append(np.linalg.slogdet(axes)[1] - distances / 2)
    likeliest: Floats = np.max(densities, axis=0)
    return likeliest


def shared(world: World, shrinkage: float) -> Floats:
    """Minus the distance to the nearest class, with one covariance for all (Lee et al. 2018)."""
    classes, places = np.unique(world.labels, return_inverse=True)
    means = np.array([world.known[world.labels == label].mean(axis=0) for label in classes])
    axes = whitening(world.known - means[places], shrinkage)
    distances = np.square((world.features @ axes)[:, np.newaxis] - means @ axes).sum(axis=2)
    nearest: Floats = -distances.min(axis=1)
    return nearest


def relative(world: World, shrinkage: float) -> Floats:
    """The same, less the distance to the middle of all images (Ren et al. 2021)."""
    middle = world.known.mean(axis=0)
    axes = whitening(world.known - middle, shrinkage)
    farther: Floats = np.square((world.features - middle) @ axes).sum(axis=1)
    return farther + shared(world, shrinkage)


def confidence(world: World, _: float) -> Floats:
    """The maximum probability."""
    largest: Floats = softmax(world.logits).max(axis=1)
    return largest


def energy(world: World, _: float) -> Floats:
    """The logarithm of the sum of exponentials of the logits (Liu et al. 2020)."""
    total: Floats = logsumexp(world.logits, axis=1)
    return total


_NONE = (0.0,)
_CANDIDATES: tuple[tuple[str, Scores, tuple[float, ...]], ...] = (
    ("a covariance each", own, _SHRINKAGES),
    ("one covariance", shared, _SHRINKAGES),
    ("one covariance, less the middle", relative, _SHRINKAGES),
    ("maximum probability", confidence, _NONE),
    ("logit energy", energy, _NONE),
)


def _only(part: Split, classes: NDArray[np.int64]) -> Split:
    chosen = np.isin(part.labels, classes)
    labels = np.searchsorted(classes, part.labels[chosen]).astype(np.int64)
    return Split(part.images[chosen], labels)


def _auroc(world: World, scores: Floats) -> float:
    return float(roc_auc_score(world.inside, scores))


def _finding(curves: dict[str, list[list[float]]]) -> str:
    means = {name: [float(np.mean(each)) for each in tried] for name, tried in curves.items()}
    densities = {name: tried for name, tried in means.items() if len(tried) > 1}
    best = max(densities, key=lambda name: max(densities[name]))
    shrinkage = _SHRINKAGES[int(np.argmax(densities[best]))]
    return (
        f"The best density is {best}, with a shrinkage of {shrinkage:g}: "
        f"{max(densities[best]):.4f}. Logit energy, which is no density of the features, has "
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
    axes.set_title("Which density tells unseen classes")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


if __name__ == "__main__":
    main(sys.argv[1:])
