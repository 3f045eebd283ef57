"""Fits the out-of-distribution (OOD) score to the statistics of training images.

Four distances of an image are combined:

- `density`: the Mahalanobis distance of all statistics from their mean over the training images;
- `relative`: the relative Mahalanobis distance, that from the nearest class minus the one above
  (Lee et al. 2018; Ren et al. 2021), which cancels what all classes share, and so sees what only a
  class's images have;
- `pixels`: the Mahalanobis distance of the pixels' statistics alone;
- `logit`: minus the largest logit (Hendrycks et al. 2022), which is low for mixtures of classes.

Each distance is turned into -ln p, p its p-value among training images that were held out of the
fit, and the weighted sum is the score (Fisher's method, 1925). Its weights were chosen on classes
that were left out of the training, and on noise, blanks and altered training images
(docs/experiments.md).
Knows no graph and no network.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA

DISTANCES = ("density", "relative", "pixels", "logit")
WEIGHTS = (1.0, 1.0, 0.3, 0.4)
"""Of the -ln p of each distance in the score."""
MAX_DIMENSIONS = 512
"""More statistics are first projected onto their principal components."""
_HELD_OUT_SHARE = 0.25
"""Of the images: their distances give the p-values."""
_QUANTILES = (0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
"""Of the held-out distances: between them -ln p is interpolated."""
_TAIL = 0.9
"""From this quantile on, distances are taken to be exponential, with their mean excess."""
_MAX_SURPRISAL = 20.0
"""The largest -ln p of a distance; one that is farther out counts no more."""
_MIN_RELATIVE_STD = 0.01
"""Statistics that hardly vary are scaled as if they varied by this share of the median."""
_MIN_VARIANCE = 1e-6
"""Added to that of each standardised statistic; without it, images that are equal in all of them,
or a single image of each class, have no covariance to divide by."""
_SEED = 0

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]


@dataclass(frozen=True)
class OodScore:
    """The fitted score of S statistics in C classes; the arrays are float32."""

    projection: Floats32
    """[S, M]: maps statistics to M numbers: those of `sizes`, one after the other."""
    offset: Floats32
    """[M], added to them."""
    sizes: tuple[int, int, int, int]
    """How many numbers whiten all statistics, separate the classes, are one per class, and whiten
    the statistics of the pixels."""
    knots: Floats32
    """[4, Q] ascending: for each of DISTANCES, where the slope of its -ln p changes."""
    slopes: Floats32
    """[4, Q]: by how much it changes there, times the weight."""
    limits: Floats32
    """[4]: the distances from which on -ln p stays the same."""

    def score(self, statistics: Floats32, logits: Floats32) -> Floats:
        """Return the score of images, float64 [N]: 0 for the most typical, then falling.

        It defines what the graph computes.

        Args:
            statistics: float32 [N, S].
            logits: float32 [N, K].
        """
        numbers = statistics @ self.projection.astype(np.float64) + self.offset
        distances = _distances(numbers, self.sizes, logits)
        clipped = np.minimum(distances, self.limits)[:, :, np.newaxis]
        total: Floats = (np.maximum(clipped - self.knots, 0) * self.slopes).sum(axis=(1, 2))
        return -total


def fit_ood_score(
    statistics: Floats32, logits: Floats32, labels: NDArray[np.int64], pixels: int
) -> OodScore:
    """Fit the score to training images.

    Args:
        statistics: float32 [N, S], those of the pixels first.
        logits: float32 [N, K].
        labels: the true classes, int64 [N].
        pixels: how many of the S statistics are of the pixels.
    """
    order = np.random.Generator(np.random.PCG64(_SEED)).permutation(len(labels))
    held_out, fitted = np.split(order, [max(1, round(_HELD_OUT_SHARE * len(labels)))])
    values = statistics.astype(np.float64)
    blocks = (
        *_class_projections(values[fitted], labels[fitted]),
        _whitening(values[fitted, :pixels]).padded(values.shape[1]),
    )
    projection = np.concatenate([block.axes for block in blocks], axis=1).astype(np.float32)
    offset = np.concatenate([block.offset for block in blocks]).astype(np.float32)
    whitened, separating, by_class, of_pixels = (len(block.offset) for block in blocks)
    sizes = (whitened, separating, by_class, of_pixels)
    distances = _distances(values[held_out] @ projection + offset, sizes, logits[held_out])
    curves = [_surprisal(distances[:, index]) for index in range(len(DISTANCES))]
    knots, slopes, limits = (np.array(part) for part in zip(*curves, strict=True))
    weighted = slopes * np.array(WEIGHTS)[:, np.newaxis]
    return OodScore(
        projection,
        offset,
        sizes,
        knots.astype(np.float32),
        weighted.astype(np.float32),
        limits.astype(np.float32),
    )


@dataclass(frozen=True)
class _Affine:
    """An affine map: statistics [N, S] @ axes [S, M] + offset [M]."""

    axes: Floats
    offset: Floats

    def padded(self, size: int) -> "_Affine":
        """Return the same map for `size` statistics, of which it reads the first ones."""
        rows = np.zeros((size - len(self.axes), self.axes.shape[1]))
        return _Affine(np.concatenate([self.axes, rows]), self.offset)


def _distances(numbers: NDArray[Any], sizes: tuple[int, int, int, int], logits: Floats32) -> Floats:
    """Return the DISTANCES, [N, 4], from the projected statistics [N, M] and the logits."""
    density, separating, by_class, pixels = np.split(numbers, list(accumulate(sizes))[:-1], axis=1)
    nearest = np.maximum.reduce(by_class, axis=1)
    distances = (
        np.vecdot(density, density),
        np.vecdot(separating, separating) - nearest,
        np.vecdot(pixels, pixels),
        -np.maximum.reduce(logits, axis=1),
    )
    return np.stack(distances, axis=1)


def _standardise(values: Floats) -> tuple[Floats, Floats]:
    """Return the mean and the scale of each statistic, [S] each."""
    scale = values.std(axis=0)
    smallest = max(_MIN_RELATIVE_STD * float(np.median(scale)), float(np.finfo(np.float32).eps))
    return values.mean(axis=0), np.maximum(scale, smallest)


def _covariance(differences: Floats) -> Floats:
    """Return the covariance [D, D] of differences from a mean [N, D], by Ledoit-Wolf shrinkage.

    It is never singular.
    """
    shrunk: Floats = ledoit_wolf(differences, assume_centered=True)[0]
    return shrunk + _MIN_VARIANCE * np.eye(len(shrunk))


def _inverse_root(covariance: Floats) -> Floats:
    """Return W with W @ W.T the inverse of a covariance [D, D]."""
    root: Floats = np.linalg.inv(np.linalg.cholesky(covariance)).T
    return root


def _whitening(values: Floats) -> _Affine:
    """Return the map onto axes on which the covariance of points [N, D] is the identity."""
    mean, scale = _standardise(values)
    axes = _inverse_root(_covariance((values - mean) / scale)) / scale[:, np.newaxis]
    return _Affine(axes, -mean @ axes)


def _class_projections(
    values: Floats, labels: NDArray[np.int64]
) -> tuple[_Affine, _Affine, _Affine]:
    """Return what the first two distances are computed from, for points [N, S] of C classes.

    Let y be the standardised point, V the covariance within the classes, shrunk (Ledoit & Wolf
    2004), and M [C, D] the means of the classes, each times the root of its share. Then the
    covariance of all images is V + M.T @ M, and by Woodbury's identity the squared length of y by V
    is that by V + M.T @ M plus |A.T @ y|^2, with C columns in A. So the second distance needs only
    C + C numbers beside the D of the first.

    Returns:
        the D whitened numbers, the A.T @ y, and for each class the linear function that is to be
        subtracted: the nearest class has the largest.
    """
    mean, scale = _standardise(values)
    points = (values - mean) / scale
    basis = _principal_components(points)
    points = points @ basis
    classes, places = np.unique(labels, return_inverse=True)
    means = np.array([points[labels == label].mean(axis=0) for label in classes])
    within = _covariance(points - means[places])
    weighted = means * np.sqrt(np.bincount(places) / len(labels))[:, np.newaxis]
    whiten = _inverse_root(within + weighted.T @ weighted)
    solved = np.linalg.solve(within, weighted.T)  # [D, C]
    separate = solved @ _inverse_root(np.eye(len(classes)) + weighted @ solved)
    linear = 2 * np.linalg.solve(within, means.T)
    constant = -np.vecdot(means, np.linalg.solve(within, means.T).T)
    to_points = basis / scale[:, np.newaxis]
    axes = [to_points @ each for each in (whiten, separate, linear)]
    offsets = [-mean @ each for each in axes]
    return (
        _Affine(axes[0], offsets[0]),
        _Affine(axes[1], offsets[1]),
        _Affine(axes[2], offsets[2] + constant),
    )


def _principal_components(points: Floats) -> Floats:
    """Return a basis [S, D] of the points; the identity for up to MAX_DIMENSIONS statistics."""
    width = points.shape[1]
    if width <= MAX_DIMENSIONS:
        return np.eye(width)
    count = min(MAX_DIMENSIONS, len(points) - 1)
    basis: Floats = PCA(count, random_state=_SEED).fit(points).components_.T
    return basis


def _surprisal(distances: Floats) -> tuple[Floats, Floats, float]:
    """Approximate -ln p of a distance by a piecewise linear function.

    Up to the last of _QUANTILES it passes through the quantiles of the `distances`, [N]; beyond it
    grows by 1 for each mean excess over the quantile _TAIL, up to _MAX_SURPRISAL.

    Returns:
        the knots [Q], the change of the slope at each [Q], and the distance of the largest value.
    """
    knots = np.quantile(distances, _QUANTILES)
    # Equal quantiles, of a distance that hardly varies, would have an infinite slope between them.
    step = max(float(np.ptp(distances)), 1.0) * 1e-6
    knots = np.maximum.accumulate(knots + step * np.arange(len(knots)))
    heights = -np.log1p(-np.array(_QUANTILES))
    start = np.quantile(distances, _TAIL)
    excess = max(float((distances[distances >= start] - start).mean()), step)
    slopes = np.append(np.diff(heights) / np.diff(knots), 1 / excess)
    limit = float(knots[-1] + (_MAX_SURPRISAL - heights[-1]) * excess)
    return knots, np.diff(slopes, prepend=0), limit
