"""The key figures of one version in service, taken from its manifest.

A bundle may come from anybody, and its metrics are any JSON: what is no number there counts as not
measured.
"""

from typing import Any

from model.bundle.architecture_description import AdoptedArchitecture, Architecture
from model.bundle.store import REPORT_FILE
from service.engine.model_loader import LoadedModel
from service.registry.active_versions import CANARY, STABLE, ActiveVersions

_LARGEST = 2.0**63
_TEST_FIGURES = {
    "accuracy": ("accuracy",),
    "nll": ("nll",),
    "ece": ("ece",),
    "aurc": ("trust", "aurc"),
    "answered": ("trust", "selection", "answered"),
    "error": ("trust", "selection", "error"),
    "max_risk": ("trust", "selection", "max_risk"),
}
"""Name of a figure -> where it is in the metrics of the test images."""


def version_summary(model: LoadedModel, versions: ActiveVersions) -> dict[str, object]:
    """Build the `schemas.VersionSummary` of one of a model's active versions."""
    manifest = model.bundle.manifest
    is_canary = model is versions.canary
    canary_share = versions.canary_share
    calibration = manifest.calibration
    units = [_count(layer, "units") for layer in _layers(manifest.metrics)]
    dead = [_count(layer, "dead") for layer in _layers(manifest.metrics)]
    return {
        "version": model.version,
        "role": CANARY if is_canary else STABLE,
        "share": canary_share if is_canary else 1 - canary_share,
        "published": manifest.published,
        "preset": _network_kind(manifest.architecture),
        "classes": len(manifest.class_names),
        "input": manifest.input.model_dump(),
        "parameters": manifest.parameters,
        "precision": manifest.precision,
        "dropout": [layer.p for layer in manifest.dropout_layers],
        "calibration_images": None if calibration is None else calibration.images,
        "test": {"images": _count(manifest.metrics.get("test"), "images")}
        | {name: measured(manifest.metrics, "test", *path) for name, path in _TEST_FIGURES.items()},
        "hidden_units": _total(units),
        "dead_units": _total(dead),
        "examples": len(manifest.examples),
        "has_report": REPORT_FILE in manifest.files,
    }


def _network_kind(architecture: Architecture | AdoptedArchitecture) -> str:
    """Return the backbone, else the preset; old bundles with a backbone name a preset, too."""
    if isinstance(architecture, AdoptedArchitecture):
        return architecture.preset
    return architecture.backbone or str(architecture.preset)


def measured(metrics: Any, *path: str) -> float | None:
    """Return the number at a path of names in `metrics`; None where there is none."""
    for name in path:
        metrics = metrics.get(name) if isinstance(metrics, dict) else None
    is_number = isinstance(metrics, int | float) and not isinstance(metrics, bool)
    return float(metrics) if is_number and abs(metrics) < _LARGEST else None


def _count(metrics: Any, name: str) -> int | None:
    value = measured(metrics, name)
    return None if value is None else int(value)


def _layers(metrics: Any) -> list[Any]:
    """Return the diagnosis of each hidden layer; none where there is no diagnosis."""
    diagnosis = metrics.get("diagnosis")
    layers = diagnosis.get("layers") if isinstance(diagnosis, dict) else None
    return layers if isinstance(layers, list) else []


def _total(counts: list[int | None]) -> int | None:
    """Return the sum; None where a count is missing, or there is none."""
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None
