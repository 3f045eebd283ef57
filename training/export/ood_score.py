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

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA

DISTANCES = ("density", "relative", "pixels", "logit")
WEIGHTS = (1.0, 1.0, 0.3, 0.4)
"""Of the -ln p of each distance in the score."""
WEIGHTS_OF_FEW_IMAGES = (1.0, 0.0, 1.0, 0.0)
"""The same, of fewer than MIN_IMAGES_PER_STATISTIC: they do not show what only a class's images
have, and beside a hundred directions that vary by chance blanks and noise are as near to a class
as its own images are (docs/experiments.md)."""
MIN_IMAGES_PER_STATISTIC = 4
MAX_RANK = 128
"""Directions in which the variance is estimated, see `_fit_density`. All of them were no better on
Fashion-MNIST, and take three times as many numbers."""
MAX_DIMENSIONS = 512
"""More statistics are projected onto their principal components to tell the classes apart."""
_HELD_OUT_SHARE = 0.25
"""Of the images: their distances give the p-values."""
_PARTS = 4
"""Of few images each of so many parts is held out once, and all are in the final fit."""
_QUANTILES = (0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
"""Of the held-out distances: between them -ln p is interpolated."""
_TAIL = 0.9
"""From this quantile on, distances are taken to be exponential, with their mean excess."""
_MAX_SURPRISAL = 20.0
"""The largest -ln p of a distance; one that is farther out counts no more."""
_MIN_RELATIVE_STD = 0.01
"""Statistics that hardly vary are scaled as if they varied by this share of the median."""
_MIN_NOISE = 1e-3
"""Least variance of a standardised statistic beside its share in what varies: so images that are
equal in many statistics, or the only ones of their class, have a covariance to divide by, and no
digit is lost in float32."""
_SEED = 0

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]


@dataclass(frozen=True)
class OodScore:
    """The fitted score of S statistics in C classes; the arrays are float32."""

    scale: Floats32
    """[S]: the statistics are multiplied by it."""
    shift: Floats32
    """[S], added to them: afterwards they have mean 0, and their noise has variance 1."""
    projection: Floats32
    """[S, M]: maps these to M numbers: those of `sizes`, one after the other."""
    offset: Floats32
    """[M], added to them."""
    sizes: tuple[int, int, int, int]
    """How many numbers are of the directions that vary most, separate the classes, are one for each
    class, and whiten the statistics of the pixels."""
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
        points = statistics.astype(np.float64) * self.scale + self.shift
        distances = _distances(points, points @ self.projection + self.offset, self.sizes, logits)
        clipped = np.minimum(distances, self.limits)[:, :, np.newaxis]
        total: Floats = (np.maximum(clipped - self.knots, 0) * self.slopes).sum(axis=(1, 2))
        return -total


def fit_ood_score(
    statistics: Floats32,
    logits: Floats32,
    labels: NDArray[np.int64],
    pixels: int,
) -> OodScore:
    """Fit the score to training images.

    Args:
        statistics: float32 [N, S], those of the pixels first.
        logits: float32 [N, K].
        labels: the true classes, int64 [N].
        pixels: how many of the S statistics are of the pixels.
    """
    values = statistics.astype(np.float64)
    few = len(labels) < MIN_IMAGES_PER_STATISTIC * statistics.shape[1]
    order = np.random.Generator(np.random.PCG64(_SEED)).permutation(len(labels))
    held_out, fitted = np.split(order, [max(1, round(_HELD_OUT_SHARE * len(labels)))])
    if few and len(labels) >= 2 * _PARTS:
        splits = [(part, np.setdiff1d(order, part)) for part in np.array_split(order, _PARTS)]
    else:
        splits = [(held_out, fitted)]
    parts = []
    for outside, inside in splits:
        maps = _fit_maps(values[inside], None if few else labels[inside], pixels)
        parts.append(maps.distances(values[outside], logits[outside]))
    if len(splits) > 1:
        maps = _fit_maps(values, None, pixels)
    distances = np.concatenate(parts)
    curves = [_surprisal(distances[:, index]) for index in range(len(DISTANCES))]
    knots, slopes, limits = (np.array(part) for part in zip(*curves, strict=True))
    weighted = slopes * np.array(WEIGHTS_OF_FEW_IMAGES if few else WEIGHTS)[:, np.newaxis]
    arrays = (maps.scale, maps.shift, maps.projection, maps.offset, knots, weighted, limits)
    scale, shift, projection, offset, knots, weighted, limits = (
        array.astype(np.float32) for array in arrays
    )
    return OodScore(scale, shift, projection, offset, maps.sizes, knots, weighted, limits)


