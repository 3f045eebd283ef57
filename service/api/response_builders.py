"""Model outputs -> the fields of JSON responses. Reads no request and computes nothing.

NaN, which stands for an unknown value, is serialised as null.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.dropout.sampling_methods import AdaptiveSamples, Analytic, FixedSamples, Sampling
from model.inference.prediction import Prediction
from model.uncertainty.calibration import AbstentionReason, Decisions
from model.uncertainty.uncertainty_measures import Uncertainty, count_votes

_LEVELS = ("coverage", "max_risk", "max_false_alarm")
"""The fields of `Decisions` that describe what was decided by."""


def deterministic_predictions(
    prediction: Prediction, class_names: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Build the `predictions` of POST /predict, one per image."""
    return [
        {
            "label": class_names[row.argmax()],
            "confidence": float(row.max()),
            "probabilities": _by_class(row, class_names),
            "typicality": typicality,
        }
        for row, typicality in zip(
            prediction.probabilities, prediction.typicality.tolist(), strict=True
        )
    ]


def sampling_fields(sampling: Sampling, decisions: Decisions | None) -> dict[str, Any]:
    """Build the fields that describe how the uncertainties were sampled and calibrated."""
    fields: dict[str, Any]
    match sampling:
        case FixedSamples(seed, samples):
            fields = {"samples": samples, "seed": seed}
        case AdaptiveSamples(seed):
            fields = {"samples": "auto", "seed": seed}
        case Analytic():
            fields = {"samples": None, "seed": None}
    if decisions is None:
        return fields | {"calibration": "uncalibrated", **dict.fromkeys(_LEVELS)}
    return fields | {
        "calibration": "fitted",
        **{name: getattr(decisions, name) for name in _LEVELS},
    }


def uncertain_predictions(
    uncertainty: Uncertainty,
    class_names: tuple[str, ...],
    decisions: Decisions | None,
    sampling: Sampling,
) -> list[dict[str, Any]]:
    """Build the `predictions` of POST /uncertainty, one per image.

    decisions: None for an uncalibrated model, whose sets, typicality and abstention are null.
    """
    reasons = [None] * len(uncertainty.labels) if decisions is None else decisions.reasons()
    return [
        {
            "label": class_names[label],
            "confidence": float(uncertainty.mean_probabilities[row, label]),
            "probabilities": _by_class(uncertainty.mean_probabilities[row], class_names),
            "probability_std": _by_class(uncertainty.probability_std[row], class_names),
            "standard_error": _by_class(uncertainty.standard_error[row], class_names),
            "predictive_entropy": float(uncertainty.predictive_entropy[row]),
            "expected_entropy": float(uncertainty.expected_entropy[row]),
            "mutual_information": float(uncertainty.mutual_information[row]),
            "mutual_information_error": float(uncertainty.mutual_information_error[row]),
            "variation_ratio": float(uncertainty.variation_ratio[row]),
            **_decision_fields(uncertainty, class_names, decisions, reasons[row], row),
            **(_stopping_fields(uncertainty, row) if isinstance(sampling, AdaptiveSamples) else {}),
            **_sample_fields(uncertainty.sample_probabilities[row], class_names),
        }
        for row, label in enumerate(uncertainty.labels)
    ]


def _by_class(values: NDArray[Any], class_names: tuple[str, ...]) -> dict[str, Any]:
    return dict(zip(class_names, values.tolist(), strict=True))


def _decision_fields(
    uncertainty: Uncertainty,
    class_names: tuple[str, ...],
    decisions: Decisions | None,
    reason: AbstentionReason | None,
    row: int,
) -> dict[str, Any]:
    if decisions is None:
        return dict.fromkeys(("prediction_set", "typicality", "abstain", "abstain_because"))
    by_probability = (-uncertainty.mean_probabilities[row]).argsort(kind="stable")
    prediction_set = by_probability[decisions.sets[row, by_probability]]
    return {
        "prediction_set": [class_names[label] for label in prediction_set],
        "typicality": float(uncertainty.typicality[row]),
        "abstain": reason is not None,
        "abstain_because": reason,
    }


def _stopping_fields(uncertainty: Uncertainty, row: int) -> dict[str, Any]:
    return {
        "samples_used": int(uncertainty.samples_used[row]),
        "stopped_because": "settled" if uncertainty.label_decided[row] else "maximum",
    }


def _sample_fields(
    sample_probabilities: NDArray[np.float32] | None, class_names: tuple[str, ...]
) -> dict[str, Any]:
    """Build the fields of `per_sample` for an image; sample_probabilities: [K, T], or None."""
    if sample_probabilities is None:
        return {}
    return {
        "sample_probabilities": dict(zip(class_names, sample_probabilities, strict=True)),
        "votes": _by_class(count_votes(sample_probabilities), class_names),
    }
