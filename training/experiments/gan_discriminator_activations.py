"""A DCGAN (Radford et al. 2016) whose discriminator has one activation or another, all else equal.

Compares the generated images, the share of seeds that collapse, the gradient that reaches the
generator, and the dead units of the discriminator.
"""

import io
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from time import perf_counter

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from PIL import Image
from pydantic import BaseModel

from model.bundle.architecture_description import ActivationName
from training.experiments.experiment_record import Record, format_mean_std
from training.experiments.gan_training import (
    GanCheck,
    GanResult,
    GanTrial,
    real_images,
    run_gan_trial,
)
from training.experiments.generated_image_quality import ImageJudge
from training.experiments.trial import Trial, run_trial
from training.experiments.trial_runner import TrialRunner

logger = logging.getLogger(__name__)

COLLAPSED_PRECISION = 0.1
_ARMS: dict[str, tuple[ActivationName, float]] = {
    "ReLU": ("relu", 0.0),
    "leaky ReLU .2": ("leaky_relu", 0.2),
    "leaky ReLU .01": ("leaky_relu", 0.01),
    "PReLU": ("prelu", 0.0),
    "ELU": ("elu", 0.0),
}
"""By title: the activation, and the negative slope of leaky ReLU."""
_CLASSIFIER_WIDTHS = (16, 16, 32, 32)
_METRICS: dict[str, Callable[[GanCheck], float]] = {
    "Fréchet distance": lambda check: check.quality.frechet_distance,
    "recall": lambda check: check.quality.recall,
    "gradient at the generated image": lambda check: check.generator_gradient,
}


@dataclass(frozen=True)
class Plan:
    """The data sets, the size of the networks, and the length of the trainings."""

    data: tuple[str, ...]
    arms: tuple[str, ...]
    channels: int
    epochs: int
    judged_images: int
    classifier_epochs: int


_FULL = Plan(
    ("fashion-mnist", "mnist"),
    tuple(_ARMS),
    channels=32,
    epochs=6,
    judged_images=5_000,
    classifier_epochs=12,
)
_QUICK = Plan(
    ("digits",), tuple(_ARMS)[:3], channels=8, epochs=10, judged_images=150, classifier_epochs=20
)


class _CacheKey(BaseModel):
    """All that determines a `GanResult`, under which it is cached."""

    trial: GanTrial
    judge: Trial


Arms = dict[tuple[str, str], list[GanResult]]
"""The results over the seeds, by data set and title of the arm."""


def run(runner: TrialRunner) -> Record:
    """Train each arm on each data set, and compare what comes out."""
    plan = _QUICK if runner.quick else _FULL
    plan = replace(plan, data=runner.data or plan.data)
    arms: Arms = {}
    for data in plan.data:
        judge_trial = _judge_trial(plan, data)
        judge = cache(partial(_train_judge, runner, plan, judge_trial))
        for title in plan.arms:
            trials = [_trial(plan, data, title, seed) for seed in runner.seeds]
            keys = [_CacheKey(trial=trial, judge=judge_trial) for trial in trials]
            arms[data, title] = [_run(runner, key, title, judge) for key in keys]
    return Record(
        name="gan",
        title="The activation of a GAN's discriminator",
        setting=_setting(runner, plan),
        columns=(
            "data",
            "discriminator",
            "Fréchet distance",
            "precision",
            "recall",
            "classes",
            "collapsed",
            "gradient to the generator",
            "dead units",
        ),
        rows=[_row(*key, results) for key, results in arms.items()],
        finding=_finding(plan, arms),
        figure=_figure(plan, arms),
    )


def has_collapsed(result: GanResult, classes: int = 10) -> bool:
    """Return whether the last images cover at most half of the classes, or resemble no real ones.

    That is a precision below .1.
    """
    quality = result.last.quality
    return 2 * quality.classes_covered <= classes or quality.precision < COLLAPSED_PRECISION


def _trial(plan: Plan, data: str, title: str, seed: int) -> GanTrial:
    activation, slope = _ARMS[title]
    return GanTrial(
        data=data,
        activation=activation,
        negative_slope=slope,
        channels=plan.channels,
        epochs=plan.epochs,
        judged_images=plan.judged_images,
        seed=seed,
    )


def _run(
    runner: TrialRunner, key: _CacheKey, title: str, judge: Callable[[], ImageJudge]
) -> GanResult:
    start, trial = perf_counter(), key.trial
    result = runner.cached(
        key, GanResult, lambda: run_gan_trial(trial, runner.dataset(trial.data), judge())
    )
    logger.info(
        "%s · %s · seed %d: Fréchet distance %.2f (%.0f s)",
        *(trial.data, title, trial.seed),
        result.last.quality.frechet_distance,
        perf_counter() - start,
    )
    return result


def _judge_trial(plan: Plan, data: str) -> Trial:
    """Describe the classifier whose features and labels judge the images of a data set."""
    return Trial(
        data=data,
        network="convolutions",
        widths=_CLASSIFIER_WIDTHS,
        learning_rate=0.001,
        optimizer="adam",
        schedule="linear",
        epochs=plan.classifier_epochs,
        tested=True,
    )


def _train_judge(runner: TrialRunner, plan: Plan, trial: Trial) -> ImageJudge:
    """Train it, again after an interruption, which gives the same weights."""
    dataset = runner.dataset(trial.data)
    result, classifier = run_trial(trial, dataset)
    logger.info(
        "%s: the judge's test error is %.2f %%", trial.data, 100 * (result.test_error or 0.0)
    )
    return ImageJudge(classifier, real_images(dataset, plan.judged_images))