@dataclass(frozen=True)
class _Maps:
    """What the distances are computed from, see `OodScore`; in float64."""

    scale: Floats
    shift: Floats
    projection: Floats
    offset: Floats
    sizes: tuple[int, int, int, int]

    def distances(self, values: Floats, logits: Floats32) -> Floats:
        """Return the DISTANCES [N, 4] of statistics [N, S] and logits [N, K]."""
        points = values * self.scale + self.shift
        return _distances(points, points @ self.projection + self.offset, self.sizes, logits)


def _fit_maps(values: Floats, labels: NDArray[np.int64] | None, pixels: int) -> _Maps:
    """Fit the distances to statistics [N, S], of which the first `pixels` are of the pixels.

    labels: int64 [N]; None: the relative distance is always 0, which saves most of the time.
    """
    mean, spread = _standardise(values)
    points = (values - mean) / spread
    noise, varying = _fit_density(points)
    if labels is None:
        separate = linear = np.zeros((len(mean), 1))
        constants = np.zeros(1)
    else:
        separate, linear, constants = _fit_classes(points, labels)
    whiten = np.zeros((len(mean), pixels))
    whiten[:pixels] = _whitening(points[:, :pixels])
    root = np.sqrt(noise)
    maps = (varying, root * separate, root * linear, root * whiten)
    first, second, third, fourth = (each.shape[1] for each in maps)
    offset = np.concatenate([np.zeros(first + second), constants, np.zeros(fourth)])
    scale = 1 / (spread * root)
    sizes = (first, second, third, fourth)
    return _Maps(scale, -mean * scale, np.concatenate(maps, axis=1), offset, sizes)


def _distances(
    points: Floats, numbers: Floats, sizes: tuple[int, int, int, int], logits: Floats32
) -> Floats:
    """Return the DISTANCES, [N, 4], from the scaled statistics [N, S] and their projection [N, M].

    The logits are float32 [N, K].
    """
    varying, separating, by_class, pixels = np.split(numbers, list(accumulate(sizes))[:-1], axis=1)
    density = np.vecdot(points, points) - np.vecdot(varying, varying)
    relative = np.vecdot(separating, separating) - np.maximum.reduce(by_class, axis=1)
    largest = np.maximum.reduce(logits, axis=1)
    return np.stack([density, relative, np.vecdot(pixels, pixels), -largest], axis=1)


def _standardise(values: Floats) -> tuple[Floats, Floats]:
    """Return the mean and the scale of each statistic, [S] each."""
    scale = values.std(axis=0)
    smallest = max(_MIN_RELATIVE_STD * float(np.median(scale)), float(np.finfo(np.float32).eps))
    return values.mean(axis=0), np.maximum(scale, smallest)


def _inverse_root(covariance: Floats) -> Floats:
    """Return W with W @ W.T the inverse of a covariance [D, D]."""
    root: Floats = np.linalg.inv(np.linalg.cholesky(covariance)).T
    return root


def _whitening(points: Floats) -> Floats:
    """Return axes [D, D] on which the covariance of points [N, D] is the identity.

    By Ledoit-Wolf shrinkage (2004) the covariance of equal points is no longer singular.
    """
    shrunk: Floats = ledoit_wolf(points, assume_centered=True)[0]
    return _inverse_root(shrunk + _MIN_NOISE * np.eye(len(shrunk)))


