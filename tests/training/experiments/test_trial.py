import math

import pytest
import torch

from training.data.dataset import DataSet
from training.experiments.trial import Outcome, Trial, measure, run
from training.experiments.trial_runner import Lab


@pytest.fixture
def digits(lab: Lab) -> DataSet:
    return lab.data("digits")


def changed(trial: Trial, **fields: object) -> Trial:
    return Trial.model_validate(trial.model_dump() | fields)


def test_the_same_trial_has_the_same_outcome_and_another_seed_another(
    small: Trial, digits: DataSet
) -> None:
    first, network = run(small, digits)
    assert run(small, digits)[0] == first
    assert run(changed(small, seed=1), digits)[0].checks != first.checks
    loss, error = measure(network, digits.validation)
    assert (loss, error) == (first.last.validation_loss, first.last.validation_error)


def test_a_trial_learns_and_its_checks_say_when(small: Trial, digits: DataSet) -> None:
    outcome, network = run(changed(small, checks_per_epoch=3), digits)
    epochs = [check.epoch for check in outcome.checks]
    assert epochs[0] == 0
    assert epochs == sorted(epochs)
    assert len(epochs) == 1 + 6
    assert outcome.checks[0].train_error > 0.7
    assert outcome.last.train_error < 0.2
    assert not outcome.diverged
    assert outcome.test_error is None
    assert [layer.name for layer in outcome.health] == ["dense 1", "dense 2"]
    assert list(outcome.gradient_norms) == ["dense 1", "dense 2", "output"]
    assert not network.training


def test_a_trial_stops_at_its_target(small: Trial, digits: DataSet) -> None:
    outcome, _ = run(changed(small, epochs=20, stop_at_train_error=0.5), digits)
    assert outcome.last.train_error <= 0.5
    assert all(check.train_error > 0.5 for check in outcome.checks[:-1])
    assert outcome.last.epoch < 20


def test_a_trial_that_runs_away_is_stopped_and_survives_json(small: Trial, digits: DataSet) -> None:
    outcome, _ = run(changed(small, learning_rate=1e6, epochs=20), digits)
    assert outcome.diverged
    assert outcome.last.epoch < 20
    again = Outcome.model_validate_json(outcome.model_dump_json())
    assert math.isnan(again.last.train_loss) or math.isinf(again.last.train_loss)


def test_killed_units_are_dead_before_the_first_step(small: Trial, digits: DataSet) -> None:
    outcome, _ = run(changed(small, killed_share=0.5, killing_bias=-1000.0), digits)
    assert outcome.checks[0].dead >= 24
    assert outcome.last.dead >= 24  # without a slope, nothing brings them back
    assert run(small, digits)[0].checks[0].dead < 8


def test_a_shock_lasts_one_epoch(small: Trial, digits: DataSet) -> None:
    calm = changed(small, learning_rate=1e-9)
    shocked, _ = run(changed(calm, shock_rate=0.1), digits)
    errors = [check.train_error for check in shocked.checks]
    assert errors[1] < errors[0] - 0.2
    assert errors[2] == pytest.approx(errors[1], abs=0.02)
    assert run(calm, digits)[0].last.train_error == pytest.approx(errors[0], abs=0.02)


def test_max_norm_and_both_dropouts_reach_the_network(small: Trial, digits: DataSet) -> None:
    trial = changed(small, max_norm=0.5, input_dropout=0.2, dropout=0.4)
    _, network = run(trial, digits)
    for hidden in network.hidden_layers():
        assert float(hidden.layer.weight.detach().norm(dim=1).max()) <= 0.5 + 1e-5
    rates = [m.p for m in network.modules() if isinstance(m, torch.nn.Dropout)]
    assert rates == [0.2, 0.4, 0.4]


def test_the_rate_can_fall_to_zero(small: Trial, digits: DataSet) -> None:
    falling = changed(small, schedule="linear")
    assert run(falling, digits)[0].checks != run(small, digits)[0].checks


def test_the_test_images_are_measured_only_when_asked(small: Trial, digits: DataSet) -> None:
    outcome, network = run(changed(small, tested=True), digits)
    assert (outcome.test_loss, outcome.test_error) == measure(network, digits.test)


def test_four_convolutions_train(digits: DataSet) -> None:
    trial = Trial(
        data="digits",
        network="convolutions",
        widths=(16, 16, 32, 32),
        learning_rate=0.03,
        momentum=0.9,
        epochs=3,
    )
    outcome, network = run(trial, digits)
    assert outcome.last.train_error < 0.4
    assert [hidden.units for hidden in network.hidden_layers()] == [16, 16, 32, 32]
