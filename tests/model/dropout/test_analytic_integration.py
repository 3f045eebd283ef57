import numpy as np
import pytest
from scipy.stats import norm

from model.dropout.analytic_integration import QMC_POINTS, _normal_points, _primes, normal_logits
from model.uncertainty.uncertainty_measures import softmax
from tests.sample_summaries import summarise_points


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_normal_logits_have_the_mean_and_covariance_of_dropout(p: float) -> None:
    generator = np.random.default_rng(0)
    terms = generator.normal(size=(3, 40, 5)).astype(np.float32)
    bias = generator.normal(size=5).astype(np.float32)
    points = normal_logits(terms, bias, p)
    assert points.shape == (3, QMC_POINTS, 5)
    for image in range(3):
        mean = terms[image].sum(axis=0) + bias
        exact = p / (1 - p) * terms[image].T @ terms[image]
        scale = np.sqrt(np.diag(exact))
        np.testing.assert_allclose(points[image].mean(axis=0), mean, atol=1e-5)
        covariance = np.cov(points[image].T, bias=True)
        assert (np.abs(covariance - exact) < 1e-5 * np.outer(scale, scale)).all()


def test_normal_points_have_normal_marginals() -> None:
    quantiles = norm.cdf(np.sort(_normal_points(10), axis=0))
    even = (np.arange(QMC_POINTS)[:, np.newaxis] + 0.5) / QMC_POINTS
    assert np.abs(quantiles - even).max() < 0.06


def test_normal_points_work_for_a_thousand_classes() -> None:
    points = _normal_points(1_000)
    assert points.shape == (QMC_POINTS, 1_000)
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(points.std(axis=0), 1, atol=0.15)


@pytest.mark.parametrize("count", [1, 2, 6, 100, 1_000])
def test_primes_are_the_first_primes(count: int) -> None:
    least = [not any(each % low == 0 for low in range(2, each)) for each in range(2, 600)]
    expected = [each for each, prime in enumerate(least, start=2) if prime]
    assert _primes(count).tolist()[:100] == expected[:count][:100]
    assert len(_primes(count)) == count


def test_analytic_without_dropout_equals_the_softmax() -> None:
    terms = np.random.default_rng(1).normal(size=(2, 9, 4)).astype(np.float32)
    result = summarise_points(normal_logits(terms, np.zeros(4, np.float32), p=0.0))
    plain = softmax(terms.sum(axis=1))
    np.testing.assert_allclose(result.mean_probabilities, plain, atol=1e-6)
    assert (result.mutual_information == 0).all()
    assert np.isnan(result.standard_error).all()


def test_analytic_is_more_accurate_than_64_independent_samples() -> None:
    generator = np.random.default_rng(2)
    features = np.maximum(generator.normal(size=(20, 96)), 0)
    weights = generator.normal(size=(96, 10)) * 0.3
    terms = features[..., np.newaxis] * weights

    def sampled(samples: int) -> np.ndarray:
        masks = 2.0 * (generator.random((samples, 96)) < 0.5)
        probabilities = softmax(np.einsum("tf,nfk->ntk", masks, terms, optimize=True))
        return np.asarray(probabilities.mean(axis=1))

    truth = np.mean([sampled(5_000) for _ in range(10)], axis=0)
    answer = summarise_points(
        normal_logits(terms.astype(np.float32), np.zeros(10, np.float32), 0.5)
    )
    ours = np.square(answer.mean_probabilities - truth).mean()
    theirs = np.mean([np.square(sampled(64) - truth).mean() for _ in range(20)])
    assert ours < theirs / 4