def _setting(runner: TrialRunner, plan: Plan) -> str:
    sizes = [f"{len(runner.dataset(data).train):,} images of {data}" for data in plan.data]
    return (
        f"two transposed convolutions against two convolutions ({plan.channels} and "
        f"{2 * plan.channels} channels), batch normalisation as in the paper, the generator with "
        f"ReLU; {' and '.join(sizes)}, {plan.epochs} epochs of batches of 64, Adam at .0002 with "
        f"β₁ .5, {runner.seed_count}. {plan.judged_images:,} generated images are compared "
        "with as many test images on the features of a classifier that the experiment trains "
        f"itself ({plan.classifier_epochs} epochs, {'-'.join(map(str, _CLASSIFIER_WIDTHS))} "
        "channels), so the Fréchet distance is not the FID of Inception. Precision and recall "
        "after Kynkäänniemi et al. 2019 (k = 3). A class is covered with a tenth of its equal "
        "share; a seed has collapsed with at most half of the classes, or a precision below "
        f"{COLLAPSED_PRECISION:g}. The gradient is that of a generated image's loss at its pixels "
        "in the last epoch; dead units fire on no judged image."
    )


def _row(data: str, title: str, results: list[GanResult]) -> tuple[str, ...]:
    last = [result.last for result in results]
    collapsed = sum(has_collapsed(result) for result in results)
    return (
        data,
        title,
        format_mean_std(_distances(results)),
        format_mean_std([check.quality.precision for check in last]),
        format_mean_std([check.quality.recall for check in last]),
        format_mean_std([check.quality.classes_covered for check in last], "{:.1f}"),
        f"{collapsed} of {len(results)}",
        format_mean_std([check.generator_gradient for check in last], "{:.3f}"),
        f"{format_mean_std([check.dead for check in last], '{:.1f}')} of {results[0].units}",
    )


def _distances(results: list[GanResult]) -> list[float]:
    return [result.last.quality.frechet_distance for result in results]


def _finding(plan: Plan, arms: Arms) -> str:
    """Order the activations by their distance, and say whether seeds differ less than arms."""
    sentences = []
    for data in plan.data:
        means = {title: float(np.mean(_distances(arms[data, title]))) for title in plan.arms}
        order = sorted(plan.arms, key=means.__getitem__)
        best, worst = arms[data, order[0]], arms[data, order[-1]]
        apart = max(_distances(best)) < min(_distances(worst))
        collapsed = sum(has_collapsed(result) for title in order for result in arms[data, title])
        sentences.append(
            f"On {data} the mean Fréchet distances are, from the least, "
            + ", ".join(f"{means[title]:.2f} with {title}" for title in order)
            + f"; {'every' if apart else 'not every'} seed of the first is below every seed of the "
            f"last, and {collapsed} of all trainings collapsed."
        )
    return " ".join(sentences)


def _figure(plan: Plan, arms: Arms) -> Figure:
    """Plot distance, recall and gradient by epoch, and show the pictures of one seed by epoch."""
    figure = Figure(figsize=(12, 6 * len(plan.data)), layout="constrained")
    curves, pictures = figure.subfigures(2, 1, squeeze=False, height_ratios=(2, 1))[:, 0]
    grid = curves.subplots(len(plan.data), 3, squeeze=False)
    for data, row in zip(plan.data, grid, strict=True):
        for axes, (label, metric) in zip(row, _METRICS.items(), strict=True):
            for index, title in enumerate(plan.arms):
                _plot_seeds(axes, arms[data, title], metric, f"C{index}", title)
            axes.set(title=data, xlabel="epoch", ylabel=label)
            axes.grid(alpha=0.3)
        row[0].set_yscale("log")
        row[0].legend()
    _show_pictures(pictures, plan, arms)
    return figure


def _plot_seeds(
    axes: Axes,
    results: list[GanResult],
    metric: Callable[[GanCheck], float],
    colour: str,
    label: str,
) -> None:
    for number, result in enumerate(results):
        values = [metric(check) for check in result.checks]
        epochs = range(1, 1 + len(values))
        axes.plot(epochs, values, color=colour, label=label if number == 0 else None)


def _show_pictures(figure: SubFigure, plan: Plan, arms: Arms) -> None:
    """Show the generated images of the first seed, an activation a column and an epoch a line."""
    grid = figure.subplots(len(plan.data), len(plan.arms), squeeze=False)
    for title, axes in zip(plan.arms, grid[0], strict=True):
        axes.set_title(title)
    for data, row in zip(plan.data, grid, strict=True):
        row[0].set_ylabel(f"{data}, epoch")
        for title, axes in zip(plan.arms, row, strict=True):
            _show_epochs(axes, arms[data, title][0])


def _show_epochs(axes: Axes, result: GanResult) -> None:
    lines = [np.asarray(Image.open(io.BytesIO(check.pictures))) for check in result.checks]
    axes.imshow(np.concatenate(lines), cmap="gray")
    height = lines[0].shape[0]
    axes.set_xticks([])
    axes.set_yticks([height * (n + 0.5) for n in range(len(lines))])
    axes.set_yticklabels([str(n + 1) for n in range(len(lines))])
