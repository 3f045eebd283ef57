"""Weight scaling against the average of T thinned networks (Srivastava et al. 2014, figure 11).

Averages over independent masks, as the paper does, and over the orthogonal masks of the service.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from model.dropout import masks
from model.uncertainty.uncertainty_measures import softmax
from training.data.batches import image_batches
from training.data.dataset import Dataset
from training.evaluation.metrics import classification_metrics
from training.experiments.experiment_record import Record, format_mean_std
from training.experiments.trial import Trial, run_trial
from training.experiments.trial_runner import TrialRunner
from training.network.classifier import Classifier

_MASK_KINDS = {"independent": "independent masks", "served": "orthogonal masks"}


@dataclass(frozen=True)
class Plan:
    """The data set, the length of the training, the numbers of samples T and of repetitions."""

    data: str
    epochs: int
    samples: tuple[int, ...]
    repetitions: int


_FULL = Plan("mnist", 20, samples=(2, 4, 8, 16, 32, 64, 128, 256), repetitions=20)
_QUICK = Plan("digits", 10, samples=(2, 16, 64), repetitions=5)


class Averages(BaseModel):
    """Test error (share) and NLL (nats) of one trained network."""

    model_config = ConfigDict(frozen=True)

    scaled: tuple[float, float]
    """Error and NLL with weight scaling."""
    sampled: dict[str, dict[int, list[tuple[float, float]]]]
    """By kind of mask and T: error and NLL of each repetition."""


class _CacheKey(BaseModel):
    """All that determines the `Averages`, under which they are cached."""

    trial: Trial
    samples: tuple[int, ...]
    repetitions: int


def run(runner: TrialRunner) -> Record:
    """Train a network, average over masks of both kinds, and compare with weight scaling."""
    plan = _QUICK if runner.quick else _FULL
    trial = Trial(
        data=plan.data,
        widths=(500,),
        dropout=0.5,
        learning_rate=0.1,
        momentum=0.9,
        schedule="linear",
        epochs=plan.epochs,
    )
    key = _CacheKey(trial=trial, samples=plan.samples, repetitions=plan.repetitions)
    averages = runner.cached(
        key, Averages, lambda: _measure(plan, trial, runner.dataset(plan.data))
    )
    rows = [
        ("weight scaling", "-", f"{100 * averages.scaled[0]:.2f} %", f"{averages.scaled[1]:.4f}")
    ]
    for kind, title in _MASK_KINDS.items():
        for samples, repeats in averages.sampled[kind].items():
            errors = [100 * error for error, _ in repeats]
            losses = [loss for _, loss in repeats]
            rows.append(
                (
                    title,
                    str(samples),
                    format_mean_std(errors) + " %",
                    format_mean_std(losses, "{:.4f}"),
                )
            )
    return Record(
        name="averaging",
        title="Weight scaling against the average of T thinned networks",
        setting=f"a dense network with 500 hidden ReLU and dropout 0.5 on {plan.data}, trained for "
        f"{plan.epochs} epochs; mean and standard deviation over {plan.repetitions} draws of T "
        "masks, on all test images.",
        columns=("average", "T", "test error", "test NLL"),
        rows=rows,
        finding=describe_averages(plan.samples, averages),
        figure=_figure(averages),
    )


def _measure(plan: Plan, trial: Trial, data: Dataset) -> Averages:
    _, network = run_trial(trial, data)
    with torch.no_grad():
        features = torch.cat([network.trunk(images) for images in image_batches(data.test)])
        logits = network.head(features).double().numpy()
    labels = data.test.labels
    sampled: dict[str, dict[int, list[tuple[float, float]]]] = {kind: {} for kind in _MASK_KINDS}
    for kind in _MASK_KINDS:
        for samples in plan.samples:
            sampled[kind][samples] = [
                _error_and_nll(
                    _mean_probabilities(
                        network, features, draw_masks(network, kind, seed, samples)
                    ),
                    labels,
                )
                for seed in range(plan.repetitions)
            ]
    return Averages(scaled=_error_and_nll(softmax(logits), labels), sampled=sampled)


def draw_masks(network: Classifier, kind: str, seed: int, samples: int) -> torch.Tensor:
    """Draw masks float32 [T, F] of 0 and 1/(1-p).

    kind: `independent`, or `served` for the orthogonal masks of the service.
    """
    layers = network.head.dropout_layers
    if kind == "served":
        return torch.tensor(masks.draw(seed, samples, layers)[0])
    (layer,) = layers
    generator = np.random.Generator(np.random.PCG64(seed))
    kept = generator.random((samples, layer.width)) >= layer.p
    return torch.tensor(kept / (1 - layer.p), dtype=torch.float32)


def _mean_probabilities(
    network: Classifier, features: torch.Tensor, mask: torch.Tensor
) -> NDArray[np.float64]:
    """Return the mean probabilities float64 [N, K] of the thinned networks of masks [T, F]."""
    total = torch.zeros(len(features), network.head.widths[-1], dtype=torch.float64)
    with torch.no_grad():
        for one in mask:
            logits = network.head.sample(features, [one.unsqueeze(0)])[:, 0]
            total += torch.softmax(logits.double(), dim=1)
    mean: NDArray[np.float64] = (total / len(mask)).numpy()
    return mean


def _error_and_nll(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64]
) -> tuple[float, float]:
    measured = classification_metrics(probabilities, labels)
    return 1 - measured["accuracy"], measured["nll"]


def describe_averages(samples: Sequence[int], averages: Averages) -> str:
    """Compare the averages with the one of the most networks, and that with weight scaling.

    samples: the numbers of networks T, ascending, at least two.
    """
    first, last, most = samples[0], samples[-2], samples[-1]
    excess = {}
    best = np.mean([loss for _, loss in averages.sampled["served"][most]])
    for kind in _MASK_KINDS:
        mean = {t: np.mean([loss for _, loss in r]) for t, r in averages.sampled[kind].items()}
        excess[kind] = mean[first] - best, mean[last] - best
    wins = "below" if best < averages.scaled[1] else "above"
    return (
        f"Weight scaling has an NLL of {averages.scaled[1]:.4f}; the average of {most} networks "
        f"thinned by orthogonal masks {best:.4f}, {wins} it. From that the average at T = {first} "
        f"differs by {excess['independent'][0]:+.4f} with independent masks and "
        f"{excess['served'][0]:+.4f} with orthogonal ones; at T = {last}, by "
        f"{excess['independent'][1]:+.5f} and {excess['served'][1]:+.5f}."
    )


def _figure(averages: Averages) -> Figure:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    for place, (axes, scale) in enumerate(zip(panels, (100, 1), strict=True)):
        axes.axhline(
            scale * averages.scaled[place], color="black", linestyle=":", label="weight scaling"
        )
        for kind, title in _MASK_KINDS.items():
            samples = list(averages.sampled[kind])
            values = np.array([[r[place] for r in averages.sampled[kind][t]] for t in samples])
            axes.errorbar(
                np.array(samples) * (0.97 if kind == "served" else 1.03),
                scale * values.mean(axis=1),
                scale * values.std(axis=1, ddof=1),
                marker="o",
                markersize=4,
                capsize=3,
                label=title,
            )
        axes.set(xscale="log", xlabel="T, thinned networks averaged")
        axes.set_xticks(samples, [str(t) for t in samples])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    panels[0].set(title="Test error", ylabel="wrong answers (%)")
    panels[1].set(title="Test NLL", ylabel="negative log-likelihood (nats)")
    return figure
