"""Labels that a test error needs, by acquisition function (Gal, Islam & Ghahramani 2017)."""

import logging
import math
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.experiments.active_learning import (
    ActiveResult,
    ActiveTrial,
    Sampling,
    run_active_trial,
)
from training.experiments.experiment_record import Record, format_mean_std
from training.experiments.target_crossing import first_crossing
from training.experiments.trial_runner import TrialRunner
from training.selection.selection_config import Method

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arm:
    """One acquisition function, how its samples are drawn, and the paper's labels on MNIST."""

    title: str
    method: Method
    sampling: Sampling = "orthogonal"
    paper: str = "-"


_RANDOM = Arm("random", "random", paper="255, 835")
_ARMS = (
    _RANDOM,
    Arm("entropy without samples", "entropy", "none"),
    Arm("entropy", "entropy"),
    Arm("variation ratio", "variation-ratio", paper="120, 295"),
    Arm("BALD, independent masks", "bald", "independent", paper="145, 335"),
    Arm("BALD", "bald"),
    Arm("BatchBALD", "batchbald"),
)


@dataclass(frozen=True)
class Target:
    """A data set, and the two test errors (shares, the larger one first) to reach on it."""

    data: str
    errors: tuple[float, float]
    max_labels: int
    """Of every method but random, which has `max_random_labels`."""
    max_random_labels: int


@dataclass(frozen=True)
class Plan:
    """What is compared, and the cost of each step."""

    targets: tuple[Target, ...]
    arms: tuple[Arm, ...]
    pool_images: int
    samples: int
    training_steps: int


_FULL = Plan(
    targets=(
        Target("mnist", (0.10, 0.05), max_labels=500, max_random_labels=1_200),
        Target("fashion-mnist", (0.25, 0.20), max_labels=400, max_random_labels=1_000),
    ),
    arms=_ARMS,
    pool_images=5_000,
    samples=64,
    training_steps=400,
)
_QUICK = Plan(
    targets=(Target("digits", (0.3, 0.2), max_labels=60, max_random_labels=80),),
    arms=(_RANDOM, *_ARMS[-2:]),
    pool_images=200,
    samples=16,
    training_steps=100,
)

Results = dict[tuple[Target, Arm], list[ActiveResult]]
"""By seed."""


def run(runner: TrialRunner) -> Record:
    """Run every acquisition function on every data set, and count labels."""
    plan = _QUICK if runner.quick else _FULL
    wanted = runner.data or [target.data for target in plan.targets]
    plan = replace(plan, targets=tuple(each for each in plan.targets if each.data in wanted))
    results: Results = {
        (target, arm): [_run(runner, arm, _trial(plan, target, arm, n)) for n in runner.seeds]
        for target in plan.targets
        for arm in plan.arms
    }
    return Record(
        name="active",
        title="Labels that acquisition functions need",
        setting=_setting(runner, plan),
        columns=(
            "data",
            "acquisition",
            "labels to the first error",
            "random's / its",
            "labels to the second",
            "random's / its",
            "paper",
        ),
        rows=[_row(results, target, arm) for target, arm in results],
        finding=_finding(plan, results),
        figure=_figure(plan, results),
    )


def _trial(plan: Plan, target: Target, arm: Arm, seed: int) -> ActiveTrial:
    trial = ActiveTrial(
        data=target.data,
        method=arm.method,
        sampling=arm.sampling,
        max_labels=_most_labels(target, arm),
        target_error=min(target.errors),
        pool_images=plan.pool_images,
        samples=plan.samples,
        training_steps=plan.training_steps,
        seed=seed,
    )
    # What random chooses does not depend on the network, so it is trained only to be checked.
    step = trial.labels_per_check if arm == _RANDOM else trial.labels_per_step
    return trial.model_copy(update={"labels_per_step": step})


def _most_labels(target: Target, arm: Arm) -> int:
    return target.max_random_labels if arm == _RANDOM else target.max_labels


def _run(runner: TrialRunner, arm: Arm, trial: ActiveTrial) -> ActiveResult:
    start = perf_counter()
    result = runner.cached(
        trial, ActiveResult, lambda: run_active_trial(trial, runner.dataset(trial.data))
    )
    logger.info(
        "%s · %s · seed %d: test error %.2f %% with %d labels (%.0f s)",
        *(trial.data, arm.title, trial.seed),
        *(100 * result.checks[-1].test_error, result.checks[-1].labels),
        perf_counter() - start,
    )
    return result


def labels_to_error(result: ActiveResult, error: float) -> float:
    """Return the labels with which the test error first falls to `error`, as `first_crossing`."""
    return first_crossing(
        [check.labels for check in result.checks],
        [check.test_error for check in result.checks],
        error,
    )


