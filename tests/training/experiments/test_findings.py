"""The sentences that experiments write of their results, whatever the results are."""

import math
from collections.abc import Sequence

import pytest

from training.experiments.activation_training_speed import Plan, compare_tanh, format_epochs
from training.experiments.active_learning_labels import describe_labels
from training.experiments.averaging_thinned_networks import Averages, describe_averages
from training.experiments.dropout_test_error import describe_loss
from training.experiments.dying_relu import describe_deaths
from training.experiments.trial import Check, TrialResult

PLAN = Plan("digits", "digits", epochs=4, checks_per_epoch=1)


def result(**measured: Sequence[float]) -> TrialResult:
    """Return a result with one check an epoch, which measured these values of its fields."""
    others = {"train_loss": 1, "train_error": 0.5, "validation_loss": 1, "validation_error": 0.5}
    checks = [
        Check.model_validate(
            {"epoch": epoch, "dead": 0, **others, **dict(zip(measured, values, strict=True))}
        )
        for epoch, values in enumerate(zip(*measured.values(), strict=True))
    ]
    return TrialResult(
        checks=tuple(checks),
        diverged=False,
        test_error=0.1,
        test_loss=1.0,
        health=(),
        gradient_norms={},
    )


REACHED = result(train_error=(0.9, 0.25))
LATER = result(train_error=(0.9, 0.5, 0.25))
MISSED = result(train_error=(0.9, 0.6, 0.5, 0.45, 0.4))
GIVEN_UP = result(train_error=(0.9, 0.9, 0.85))


def test_epochs_to_the_target_say_which_seeds_did_not_reach_it_and_which_were_given_up() -> None:
    assert format_epochs([REACHED, LATER], PLAN) == "1.50 ± 0.71"
    assert format_epochs([REACHED, MISSED], PLAN) == "not within 4 (1 of 2 seeds)"
    assert format_epochs([REACHED, MISSED, GIVEN_UP], PLAN) == (
        "not within 4 (2 of 3 seeds, 1 given up before)"
    )


def test_tanh_is_compared_with_relu_only_where_both_reached_the_target() -> None:
    assert compare_tanh([LATER], [REACHED], PLAN) == "tanh takes 2.00 times as many epochs as ReLU"
    assert compare_tanh([GIVEN_UP], [REACHED], PLAN) == (
        "tanh: not within 4 (1 of 1 seeds, 1 given up before); ReLU: 1.00"
    )


def test_average_of_fewer_networks_may_be_above_or_below_that_of_the_most() -> None:
    losses = {2: [(0.1, 0.5)], 16: [(0.1, 0.39)], 64: [(0.1, 0.4)]}
    averages = Averages(scaled=(0.1, 0.45), sampled={"independent": losses, "served": losses})
    assert describe_averages((2, 16, 64), averages) == (
        "Weight scaling has an NLL of 0.4500; the average of 64 networks thinned by orthogonal "
        "masks 0.4000, below it. From that the average at T = 2 differs by +0.1000 with "
        "independent masks and +0.1000 with orthogonal ones; at T = 16, by -0.01000 and -0.01000."
    )


@pytest.mark.parametrize(
    ("losses", "sentence"),
    [
        ((2.0, 0.5, 0.7), "goes from its least, 0.500 after epoch 1, to 0.700"),
        ((2.0, 0.7, 0.5), "has its least value, 0.500, at the end"),
    ],
)
def test_validation_loss_rises_again_or_is_least_at_the_end(
    losses: tuple[float, ...], sentence: str
) -> None:
    assert describe_loss(result(validation_loss=losses).checks) == sentence


def test_dead_units_are_means_over_the_seeds() -> None:
    repeats = [result(dead=(0, 4, 1)), result(dead=(0, 8, 3))]
    assert describe_deaths({0.0: repeats}) == (
        "with slope 0 the most that are dead at once are 6, at last 2, and the test error is "
        "10.00 %"
    )


def test_labels_say_with_how_many_seeds_they_were_too_few() -> None:
    labels: dict[str, list[float]] = {
        "some": [100, math.nan],
        "random": [300, 500],
        "none": [math.nan, math.nan],
        "BALD": [100, 200],
    }
    assert describe_labels(labels) == (
        "BALD 150, random 400, some more than it was given with 1 of 2 seeds, none more than it "
        "was given"
    )
