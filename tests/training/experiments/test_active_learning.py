import itertools
import math

import numpy as np
import pytest
import torch

from training.data.dataset import Dataset
from training.experiments.active_learning import (
    ActiveCheck,
    ActiveResult,
    ActiveTrial,
    choose_images,
    run_active_trial,
    train_network,
)
from training.experiments.active_learning_labels import format_ratio, labels_to_error
from training.experiments.trial_runner import TrialRunner
from training.network.classifier import Classifier


@pytest.fixture
def digits(runner: TrialRunner) -> Dataset:
    return runner.dataset("digits")


@pytest.fixture
def trial() -> ActiveTrial:
    return ActiveTrial(
        data="digits",
        method="bald",
        max_labels=40,
        target_error=0.0,
        pool_images=50,
        samples=8,
        training_steps=5,
    )


@pytest.fixture
def network(trial: ActiveTrial, digits: Dataset) -> Classifier:
    torch.manual_seed(0)
    return train_network(trial, digits, np.arange(100), 0.1)


def with_fields(trial: ActiveTrial, **fields: object) -> ActiveTrial:
    return ActiveTrial.model_validate(trial.model_dump() | fields)


def test_active_trial_is_deterministic_and_ends_at_the_most_labels(
    trial: ActiveTrial, digits: Dataset
) -> None:
    result = run_active_trial(trial, digits)
    assert [check.labels for check in result.checks] == [20, 40]
    assert run_active_trial(trial, digits) == result
    assert run_active_trial(with_fields(trial, seed=1), digits) != result


def test_active_trial_ends_at_its_target(trial: ActiveTrial, digits: Dataset) -> None:
    result = run_active_trial(with_fields(trial, target_error=1.0), digits)
    assert [check.labels for check in result.checks] == [20]


def test_every_method_chooses_distinct_images_and_not_all_the_same(
    trial: ActiveTrial, digits: Dataset, network: Classifier
) -> None:
    pool = digits.train.take(np.arange(100, 200))
    chosen = {}
    for method, sampling in (
        ("random", "orthogonal"),
        ("entropy", "none"),
        ("bald", "independent"),
        ("bald", "orthogonal"),
        ("batchbald", "orthogonal"),
    ):
        arm = with_fields(trial, method=method, sampling=sampling)
        rows = choose_images(arm, network, pool, seed=3)
        assert len(set(rows.tolist())) == 10
        np.testing.assert_array_equal(choose_images(arm, network, pool, seed=3), rows)
        chosen[method, sampling] = frozenset(rows.tolist())
    pairs = itertools.combinations(chosen.values(), 2)
    assert sum(one != other for one, other in pairs) >= 9


def test_entropy_without_samples_is_that_of_weight_scaling(
    trial: ActiveTrial, digits: Dataset, network: Classifier
) -> None:
    pool = digits.train.take(np.arange(100, 200))
    arm = with_fields(trial, method="entropy", sampling="none")
    with torch.no_grad():
        logits = network(torch.from_numpy(pool.images).float() / 255)
    entropy = torch.special.entr(logits.softmax(dim=1)).sum(dim=1)
    expected = entropy.topk(10).indices.tolist()
    assert set(choose_images(arm, network, pool, seed=0).tolist()) == set(expected)


def test_labels_to_error_interpolates_the_learning_curve() -> None:
    checks = tuple(
        ActiveCheck(labels=labels, test_error=error)
        for labels, error in ((20, 0.5), (40, 0.2), (60, 0.1))
    )
    result = ActiveResult(checks=checks, prior_strength=0)
    assert labels_to_error(result, 0.15) == pytest.approx(50)
    assert math.isnan(labels_to_error(result, 0.05))


def test_ratio_is_a_bound_where_one_of_the_two_did_not_reach_the_error() -> None:
    assert format_ratio([100, 200], [200, 600], 400, 1000) == "2.50 ± 0.71"
    assert format_ratio([100, 200], [200, math.nan], 400, 1000) == "≥ 2.00"
    assert format_ratio([100, math.nan], [200, 900], 400, 1000) == "≤ 2.25"
    assert format_ratio([math.nan, math.nan], [200, 900], 400, 1000) == "≤ 2.25"
    assert format_ratio([100, math.nan], [200, math.nan], 400, 1000) == "-"