def _fit_density(points: Floats) -> tuple[float, Floats]:
    """Fit a normal distribution to standardised points [N, S] by probabilistic PCA.

    Its covariance is that of the points in at most MAX_RANK directions, and the noise times the
    identity in all others (Tipping & Bishop 1999).

    Returns:
        the noise, and axes Q [S, R] by which the inverse of the covariance is (I - Q @ Q.T)/noise.
    """
    rank = max(1, min(MAX_RANK, len(points) // 2, points.shape[1] // 2))
    if len(points) < points.shape[1]:
        variances, axes, rest = _components_of_few(points, rank)
    else:
        pca = _fit_pca(points, rank)
        variances, axes, rest = pca.explained_variance_, pca.components_.T, pca.noise_variance_
    noise = max(float(rest), _MIN_NOISE)
    kept = 1 - noise / np.maximum(variances, noise)
    return noise, axes * np.sqrt(kept)


def _components_of_few(points: Floats, rank: int) -> tuple[Floats, Floats, float]:
    """Return what scikit-learn's PCA gives of fewer points than dimensions, in a tenth of its time.

    The eigenvectors of the N x N scalar products are turned into those of the covariance.

    Args:
        points: [N, S].
        rank: number of components, less than N.

    Returns:
        the largest variances [rank], their axes [S, rank], and the mean of the N - rank others.
    """
    centred = points - points.mean(axis=0)
    eigenvalues, vectors = np.linalg.eigh(centred @ centred.T)
    descending = np.maximum(eigenvalues[::-1], 0)
    lengths = np.sqrt(np.maximum(descending[:rank], np.finfo(np.float64).tiny))
    axes = centred.T @ vectors[:, ::-1][:, :rank] / lengths
    variances = descending / max(len(points) - 1, 1)
    return variances[:rank], axes, float(variances[rank:].mean()) if rank < len(points) else 0.0


def _fit_classes(points: Floats, labels: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    """Return what the relative distance of standardised points y [N, S] is computed from.

    Let V be the covariance within the classes, shrunk (Ledoit & Wolf 2004), and M [C, S] the means
    of the classes, each times the root of its share. Then the covariance of all images is
    V + M.T @ M, and by Woodbury's identity the squared length of y by V is that by V + M.T @ M plus
    |A.T @ y|^2, with C columns in A. So the distance takes only C + C numbers.

    Returns:
        A [S, C]; and for each class a linear function, [S, C] and [C], that is to be subtracted:
        the nearest class has the largest.
    """
    basis = _principal_components(points)
    points = points @ basis
    classes, places = np.unique(labels, return_inverse=True)
    means = np.array([points[places == place].mean(axis=0) for place in range(len(classes))])
    within: Floats = ledoit_wolf(points - means[places], assume_centered=True)[0]
    within = within + _MIN_NOISE * np.eye(len(within))
    weighted = means * np.sqrt(np.bincount(places) / len(labels))[:, np.newaxis]
    solved = np.linalg.solve(within, weighted.T)
    separate = solved @ _inverse_root(np.eye(len(classes)) + weighted @ solved)
    linear = np.linalg.solve(within, means.T)
    return basis @ separate, basis @ (2 * linear), -np.vecdot(means, linear.T)


def _principal_components(points: Floats) -> Floats:
    """Return a basis [S, D] of the points; the identity for up to MAX_DIMENSIONS statistics."""
    width = points.shape[1]
    if width <= MAX_DIMENSIONS:
        return np.eye(width)
    count = min(MAX_DIMENSIONS, len(points) - 1)
    basis: Floats = _fit_pca(points, count).components_.T
    return basis


def _fit_pca(points: Floats, count: int) -> PCA:
    # Of equal points scikit-learn divides the variances by their sum, 0; the shares are not used.
    with np.errstate(invalid="ignore"):
        return PCA(count, random_state=_SEED).fit(points)


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
