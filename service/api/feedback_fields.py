"""The figures of feedback -> the fields of JSON responses. Reads no request and no database."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from model.uncertainty.binomial_interval import Interval, wilson_interval
from model.uncertainty.sequential_test_of_coverage_and_risk import PromisedRateTest
from service.errors import STATUS_AND_CODE, ServiceError
from service.feedback.label_transaction import LabelledAnswer, TrueLabel
from service.feedback.version_figures import BINS, LabelCounts, VersionFigures


def describe_results(
    labels: Sequence[TrueLabel], results: Sequence[LabelledAnswer | ServiceError]
) -> list[dict[str, Any]]:
    """Build a `FeedbackResult` for each label."""
    return [
        {"request_id": true.request_id, "image": true.image, **_result_fields(result)}
        for true, result in zip(labels, results, strict=True)
    ]


def describe_figures(
    model: str, version: str, figures: VersionFigures, alarm_rate: float
) -> dict[str, Any]:
    """Build a `VersionFeedback`."""
    shares = {name: _share(interval) for name, interval in figures.shares().items()}
    return {
        "model": model,
        "version": version,
        "labels": figures.total.labels,
        **shares,
        "set_size": figures.set_size,
        "calibration_error": figures.calibration_error,
        "bins": [
            _bin(number, counts) for number, counts in sorted(figures.bins.items()) if counts.labels
        ],
        "alarm_rate": alarm_rate,
        "alarm": bool(figures.broken_promises),
        "tests": _tests(figures),
    }


def _result_fields(result: LabelledAnswer | ServiceError) -> dict[str, Any]:
    if isinstance(result, ServiceError):
        nothing = dict.fromkeys(("model", "version", "predicted", "correct"))
        code = STATUS_AND_CODE[type(result)][1]
        return {"outcome": "refused", **nothing, "error": str(result), "code": code}
    return {**result._asdict(), "error": None, "code": None}


def _tests(figures: VersionFigures) -> list[dict[str, Any]]:
    tests: list[dict[str, Any]] = []
    if figures.risk is not None:
        tests.append({"promise": "max_risk", "sets": None, "coverage": None, **_test(figures.risk)})
    for each in figures.coverages:
        subject = {"sets": each.sets, "coverage": each.coverage}
        tests.append({"promise": "coverage", **subject, **_test(each.test)})
    return tests


def _test(test: PromisedRateTest) -> dict[str, Any]:
    alarm: dict[str, Any] | None = None
    if test.alarm is not None:
        label, moment = test.alarm
        time = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
        alarm = {"label": label, "time": time.replace("+00:00", "Z")}
    return {
        "labels": test.events,
        "missed": test.misses,
        "missed_share": _share(wilson_interval(test.misses, test.events)),
        "log_wealth": test.log_wealth,
        "p_value": test.p_value,
        "alarm": alarm,
    }


def _bin(number: int, counts: LabelCounts) -> dict[str, Any]:
    return {
        "low": number / BINS,
        "high": (number + 1) / BINS,
        "labels": counts.labels,
        "confidence": counts.confidence / counts.labels,
        "accuracy": _share(wilson_interval(counts.correct, counts.labels)),
    }


def _share(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else interval._asdict()
