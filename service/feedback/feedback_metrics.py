"""Shows the figures of one version as Prometheus series. Knows no database."""

from service.feedback.version_figures import VersionFigures
from service.observability.metrics_recorder import Metrics


def show_figures(metrics: Metrics, model: str, version: str, figures: VersionFigures) -> None:
    """Set the gauges of a version; a figure that is not known has no series."""
    metrics.feedback_labelled.labels(model, version).set(figures.total.labels)
    for figure, interval in figures.shares().items():
        if interval is not None:
            for bound, value in interval._asdict().items():
                metrics.feedback_share.labels(model, version, figure, bound).set(value)
    if figures.calibration_error is not None:
        error = metrics.feedback_calibration_error.labels(model, version)
        error.set(figures.calibration_error)
    for promise, test in figures.alarms().items():
        wealth = 0.0 if test is None else test.log_wealth
        metrics.feedback_log_wealth.labels(model, version, promise).set(wealth)
        alarm = test is not None and test.alarm is not None
        metrics.feedback_alarm.labels(model, version, promise).set(alarm)
