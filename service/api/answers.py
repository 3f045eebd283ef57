"""What a model says -> what goes over the wire. Knows no request and computes nothing.

NaN, which stands where nothing is known, is serialised as null.
"""

from typing import Any

from model.dropout.sampling import AdaptiveSamples, Analytic, FixedSamples, Sampling
from model.inference.predictor import Prediction
from model.uncertainty.calibration import Decisions
from model.uncertainty.summary import Uncertainty


def plain(answer: Prediction, class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """List the predictions of a deterministic pass."""
    return [
        {
            "label": class_names[row.argmax()],
            "confidence": float(row.max()),
            "probabilities": _by_class(row, class_names),
        }
        for row in answer.probabilities
    ]


def asked(sampling: Sampling, decisions: Decisions | None) -> dict[str, Any]:
    """Say what the uncertainties of an answer are of."""
    drawn: dict[str, Any]
    match sampling:
        case FixedSamples(seed, samples):
            drawn = {"samples": samples, "seed": seed}
        case AdaptiveSamples(seed):
            drawn = {"samples": "auto", "seed": seed}
        case Analytic():
            drawn = {"samples": None, "seed": None}
    if decisions is None:
        return drawn | {"calibration": "uncalibrated", "coverage": None, "max_risk": None}
    known = {"coverage": decisions.coverage, "max_risk": decisions.max_risk}
    return drawn | {"calibration": "fitted"} | known


def uncertain(
    answer: Uncertainty,
    class_names: tuple[str, ...],
    decisions: Decisions | None,
    sampling: Sampling,
) -> list[dict[str, Any]]:
    """List the predictions with dropout alive."""
    return [
        {
            "label": class_names[label],
            "confidence": float(answer.mean_probabilities[row, label]),
            "probabilities": _by_class(answer.mean_probabilities[row], class_names),
            "probability_std": _by_class(answer.probability_std[row], class_names),
            "standard_error": _by_class(answer.standard_error[row], class_names),
            "predictive_entropy": float(answer.predictive_entropy[row]),
            "expected_entropy": float(answer.expected_entropy[row]),
            "mutual_information": float(answer.mutual_information[row]),
            "mutual_information_error": float(answer.mutual_information_error[row]),
            "variation_ratio": float(answer.variation_ratio[row]),
            **_decided(answer, class_names, decisions, row),
            **(_stopped(answer, row) if isinstance(sampling, AdaptiveSamples) else {}),
        }
        for row, label in enumerate(answer.labels)
    ]


def _by_class(values: Any, class_names: tuple[str, ...]) -> dict[str, float]:
    return dict(zip(class_names, values.tolist(), strict=True))


def _decided(
    answer: Uncertainty, class_names: tuple[str, ...], decisions: Decisions | None, row: int
) -> dict[str, Any]:
    if decisions is None:
        return {"prediction_set": None, "typicality": None, "abstain": None}
    likeliest_first = (-answer.mean_probabilities[row]).argsort(kind="stable")
    within = likeliest_first[decisions.sets[row, likeliest_first]]
    return {
        "prediction_set": [class_names[label] for label in within],
        "typicality": float(answer.typicality[row]),
        "abstain": bool(decisions.abstain[row]),
    }


def _stopped(answer: Uncertainty, row: int) -> dict[str, Any]:
    return {
        "samples_used": int(answer.samples_used[row]),
        "stopped_because": "settled" if answer.settled[row] else "maximum",
    }
