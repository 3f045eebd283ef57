import math

import pytest
import torch

from training.data.dataset import Dataset
from training.experiments.trial import Trial, TrialResult, loss_and_error, run_trial
from training.experiments.trial_runner import TrialRunner


@pytest.fixture
def digits(runner: TrialRunner) -> Dataset:
    return runner.dataset("digits")


def with_fields(trial: Trial, **fields: object) -> Trial:
    return Trial.model_validate(trial.model_dump() | fields)


def test_trial_is_deterministic_in_its_seed(small: Trial, digits: Dataset) -> None:
    first, network = run_trial(small, digits)
    assert run_trial(small, digits)[0] == first
    assert run_trial(with_fields(small, seed=1), digits)[0].checks != first.checks
    loss, error = loss_and_error(network, digits.validation)
    assert (loss, error) == (first.last.validation_loss, first.last.validation_error)


def test_trial_learns_and_records_its_checks(small: Trial, digits: Dataset) -> None:
    result, network = run_trial(with_fields(small, checks_per_epoch=3), digits)
    epochs = [check.epoch for check in result.checks]
    assert epochs[0] == 0
    assert epochs == sorted(epochs)
    assert len(epochs) == 1 + 6
    assert result.checks[0].train_error > 0.7
    assert result.last.train_error < 0.2
    assert not result.diverged
    assert result.test_error is None
    assert [layer.name for layer in result.health] == ["dense 1", "dense 2"]
    assert list(result.gradient_norms) == ["dense 1", "dense 2", "output"]
    assert not network.training


def test_trial_stops_at_its_target(small: Trial, digits: Dataset) -> None:
    result, _ = run_trial(with_fields(small, epochs=20, stop_at_train_error=0.5), digits)
    assert result.last.train_error <= 0.5
    assert all(check.train_error > 0.5 for check in result.checks[:-1])
    assert result.last.epoch < 20


def test_diverged_trial_stops_and_survives_json(small: Trial, digits: Dataset) -> None:
    result, _ = run_trial(with_fields(small, learning_rate=1e6, epochs=20), digits)
    assert result.diverged
    assert result.last.epoch < 20
    again = TrialResult.model_validate_json(result.model_dump_json())
    assert math.isnan(again.last.train_loss) or math.isinf(again.last.train_loss)


def test_trial_starts_with_the_killed_units_dead(small: Trial, digits: Dataset) -> None:
    result, _ = run_trial(with_fields(small, killed_share=0.5, killing_bias=-1000.0), digits)
    assert result.checks[0].dead >= 24
    assert result.last.dead >= 24  # without a negative slope, they get no gradient
    assert run_trial(small, digits)[0].checks[0].dead < 8


def test_trial_applies_the_shock_rate_for_one_epoch(small: Trial, digits: Dataset) -> None:
    unchanging = with_fields(small, learning_rate=1e-9)
    shocked, _ = run_trial(with_fields(unchanging, shock_rate=0.1), digits)
    errors = [check.train_error for check in shocked.checks]
    assert errors[1] < errors[0] - 0.2
    assert errors[2] == pytest.approx(errors[1], abs=0.02)
    assert run_trial(unchanging, digits)[0].last.train_error == pytest.approx(errors[0], abs=0.02)


def test_trial_applies_max_norm_and_both_dropouts(small: Trial, digits: Dataset) -> None:
    trial = with_fields(small, max_norm=0.5, input_dropout=0.2, dropout=0.4)
    _, network = run_trial(trial, digits)
    for hidden in network.hidden_layers():
        assert float(hidden.layer.weight.detach().norm(dim=1).max()) <= 0.5 + 1e-5
    rates = [m.p for m in network.modules() if isinstance(m, torch.nn.Dropout)]
    assert rates == [0.2, 0.4, 0.4]


def test_trial_with_linear_schedule_differs_from_a_constant_one(
    small: Trial, digits: Dataset
) -> None:
    linear = with_fields(small, schedule="linear")
    assert run_trial(linear, digits)[0].checks != run_trial(small, digits)[0].checks


def test_trial_measures_test_images_only_if_tested(small: Trial, digits: Dataset) -> None:
    result, network = run_trial(with_fields(small, tested=True), digits)
    assert (result.test_loss, result.test_error) == loss_and_error(network, digits.test)


def test_trial_trains_on_validation_images_only_if_asked_to(small: Trial, digits: Dataset) -> None:
    longer, _ = run_trial(with_fields(small, trains_on_validation=True), digits)
    assert longer.last.validation_loss < run_trial(small, digits)[0].last.validation_loss


def test_trial_trains_four_convolutions(digits: Dataset) -> None:
    trial = Trial(
        data="digits",
        network="convolutions",
        widths=(16, 16, 32, 32),
        learning_rate=0.03,
        momentum=0.9,
        epochs=3,
    )
    result, network = run_trial(trial, digits)
    assert result.last.train_error < 0.4
    assert [hidden.units for hidden in network.hidden_layers()] == [16, 16, 32, 32]
