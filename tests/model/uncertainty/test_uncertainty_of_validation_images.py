"""The distributions over the validation images, and histograms of them."""

from pathlib import Path

import numpy as np
import pytest

from model.bundle.store import open_bundle
from model.uncertainty.uncertainty_of_validation_images import (
    METRIC,
    ValidationDistributions,
    bucket_shares,
    typicality_shares,
)

EDGES = (0.001, 0.01, 0.1, 0.5, 1, 2)


@pytest.fixture(scope="module")
def distributions(bundle_folder: Path) -> ValidationDistributions:
    """Those of a bundle that was trained and exported."""
    found = ValidationDistributions.read(open_bundle(bundle_folder).manifest.metrics)
    assert found is not None
    return found


def test_exported_bundle_has_the_distributions_of_all_validation_images(
    distributions: ValidationDistributions, bundle_folder: Path
) -> None:
    calibration = open_bundle(bundle_folder).manifest.calibration
    assert calibration is not None
    assert distributions.images == calibration.images
    assert sum(distributions.set_sizes or ()) == calibration.images
    entropy, information = distributions.predictive_entropy, distributions.mutual_information
    for quantiles in (entropy, information):
        assert list(quantiles) == sorted(quantiles)
    assert all(each <= total for each, total in zip(information, entropy, strict=True))


def test_shares_of_quantiles_are_those_of_the_values() -> None:
    values = np.random.default_rng(0).exponential(size=10_000)
    quantiles = np.quantile(values, np.linspace(0, 1, 101)).tolist()
    exact = np.histogram(values, [0, *EDGES, np.inf])[0] / len(values)
    shares = bucket_shares(quantiles, EDGES)
    assert shares.sum() == pytest.approx(1)
    np.testing.assert_allclose(shares, exact, atol=0.01)


def test_shares_of_set_sizes_are_counts(distributions: ValidationDistributions) -> None:
    changed = distributions.model_copy(update={"set_sizes": (6, 3, 0, 1)})
    shares = changed.set_size_shares((0, 1, 2, 3, 4, 5))
    assert shares is not None
    np.testing.assert_allclose(shares, [0, 0.6, 0.3, 0, 0.1, 0, 0])
    assert changed.model_copy(update={"set_sizes": None}).set_size_shares((0, 1)) is None


@pytest.mark.parametrize("images", [100, 179, 5_000])
def test_typicality_is_spread_evenly_over_its_values(images: int) -> None:
    values = np.arange(1, images + 2) / (images + 1)
    edges = (0.001, 0.01, 0.05, 0.5, 1)
    exact = [(values <= edge + 1e-12).mean() for edge in edges]
    shares = typicality_shares(images, edges)
    np.testing.assert_allclose(np.cumsum(shares)[:-1], exact)
    assert shares.sum() == 1


@pytest.mark.parametrize(
    "metrics",
    [{}, {METRIC: None}, {METRIC: {"images": 3}}, {METRIC: "text"}],
)
def test_metrics_without_whole_distributions_have_none(metrics: dict[str, object]) -> None:
    assert ValidationDistributions.read(metrics) is None


def test_distributions_with_a_number_that_is_not_finite_are_none(
    distributions: ValidationDistributions,
) -> None:
    damaged = distributions.model_dump()
    damaged["predictive_entropy"] = [float("nan")] * 101
    assert ValidationDistributions.read({METRIC: damaged}) is None
