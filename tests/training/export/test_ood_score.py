"""The fitted score, on statistics whose distribution is known."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA

from training.export import ood_score
from training.export.ood_score import (
    DISTANCES,
    MAX_DIMENSIONS,
    MAX_RANK,
    WEIGHTS,
    OodScore,
    fit_ood_score,
)

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]
Labels = NDArray[np.int64]

CLASSES, WIDTH, PIXELS = 3, 6, 2
WIDE = 88
MIN_NOISE = 1e-3
"""Is added to the variance of every standardised statistic."""


def draw(
    count: int, seed: int, width: int = WIDTH, classes: int = CLASSES
) -> tuple[Floats32, Floats32, Labels]:
    """Draw statistics [N, width] that are normal in each class, logits, and the classes."""
    fixed = np.random.default_rng(99)
    mixing, centres = fixed.normal(size=(width, width)), 4 * fixed.normal(size=(classes, width))
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    statistics = generator.normal(size=(count, width)) @ mixing + centres[labels]
    logits = generator.normal(size=(count, classes)) + 5 * np.eye(classes)[labels]
    return statistics.astype(np.float32), logits.astype(np.float32), labels


@pytest.fixture(scope="module")
def fitted() -> OodScore:
    return fit_ood_score(*draw(4_000, seed=0), PIXELS)


def fitted_rows(count: int) -> Labels:
    """Return the rows of `count` images that the covariances are fitted to; see _HELD_OUT_SHARE."""
    rows: Labels = np.random.Generator(np.random.PCG64(0)).permutation(count)[round(count / 4) :]
    return rows


def distance(score: OodScore, name: str, statistics: Floats32, logits: Floats32) -> Floats:
    """Return one of DISTANCES [N], by a score that consists of nothing else."""
    far = 2.0**20  # below every distance, so that none is clipped at the knot
    only = np.array([[float(each == name)] for each in DISTANCES], np.float32)
    bare = replace(
        score,
        knots=np.full((4, 1), -far, np.float32),
        slopes=only,
        limits=np.full(4, np.inf, np.float32),
    )
    return -bare.score(statistics, logits) - far


def mahalanobis(differences: Floats, covariance: Floats) -> Floats:
    """Return the squared distance of each row of [N, D], float64 [N]."""
    squares: Floats = np.vecdot(differences, np.linalg.solve(covariance, differences.T).T)
    return squares


def shrunk(points: Floats) -> Floats:
    """Return the shrunk covariance of centred points [N, D], and the least noise, [D, D]."""
    covariance: Floats = ledoit_wolf(points, assume_centered=True)[0]
    return covariance + MIN_NOISE * np.eye(len(covariance))


@pytest.mark.parametrize("width", [WIDTH, 40, WIDE], ids=["few", "many", "wide"])
def test_distances_are_mahalanobis_distances_by_their_definition(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The total covariance is that within the classes and that of their means, added.

    The expected density is by scikit-learn's own precision matrix of probabilistic PCA. `WIDE` is
    more than the largest number of dimensions, which is lowered: 512 would take 14 seconds.
    """
    monkeypatch.setattr(ood_score, "MAX_DIMENSIONS", WIDE - 8)
    monkeypatch.setattr(ood_score, "MAX_RANK", WIDE // 4)
    arguments = draw(4_000, 0, width)
    score = fit_ood_score(*arguments, PIXELS)
    rows = fitted_rows(len(arguments[2]))
    train, labels = arguments[0][rows].astype(np.float64), arguments[2][rows]
    mean, scale = train.mean(axis=0), train.std(axis=0)
    points = (train - mean) / scale
    pca = PCA(min(WIDE // 4, width // 2), random_state=0).fit(points)

    basis = np.eye(width)
    if width == WIDE:
        basis = PCA(WIDE - 8, random_state=0).fit(points).components_.T
    reduced = points @ basis
    means = np.array([reduced[labels == label].mean(axis=0) for label in range(CLASSES)])
    within = shrunk(reduced - means[labels])
    weighted = means * np.sqrt(np.bincount(labels) / len(labels))[:, np.newaxis]
    total = within + weighted.T @ weighted

    statistics, logits, _ = draw(200, 1, width)
    statistics[100:] *= 3  # some far away
    new = (statistics.astype(np.float64) - mean) / scale
    nearest = np.min([mahalanobis(new @ basis - each, within) for each in means], axis=0)
    expected = {
        "density": np.vecdot(new, new @ pca.get_precision()),
        "relative": nearest - mahalanobis(new @ basis, total),
        "pixels": mahalanobis(new[:, :PIXELS], shrunk(points[:, :PIXELS])),
        "logit": -logits.max(axis=1).astype(np.float64),
    }
    for name in DISTANCES:
        found = distance(score, name, statistics, logits)
        size = np.abs(expected[name]).max()
        np.testing.assert_allclose(found, expected[name], rtol=1e-4, atol=1e-5 * size, err_msg=name)


def test_density_ranks_images_by_their_likelihood_in_probabilistic_pca() -> None:
    arguments = draw(2_000, 0, 20)
    score = fit_ood_score(*arguments, PIXELS)
    train = arguments[0][fitted_rows(2_000)].astype(np.float64)
    mean, scale = train.mean(axis=0), train.std(axis=0)
    pca = PCA(10, random_state=0).fit((train - mean) / scale)
    statistics, logits, _ = draw(300, 1, 20)
    likelihood = pca.score_samples((statistics - mean) / scale)
    density = distance(score, "density", statistics, logits)
    # ln p is half the squared distance below a constant.
    constants = likelihood + density / 2
    np.testing.assert_allclose(constants, constants[0], atol=0.01)


def test_score_is_0_at_most_and_lower_for_images_unlike_the_training_images(
    fitted: OodScore,
) -> None:
    statistics, logits, _ = draw(2_000, seed=2)
    usual = fitted.score(statistics, logits)
    assert usual.max() <= 0
    usual_limit = np.quantile(usual, 0.01)
    between = fitted.score(statistics + statistics[::-1], logits)
    assert (between < usual_limit).mean() > 0.5
    assert (fitted.score(10 * statistics, logits) < usual_limit).all()


def ray(statistics: Floats32, steps: Sequence[float], seed: int) -> Floats32:
    """Return points that move from the mean of statistics in a random direction [steps, D].

    steps: in standard deviations.
    """
    direction = np.random.default_rng(seed).normal(size=statistics.shape[1])
    direction *= statistics.std(axis=0) / np.linalg.norm(direction)
    points: Floats = statistics.mean(axis=0) + np.array(steps)[:, np.newaxis] * direction
    return points.astype(np.float32)


@given(seed=st.integers(0, 1_000))
def test_score_is_the_least_far_from_all_classes_in_any_direction(
    fitted: OodScore, seed: int
) -> None:
    train, logits, _ = draw(4_000, seed=0)
    least_typical = fitted.score(train, logits).min()
    points = ray(train, [20, 50, 1e3, 1e5], seed)
    scores = fitted.score(points, np.repeat(logits[:1], len(points), axis=0))
    assert (scores < least_typical).all()
    of_logit = fitted.score(points[-1:], logits[:1] - 1e6) - scores[-1]
    assert scores[-1] == pytest.approx(-20 * sum(WEIGHTS) - of_logit[0], abs=0.01)


@given(seed=st.integers(0, 1_000))
def test_score_of_a_single_class_falls_as_a_point_moves_away(seed: int) -> None:
    """With several classes it may rise on the way, where the point comes near another class."""
    train, logits, labels = draw(2_000, seed=12, classes=1)
    score = fit_ood_score(train, logits, labels, PIXELS)
    points = ray(train, [0, 0.5, 1, 2, 3, 5, 10, 20, 1e3], seed)
    scores = score.score(points, np.repeat(logits[:1], len(points), axis=0))
    assert (np.diff(scores) <= 1e-6).all()
    assert scores[-1] < scores[0] - 10


def test_score_falls_with_the_largest_logit(fitted: OodScore) -> None:
    statistics, _, _ = draw(1, seed=3)
    logits = np.zeros((50, CLASSES), np.float32)
    logits[:, 1] = np.linspace(10, 0, 50)
    scores = fitted.score(np.repeat(statistics, 50, axis=0), logits)
    assert (np.diff(scores) <= 0).all()
    assert scores[-1] < scores[0] - 1


def test_each_distance_counts_by_its_surprisal() -> None:
    """The largest logit is minus an exponential number e, whose -ln p is e itself."""
    generator = np.random.default_rng(4)
    count = 40_000
    statistics, logits, labels = draw(count, seed=4)
    logits[:] = -100
    logits[:, 0] = -generator.exponential(size=count)
    score = fit_ood_score(statistics, logits, labels, PIXELS)
    exponential = np.linspace(0, 12, 200)
    logits = np.full((200, CLASSES), -100, np.float32)
    logits[:, 0] = -exponential
    scores = score.score(np.repeat(statistics[:1], 200, axis=0), logits)
    surprisal = (scores[0] - scores) / WEIGHTS[DISTANCES.index("logit")]
    assert (np.diff(surprisal) >= 0).all()
    np.testing.assert_allclose(surprisal, exponential, rtol=0.06, atol=0.03)


def test_slopes_of_the_surprisal_are_never_negative(fitted: OodScore) -> None:
    assert (fitted.slopes.astype(np.float64).cumsum(axis=1) >= -1e-6).all()
    assert (np.diff(fitted.knots, axis=1) > 0).all()
    assert (fitted.limits > fitted.knots[:, -1]).all()


def test_surprisal_of_any_distance_is_limited() -> None:
    score = fit_ood_score(*draw(4_000, seed=0), PIXELS)
    statistics, logits, _ = draw(1, seed=0)
    farthest = score.score(1e6 * statistics, logits - 1e6)
    assert farthest == pytest.approx(-20 * sum(WEIGHTS), rel=1e-3)


def test_held_out_images_have_a_mean_surprisal_of_about_1() -> None:
    """As -ln p has where p is uniform; of each distance, weighted."""
    score = fit_ood_score(*draw(8_000, seed=5), PIXELS)
    scores = score.score(*draw(8_000, seed=6)[:2])
    assert -scores.mean() == pytest.approx(sum(WEIGHTS), rel=0.05)


@pytest.mark.parametrize("constant", [1, WIDTH - 1, WIDTH], ids=["one", "all but one", "all"])
def test_constant_statistics_are_accepted(constant: int) -> None:
    """As dead units have, and images that all have a black border."""
    statistics, logits, labels = draw(400, seed=7)
    statistics[:, WIDTH - constant :] = 0.25
    score = fit_ood_score(statistics, logits, labels, PIXELS)
    scores = score.score(statistics, logits)
    assert np.isfinite(scores).all()
    revived = statistics.copy()
    revived[:, -1] += 1
    assert (score.score(revived, logits) < scores).all()


@pytest.mark.parametrize("varying", [0, 1, MAX_DIMENSIONS])
def test_constant_statistics_are_accepted_where_there_are_many(varying: int) -> None:
    width = MAX_DIMENSIONS + 88
    statistics, logits, labels = draw(400, seed=13, width=width)
    statistics[:, varying:] = 0.25
    score = fit_ood_score(statistics, logits, labels, PIXELS)
    scores = score.score(statistics, logits)
    assert np.isfinite(scores).all()
    assert (score.score(statistics + 1e6, logits) < scores).all()


def test_constant_logits_are_accepted() -> None:
    statistics, logits, labels = draw(400, seed=8)
    score = fit_ood_score(statistics, np.ones_like(logits), labels, PIXELS)
    assert np.isfinite(score.score(statistics, logits)).all()


@pytest.mark.parametrize(
    ("count", "width", "rank"),
    [
        (40, 100, 20),
        (60, MAX_DIMENSIONS + 88, 30),
        (400, MAX_DIMENSIONS + 88, MAX_RANK),
    ],
)
def test_more_statistics_than_images_are_accepted(count: int, width: int, rank: int) -> None:
    statistics, logits, labels = draw(count, seed=9, width=width)
    score = fit_ood_score(statistics, logits, labels, PIXELS)
    assert score.sizes == (rank, 1, 1, PIXELS)
    usual = score.score(statistics, logits)
    assert np.isfinite(usual).all()
    assert np.median(score.score(10 * statistics, logits)) < np.median(usual)


@pytest.mark.parametrize("count", [4, 6, 12, 30])
def test_few_images_and_classes_with_a_single_image_are_accepted(count: int) -> None:
    statistics, logits, _ = draw(count, seed=10, classes=count)
    score = fit_ood_score(statistics, logits, np.arange(count), PIXELS)
    assert np.isfinite(score.score(statistics, logits)).all()


def test_few_images_are_judged_by_density_and_pixels_alone() -> None:
    statistics, logits, labels = draw(60, seed=12, width=100)
    score = fit_ood_score(statistics, logits, labels, PIXELS)
    is_used = (score.slopes != 0).any(axis=1)
    assert dict(zip(DISTANCES, is_used, strict=True)) == {
        "density": True,
        "relative": False,
        "pixels": True,
        "logit": False,
    }


def test_fit_depends_on_nothing_but_its_arguments() -> None:
    arguments: tuple[Any, ...] = (*draw(300, seed=11), PIXELS)
    one, other = fit_ood_score(*arguments), fit_ood_score(*arguments)
    for name in ("projection", "offset", "knots", "slopes", "limits"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