def _labels(results: list[ActiveResult], error: float) -> list[float]:
    return [labels_to_error(result, error) for result in results]


def _row(results: Results, target: Target, arm: Arm) -> tuple[str, ...]:
    own, random = results[target, arm], results[target, _RANDOM]
    most = _most_labels(target, arm)
    cells = []
    for error in target.errors:
        labels = _labels(own, error)
        cells += [
            f"{100 * error:g} %: {_format_labels(labels, most)}",
            format_ratio(labels, _labels(random, error), most, target.max_random_labels),
        ]
    return target.data, arm.title, *cells, arm.paper if target.data == "mnist" else "-"


def _format_labels(labels: list[float], most: int) -> str:
    missed = sum(map(math.isnan, labels))
    if missed:
        return f"not within {most} ({missed} of {len(labels)} seeds)"
    return format_mean_std(labels, "{:.0f}")


def format_ratio(labels: list[float], random: list[float], most: int, most_random: int) -> str:
    """Format random's labels over a method's, seed by seed so that its deviation can be given.

    Where a method did not get there with `most` labels, or random with `most_random`, these stand
    for the labels that it needs. That bounds the ratio of the seed, and the loosest bound is given:
    an upper bound where a seed of the method is missing, a lower one where random's is.
    """
    labels_missing, random_missing = bool(np.isnan(labels).any()), bool(np.isnan(random).any())
    if labels_missing and random_missing:
        return "-"
    ratios = np.nan_to_num(random, nan=most_random) / np.nan_to_num(labels, nan=most)
    if labels_missing:
        return f"≤ {ratios.max():.2f}"
    if random_missing:
        return f"≥ {ratios.min():.2f}"
    return format_mean_std(list(ratios))


def _setting(runner: TrialRunner, plan: Plan) -> str:
    return (
        "two convolutions of 32 channels (4 x 4), pooling, dropout .25, 128 units, dropout .5, as "
        "in the paper, trained from scratch at each step "
        f"({plan.training_steps} steps of batches of 16, Adam at .002 falling linearly to 0). From "
        "20 labels, two of each class, 10 at a time; the weight decay is chosen with these labels "
        "on 100 validation images. Each step scores "
        f"{plan.pool_images:,} unlabelled images, drawn anew (2,000 in code that an author of the "
        f"paper has published); samples ({plan.samples}, which are the same for all images) are "
        "of the dropout before the output alone, where the paper also samples the other, and of "
        "orthogonal masks unless the row says otherwise (the paper's are all independent). The "
        "error is that of weight scaling on all test images, measured every 20 labels and "
        "interpolated; random labels 20 at a time. A run stops at its second error. "
        f"{runner.seed_count}."
    )


def _finding(plan: Plan, results: Results) -> str:
    sentences = []
    for target in plan.targets:
        for error in target.errors:
            labels = {arm.title: _labels(results[target, arm], error) for arm in plan.arms}
            sentences.append(f"To {100 * error:g} % on {target.data}: {describe_labels(labels)}.")
    return "Labels, mean over the seeds. " + " ".join(sentences)


def describe_labels(labels: dict[str, list[float]]) -> str:
    """List the mean labels of each acquisition function, the least first.

    labels: that each seed needed, by title; NaN where it did not get there with what it was given.
    """
    means = {title: float(np.mean(seeds)) for title, seeds in labels.items()}
    reached = sorted((t for t in means if not math.isnan(means[t])), key=means.__getitem__)
    parts = [f"{title} {means[title]:.0f}" for title in reached]
    for title, seeds in labels.items():
        missed = sum(map(math.isnan, seeds))
        if missed:
            some = "" if missed == len(seeds) else f" with {missed} of {len(seeds)} seeds"
            parts.append(f"{title} more than it was given{some}")
    return ", ".join(parts)


def _figure(plan: Plan, results: Results) -> Figure:
    figure = Figure(figsize=(6.2 * len(plan.targets), 5), layout="constrained")
    grid = figure.subplots(1, len(plan.targets), squeeze=False)[0]
    for axes, target in zip(grid, plan.targets, strict=True):
        for index, arm in enumerate(plan.arms):
            _plot_seeds(axes, results[target, arm], f"C{index}", arm.title)
        for error in target.errors:
            axes.axhline(100 * error, color="black", linewidth=0.8, linestyle=":")
        axes.set(title=target.data, xlabel="labels", ylabel="test error (%)", yscale="log")
        axes.grid(alpha=0.3)
    grid[-1].legend()
    return figure


def _plot_seeds(axes: Axes, results: list[ActiveResult], colour: str, label: str) -> None:
    for number, result in enumerate(results):
        axes.plot(
            [check.labels for check in result.checks],
            [100 * check.test_error for check in result.checks],
            color=colour,
            linewidth=1,
            label=label if number == 0 else None,
        )
