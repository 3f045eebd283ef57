import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.bundle.architecture_description import Architecture
from tests.training.experiments.conftest import quick_runner
from training.data.dataset import Dataset
from training.experiments import gan_discriminator_activations
from training.experiments.gan_discriminator_activations import has_collapsed
from training.experiments.gan_networks import build_discriminator, build_generator, draw_latents
from training.experiments.gan_training import (
    Gan,
    GanCheck,
    GanResult,
    GanTrial,
    real_images,
    run_gan_trial,
)
from training.experiments.generated_image_quality import ImageJudge, ImageQuality
from training.experiments.trial import Trial, run_trial
from training.experiments.trial_runner import TrialRunner


@pytest.fixture
def digits(runner: TrialRunner) -> Dataset:
    return runner.dataset("digits")


@pytest.fixture
def gan(digits: Dataset) -> Gan:
    torch.manual_seed(0)
    architecture = Architecture(classes=2, input=digits.input)
    return Gan(build_generator(digits.input, 4), build_discriminator(architecture, 4))


def test_generator_makes_images_of_the_data_sets_size_in_0_to_1(gan: Gan, digits: Dataset) -> None:
    images = gan.generate(draw_latents(7))
    assert images.shape == (7, *digits.train.images.shape[1:])
    assert 0 <= float(images.min()) < float(images.max()) <= 1
    assert gan.discriminator(images).shape == (7, 1)
    assert [hidden.units for hidden in gan.discriminator.hidden_layers()] == [4, 8]


def test_step_trains_both_networks_and_returns_the_gradient_of_an_image(
    gan: Gan, digits: Dataset
) -> None:
    before = [
        [weight.clone() for weight in network.parameters()]
        for network in (gan.generator, gan.discriminator)
    ]
    assert gan.step(real_images(digits, 16)) > 0
    for network, weights in zip((gan.generator, gan.discriminator), before, strict=True):
        assert all(
            not torch.equal(old, new)
            for old, new in zip(weights, network.parameters(), strict=True)
            if old.ndim > 1
        )


def test_gan_trial_is_deterministic_and_keeps_pictures_of_each_epoch(
    digits: Dataset, small: Trial
) -> None:
    _, classifier = run_trial(small, digits)
    judge = ImageJudge(classifier, real_images(digits, 60))
    trial = GanTrial(
        data="digits",
        activation="leaky_relu",
        channels=4,
        batch_size=256,
        epochs=2,
        judged_images=60,
    )
    result = run_gan_trial(trial, digits, judge)
    assert run_gan_trial(trial, digits, judge) == result
    assert GanResult.model_validate_json(result.model_dump_json()) == result
    assert (len(result.checks), result.units) == (2, 12)
    row = np.asarray(Image.open(io.BytesIO(result.last.pictures)))
    assert row.shape == (8, 8 * 8)


def gan_result(precision: float = 0.5, classes: int = 10) -> GanResult:
    quality = ImageQuality(
        frechet_distance=1, precision=precision, recall=0.5, classes_covered=classes
    )
    picture = io.BytesIO()
    Image.new("L", (8, 8)).save(picture, format="PNG")
    check = GanCheck(quality=quality, generator_gradient=1, dead=0, pictures=picture.getvalue())
    return GanResult(checks=(check,), units=12)


def test_result_of_another_judge_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[GanTrial] = []

    def train(trial: GanTrial, *_: object) -> GanResult:
        trained.append(trial)
        return gan_result()

    monkeypatch.setattr(gan_discriminator_activations, "run_gan_trial", train)
    monkeypatch.setattr(gan_discriminator_activations, "_train_judge", lambda *_: None)
    for _ in range(2):
        gan_discriminator_activations.run(quick_runner(tmp_path, "gan"))
    assert len(trained) == 3
    plan = replace(gan_discriminator_activations._QUICK, classifier_epochs=3)
    monkeypatch.setattr(gan_discriminator_activations, "_QUICK", plan)
    gan_discriminator_activations.run(quick_runner(tmp_path, "gan"))
    assert trained[3:] == trained[:3]


@pytest.mark.parametrize(
    ("classes", "precision", "collapsed"),
    [(10, 0.5, False), (6, 0.5, False), (5, 0.5, True), (10, 0.05, True)],
)
def test_gan_has_collapsed_with_few_classes_or_with_images_unlike_any(
    classes: int, precision: float, collapsed: bool
) -> None:
    assert has_collapsed(gan_result(precision, classes)) is collapsed
