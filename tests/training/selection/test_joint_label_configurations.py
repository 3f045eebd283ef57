import numpy as np
import pytest
from hypothesis import given, settings

from tests.training.selection.brute_force import joint_entropy, pools, random_pool
from training.selection.joint_label_configurations import LabelConfigurations, Probabilities

TOLERANCE = 1e-5
"""The products are summed in float32."""


def configurations(images: Probabilities, limit: int, seed: int = 0) -> LabelConfigurations:
    found = LabelConfigurations(images.shape[2], limit, np.random.default_rng(seed))
    for image in images:
        found.add(image)
    return found


@settings(max_examples=25)
@given(pools)
def test_enumerated_conditional_entropy_is_a_difference_of_joint_entropies(
    pool: Probabilities,
) -> None:
    chosen, others = pool[:3], pool[3:]
    found = configurations(chosen, limit=4**3).conditional_entropies(others)
    expected = [joint_entropy([*chosen, each]) - joint_entropy(chosen) for each in others]
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@settings(max_examples=25)
@given(pools)
def test_weights_and_posteriors_are_distributions(pool: Probabilities) -> None:
    for limit in (4, 4**3):
        found = configurations(pool[:3], limit)
        assert found.weights.sum() == pytest.approx(1)
        np.testing.assert_allclose(found.posteriors.sum(axis=1), 1, atol=TOLERANCE)
        expected = np.full(pool.shape[2], 1 / pool.shape[2])
        if limit == 4**3:  # the mean of the posteriors is the prior
            np.testing.assert_allclose(found.weights @ found.posteriors, expected, atol=TOLERANCE)


def test_drawn_configurations_estimate_what_enumerated_ones_compute() -> None:
    """The standard error of a mean over 17 * 242 = 4,114 draws is below ln 3 / 64 = .017 nats."""
    pool = random_pool(seed=1, images=12, classes=3, samples=32, sharpness=4)
    exact = configurations(pool[:5], limit=3**5).conditional_entropies(pool[5:])
    draws = [configurations(pool[:5], limit=242, seed=seed) for seed in range(17)]
    assert {len(each.weights) for each in draws} == {242}
    estimates = [each.conditional_entropies(pool[5:]) for each in draws]
    np.testing.assert_allclose(np.mean(estimates, axis=0), exact, atol=4 * 0.017)


def test_labels_that_no_sample_gives_leave_numbers() -> None:
    certain = np.zeros((3, 4), np.float32)
    certain[0] = 1
    found = configurations(np.stack([certain] * 3), limit=27)
    assert np.isfinite(found.posteriors).all()
    assert found.conditional_entropies(certain[np.newaxis]) == pytest.approx(0)
