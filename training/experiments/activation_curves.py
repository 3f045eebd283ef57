"""Plots every activation and its derivative, computed with the modules that networks use."""

from typing import get_args

import torch
from matplotlib.figure import Figure

from model.bundle.architecture_description import ActivationName
from training.experiments.experiment_record import Record
from training.experiments.trial_runner import TrialRunner
from training.network.activations import build_activation

_MAX_X = 4.0
_POINTS = 801


def run(runner: TrialRunner) -> Record:
    """Plot each activation, and tabulate the ranges of its values and slopes."""
    names: tuple[ActivationName, ...] = get_args(ActivationName)
    figure = Figure(figsize=(9, 9), layout="constrained")
    grid = figure.subplots(3, 3, sharex=True, sharey=True)
    rows = []
    for name, axes in zip(names, grid.flatten(), strict=True):
        x, y, slope = activation_curve(name)
        axes.plot(x, y, label="f(x)")
        axes.plot(x, slope, linestyle="--", label="f'(x)")
        axes.set(title=name, ylim=(-1.5, 4))
        axes.grid(alpha=0.3)
        rows.append(
            (
                name,
                *(f"{value:.2f}" for value in (y.min(), y.max(), slope.min(), slope.max())),
                f"{(slope.abs() < 0.01).double().mean():.0%}",
            )
        )
    for axes in grid[-1]:
        axes.set_xlabel("x")
    grid[0, 0].legend(loc="upper left")
    return Record(
        name="shapes",
        title="The activations and their derivatives",
        setting=f"over x from {-_MAX_X:g} to {_MAX_X:g}, in evaluation mode, derivatives by "
        "automatic differentiation.",
        columns=("activation", "least f", "greatest f", "least f'", "greatest f'", "|f'| < 0.01"),
        rows=rows,
        finding="The last column is the share of x at which hardly a gradient comes through: "
        f"{_flat_shares(rows)}, and 0% for the others. The slope of tanh is nowhere above "
        f"{_greatest_slope(rows, 'tanh')}, and that of sigmoid nowhere above "
        f"{_greatest_slope(rows, 'sigmoid')}.",
        figure=figure,
    )


def activation_curve(name: ActivationName) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return x, f(x) and f'(x) for x from -4 to 4, each float64 [801]."""
    x = torch.linspace(-_MAX_X, _MAX_X, _POINTS, dtype=torch.float64, requires_grad=True)
    y = build_activation(name).double().eval()(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    return x.detach(), y.detach(), slope


def _flat_shares(rows: list[tuple[str, ...]]) -> str:
    """Return each share of the last column that is not 0% with its activation, largest first."""
    flat = [(int(row[-1].rstrip("%")), row[0]) for row in rows if row[-1] != "0%"]
    return ", ".join(f"{share}% for {name}" for share, name in sorted(flat, reverse=True))


def _greatest_slope(rows: list[tuple[str, ...]], name: str) -> str:
    return next(row[4] for row in rows if row[0] == name)
