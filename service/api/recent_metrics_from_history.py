"""The history of the last 15 minutes -> the fields of GET /metrics/recent. Reads no request."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.uncertainty.calibration import ABSTENTION_REASONS
from model.uncertainty.uncertainty_of_validation_images import (
    ValidationDistributions,
    bucket_shares,
    typicality_shares,
)
from service.engine.model_loader import LoadedModel
from service.observability.history_recorder import (
    ENGINE,
    ENGINE_SUMS,
    ENGINE_WIDTH,
    GAUGE_NAMES,
    GAUGES,
    QUEUE_UNIT_SECONDS,
    ROUTE,
    VERSION,
    VERSION_PARTS,
)
from service.observability.history_rings import INTERVAL_SECONDS, INTERVALS, HistoryRings
from service.observability.prometheus_definitions import NATS, ROWS, SET_SIZES, TYPICALITIES
from service.observability.route_counts import OUTCOMES, WIDTH, Counts, percentiles

_LEVELS = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
WINDOWS_SECONDS = (60, 300, INTERVALS * INTERVAL_SECONDS)
"""The newest intervals are also summed over 1, 5 and 15 minutes."""
_OPERATOR_PATHS = ("/health", "/v2/health", "/metrics", "/ui/", "/docs", "/redoc", "/openapi.json")
_EDGES: dict[str, Sequence[float]] = {
    "predictive_entropy": NATS,
    "mutual_information": NATS,
    "typicality": TYPICALITIES,
    "set_size": SET_SIZES,
}

Values = NDArray[np.float64]


def engine_figures(rings: HistoryRings, last: int) -> dict[str, Any]:
    """Build a `RecentEngine`, and the workers of each interval; last: the newest interval."""
    gauges = dict(zip(GAUGE_NAMES, rings.read(GAUGES, last, len(GAUGE_NAMES)).T, strict=True))
    counts = rings.read(ENGINE, last, ENGINE_WIDTH)
    sums = dict(zip(ENGINE_SUMS, counts[:, : len(ENGINE_SUMS)].T, strict=True))
    runs = counts[:, len(ENGINE_SUMS) :]
    was_recorded = gauges["workers"] > 0

    def known(values: NDArray[Any]) -> list[Any]:
        return _or_null(np.where(was_recorded, values, np.nan))

    return {
        "workers": gauges["workers"].tolist(),
        "engine": {
            "memory_bytes": known(1024.0 * gauges["memory_kib"]),
            "processors": known(sums["cpu_ms"] / (1000 * INTERVAL_SECONDS)),
            "in_flight": known(gauges["in_flight"]),
            "queue_rows": known(gauges["queue_rows"]),
            "queue_seconds": _or_null(
                _ratio(QUEUE_UNIT_SECONDS * sums["queue_units"], sums["requests"])
            ),
            "rows_per_run": _or_null(_ratio(sums["rows"], runs.sum(axis=1))),
            "batch_rows": {"edges": ROWS, "counts": [each.tolist() for each in _sums(runs)]},
        },
    }


def route_figures(rings: HistoryRings, last: int) -> dict[str, Any]:
    """Build the `RecentRoute` of every route that was requested, and that of all for clients."""
    counts = {
        subject[1]: rings.read(subject, last, WIDTH)
        for subject in rings.subjects()
        if subject[0] == ROUTE
    }
    asked = {path: each for path, each in counts.items() if each.any()}
    for_clients = [each for path, each in asked.items() if not _is_for_operators(path)]
    everything = sum(for_clients, np.zeros((INTERVALS, WIDTH), np.uint32))
    ordered = sorted(asked, key=lambda path: -int(asked[path][:, : len(OUTCOMES)].sum()))
    return {
        "requests": _route_series(everything),
        "routes": [
            {"route": path, "for_operators": _is_for_operators(path), **_route_series(asked[path])}
            for path in ordered
        ],
    }


def version_figures(
    rings: HistoryRings, last: int, model: LoadedModel, role: str
) -> dict[str, Any]:
    """Build a `RecentVersion` but for drift and feedback; role: `stable` or `canary`."""
    widths = list(VERSION_PARTS.values())
    subject = VERSION, model.name, model.version
    counts = rings.read(subject, last, sum(widths))
    columns = np.split(counts, np.cumsum(widths)[:-1], axis=1)
    parts = dict(zip(VERSION_PARTS, columns, strict=True))
    return {
        "model": model.name,
        "version": model.version,
        "role": role,
        "classes": len(model.bundle.manifest.class_names),
        "images": parts["predictive_entropy"].sum(axis=1).tolist(),
        "abstained": parts["abstentions"].sum(axis=1).tolist(),
        "windows": _windows(parts),
        "edges": _EDGES,
        "reference": _reference(model),
    }


def _windows(parts: dict[str, Counts]) -> list[dict[str, Any]]:
    """Build the `VersionWindow` of each window from the counts of VERSION_PARTS."""
    sums = {name: _sums(each) for name, each in parts.items()}
    windows = []
    for number in range(len(WINDOWS_SECONDS)):
        totals = {name: each[number].tolist() for name, each in sums.items()}
        abstentions = dict(zip(ABSTENTION_REASONS, totals.pop("abstentions"), strict=True))
        images = sum(totals["predictive_entropy"])
        windows.append({"images": images, "abstentions": abstentions, "histograms": totals})
    return windows


def _sums(counts: Counts) -> list[Counts]:
    """Return the sum of [INTERVALS, W] over each window: uint32 [W]."""
    sizes = (seconds // INTERVAL_SECONDS for seconds in WINDOWS_SECONDS)
    return [counts[-size:].sum(axis=0, dtype=np.uint32) for size in sizes]


def _reference(model: LoadedModel) -> dict[str, list[float] | None]:
    """Return the share of validation images in each bucket; None where it is not known."""
    shares: dict[str, Values | None] = dict.fromkeys(_EDGES)
    distributions = ValidationDistributions.read(model.bundle.manifest.metrics)
    if distributions is not None:
        shares["predictive_entropy"] = bucket_shares(distributions.predictive_entropy, NATS)
        shares["mutual_information"] = bucket_shares(distributions.mutual_information, NATS)
        shares["set_size"] = distributions.set_size_shares(SET_SIZES)
    if model.calibrator is not None:
        images = model.calibrator.parameters.images
        shares["typicality"] = typicality_shares(images, TYPICALITIES)
    return {
        name: None if each is None else np.round(each, 5).tolist() for name, each in shares.items()
    }


def _route_series(counts: Counts) -> dict[str, Any]:
    """Build the fields of a `RecentRoute` from its counts, [INTERVALS, WIDTH]."""
    by_interval = percentiles(counts, tuple(_LEVELS.values()))
    return {
        **{name: counts[:, column].tolist() for column, name in enumerate(OUTCOMES)},
        "seconds": {
            name: _or_null(values) for name, values in zip(_LEVELS, by_interval, strict=True)
        },
        "windows": [_route_window(each) for each in _sums(counts)],
    }


def _route_window(totals: Counts) -> dict[str, Any]:
    seconds = _or_null(percentiles(totals, tuple(_LEVELS.values())))
    return {
        **{name: int(totals[column]) for column, name in enumerate(OUTCOMES)},
        "seconds": dict(zip(_LEVELS, seconds, strict=True)),
    }


def _is_for_operators(path: str) -> bool:
    """Return whether a route is one of pages, health or metrics, which no client's work needs."""
    return path == "/" or path.startswith(_OPERATOR_PATHS)


def _ratio(amounts: NDArray[Any], counts: NDArray[Any]) -> Values:
    """Return amounts / counts; NaN where there is none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(counts > 0, amounts / counts, np.nan)


def _or_null(values: NDArray[Any]) -> list[float | None]:
    """Return the values, to microseconds where they are seconds, with None for NaN."""
    return [None if np.isnan(each) else round(float(each), 6) for each in values]
