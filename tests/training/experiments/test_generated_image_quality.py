import pytest
import torch

from training.experiments.generated_image_quality import (
    ImageJudge,
    frechet_distance,
    precision_and_recall,
)
from training.experiments.trial import Trial, run_trial
from training.experiments.trial_runner import TrialRunner


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(200, 5, generator=torch.Generator().manual_seed(0))


def test_frechet_distance_of_equal_features_is_0(features: torch.Tensor) -> None:
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-3)


def test_frechet_distance_of_shifted_features_is_the_squared_shift(features: torch.Tensor) -> None:
    shift = torch.tensor([3.0, 4.0, 0, 0, 0])
    assert frechet_distance(features, features + shift) == pytest.approx(25, rel=1e-3)


def test_frechet_distance_of_scaled_features_grows_by_the_deviations(
    features: torch.Tensor,
) -> None:
    # Between N(0, S) and N(0, 4 S) it is the trace of S + 4 S - 2 * 2 S = S.
    centred = features - features.mean(dim=0)
    trace = float(centred.T.cov().trace())
    assert frechet_distance(centred, 2 * centred) == pytest.approx(trace, rel=1e-3)


def test_precision_and_recall_are_1_for_equal_and_0_for_distant_features(
    features: torch.Tensor,
) -> None:
    assert precision_and_recall(features, features) == (1.0, 1.0)
    assert precision_and_recall(features, features + 100) == (0.0, 0.0)


def test_generated_features_of_one_mode_have_precision_without_recall(
    features: torch.Tensor,
) -> None:
    both = torch.cat([features, features + 100])
    precision, recall = precision_and_recall(both, features)
    assert precision == 1.0
    assert recall == 0.5


def test_judge_counts_the_classes_of_the_images(runner: TrialRunner, small: Trial) -> None:
    data = runner.dataset("digits")
    _, classifier = run_trial(small.model_copy(update={"epochs": 5}), data)
    real = torch.from_numpy(data.test.images).float() / 255
    judge = ImageJudge(classifier, real)
    itself = judge.judge(real)
    assert itself.classes_covered == 10
    assert (itself.precision, itself.recall) == (1.0, 1.0)
    collapsed = judge.judge(real[:1].expand(50, -1, -1, -1))
    assert collapsed.classes_covered == 1
    assert collapsed.recall < 0.1
    assert collapsed.frechet_distance > itself.frechet_distance
