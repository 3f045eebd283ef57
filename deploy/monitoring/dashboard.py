"""Makes the Grafana dashboard: `python -m deploy.monitoring.dashboard` writes its JSON.

Each panel is a line of PANELS below. Knows no figure that /metrics or the recording rules have not.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders.common import VizLegendOptions
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DatasourceVariable,
    QueryVariable,
    Row,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.timeseries import Panel as TimeSeries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import DataSourceRef
from grafana_foundation_sdk.models.dashboard import VariableRefresh

FILE = Path(__file__).parent / "grafana" / "dashboards" / "dropserve.json"
_SOURCE = DataSourceRef(type_val="prometheus", uid="$source")
_COLUMNS, _PANELS_A_ROW, _HEIGHT = 24, 3, 8


@dataclass(frozen=True)
class Figure:
    """One panel: its title, what it shows, its unit, and queries with their legends."""

    title: str
    description: str
    unit: str
    queries: dict[str, str]
    """Legend -> PromQL. `{{label}}` in a legend is that label's value."""
    least: float | None = 0
    """The lower end of the axis; None: by the values."""
    most: float | None = None
    """The upper end of the axis; None: by the values."""


def _quantiles(metric: str, labels: str) -> dict[str, str]:
    """Return the median and the 99th percentile of a histogram, by `labels`."""
    inner = f'sum by (le, {labels}) (rate({metric}_bucket{{job="dropserve"}}[$__rate_interval]))'
    legend = "{{" + labels + "}}"
    return {
        f"{legend} median": f"histogram_quantile(0.5, {inner})",
        f"{legend} p99": f"histogram_quantile(0.99, {inner})",
    }


def _mean(metric: str) -> dict[str, str]:
    """Return the mean of a histogram by model and version."""
    total, count = (
        f'sum by (model, version) (rate({metric}_{part}{{model=~"$model"}}[$__rate_interval]))'
        for part in ("sum", "count")
    )
    return {"{{model}} {{version}}": f"{total} / {count}"}


def _share_of_shadow(part: str, whole: str) -> str:
    """Return the ratio of two rates of a shadow's series, by model and shadow."""
    rates = [
        f'sum by (model, shadow) (rate(dropserve_shadow_{name}{{model=~"$model"}}'
        "[$__rate_interval]))"
        for name in (part, whole)
    ]
    return " / ".join(rates)


PANELS: dict[str, list[Figure]] = {
    "Requests": [
        Figure(
            "Requests by status",
            "Requests a second, without health checks, pages and scrapes.",
            "reqps",
            {"{{status}}": "job_status:dropserve_requests:rate5m"},
        ),
        Figure(
            "Failed and refused",
            "Share of the requests answered with 503 (overloaded) and with another 5xx (failed).",
            "percentunit",
            {
                "failed": "job:dropserve_requests_errors:ratio_rate5m",
                "overloaded": "job:dropserve_requests_overloaded:ratio_rate5m",
            },
        ),
        Figure(
            "p99 by route",
            "Time that 99 % of the requests do not exceed, over five minutes.",
            "s",
            {"{{route}}": "job_route:dropserve_request_duration_seconds:p99_rate5m"},
        ),
        Figure(
            "Requests in flight",
            "Requests being answered, over all workers.",
            "short",
            {"{{instance}}": 'dropserve_requests_in_hand{job="dropserve"}'},
        ),
        Figure(
            "Images waiting",
            "Images waiting for inference.",
            "short",
            {"{{model}}": 'sum by (model) (dropserve_queue_rows{model=~"$model"})'},
        ),
        Figure(
            "Mean wait in the queue",
            "Time from a decoded image to its inference run.",
            "s",
            {"wait": "job:dropserve_queue_seconds:mean_rate5m"},
        ),
    ],
    "Inference": [
        Figure(
            "Images predicted",
            "Images a second; NAME-mc is NAME with dropout active.",
            "short",
            {
                "{{model}}": "sum by (model) (rate("
                'dropserve_inference_images_total{job="dropserve"}[$__rate_interval]))'
            },
        ),
        Figure(
            "Stages",
            "Duration of one run of decode, trunk or head.",
            "s",
            _quantiles("dropserve_stage_seconds", "stage"),
        ),
        Figure(
            "Images in a run",
            "How many images an inference run takes together.",
            "short",
            _quantiles("dropserve_batch_rows", "model"),
        ),
    ],
    "Uncertainty": [
        Figure(
            "Abstentions",
            "Share of the calibrated predictions that abstained, over 15 minutes.",
            "percentunit",
            {
                "{{model}} {{version}}": "job_model_version:dropserve_abstentions:ratio_rate15m"
                '{model=~"$model"}'
            },
            most=1,
        ),
        Figure(
            "Abstentions by reason",
            "Abstentions a second: unsure, unusual, or both.",
            "short",
            {
                "{{model}} {{reason}}": "sum by (model, reason) (rate("
                'dropserve_abstentions_by_reason_total{model=~"$model"}[$__rate_interval]))'
            },
        ),
        Figure(
            "Evidence for drift",
            "Logarithm of the test's wealth: 0 at first, an alarm from ln(2 / --drift-level).",
            "none",
            {
                "{{model}} {{version}} {{figure}}": "max by (model, version, figure) ("
                'dropserve_drift_log_wealth{model=~"$model"})'
            },
            least=None,
        ),
        Figure(
            "Predictive entropy",
            "Mean over the predictions of /uncertainty, in nats.",
            "none",
            _mean("dropserve_predictive_entropy_nats"),
        ),
        Figure(
            "Mutual information",
            "Mean over the predictions of /uncertainty, in nats.",
            "none",
            _mean("dropserve_mutual_information_nats"),
        ),
        Figure(
            "Typicality",
            "Mean over the images sent to /uncertainty; about 0.5 while they are like the "
            "validation images.",
            "none",
            _mean("dropserve_typicality"),
            most=1,
        ),
    ],
    "True labels": [
        Figure(
            "Accuracy and coverage",
            "Share of right labels and of sets with the true class, with the ends of 95 % "
            "intervals.",
            "percentunit",
            {
                "{{model}} {{version}} {{figure}} {{bound}}": "max by (model, version, figure, "
                'bound) (dropserve_feedback_share{model=~"$model",figure=~"accuracy|coverage"})'
            },
            least=None,
            most=1,
        ),
        Figure(
            "Error among the answered, overconfidence",
            "Wrong answers among those that do not abstain; mean confidence minus accuracy.",
            "percentunit",
            {
                "{{model}} {{version}} {{figure}}": "max by (model, version, figure) ("
                'dropserve_feedback_share{model=~"$model",bound="estimate",'
                'figure=~"error_among_answered|overconfidence"})'
            },
            least=None,
        ),
        Figure(
            "Evidence for a broken promise",
            "Logarithm of the test's wealth: 0 at first; the alarm is raised from "
            "ln(2 / --feedback-alarm-rate) for the risk, from ln(4 / it) or more for a coverage.",
            "none",
            {
                "{{model}} {{version}} {{promise}}": "max by (model, version, promise) ("
                'dropserve_feedback_log_wealth{model=~"$model"})'
            },
            least=None,
        ),
    ],
    "Shadow versions": [
        Figure(
            "Other answers of the shadow",
            "Share of the compared images to which the shadow gives another label, and of those "
            "that one version abstains from and the other does not.",
            "percentunit",
            {
                "{{model}} {{shadow}} label": _share_of_shadow(
                    "label_differences_total", "probability_difference_count"
                ),
                "{{model}} {{shadow}} abstention": _share_of_shadow(
                    "abstention_differences_total", "abstentions_compared_total"
                ),
            },
            most=1,
        ),
        Figure(
            "Probability of the shadow",
            "Largest difference of a class's probability between both answers to an image.",
            "none",
            _quantiles("dropserve_shadow_probability_difference", "shadow"),
            most=1,
        ),
        Figure(
            "Images for the shadow",
            "Images a second that are compared, dropped since there is no room, or failed.",
            "short",
            {
                "{{model}} {{outcome}}": "sum by (model, outcome) (rate("
                'dropserve_shadow_images_total{model=~"$model"}[$__rate_interval]))'
            },
        ),
    ],
    "Versions and processes": [
        Figure(
            "Versions in service",
            "1 for each loaded version.",
            "none",
            {
                "{{model}} {{version}}": "max by (model, version) ("
                'dropserve_model_info{model=~"$model"} == 1)'
            },
        ),
        Figure(
            "Refused versions",
            "How many versions failed to load; GET /models has the reasons.",
            "none",
            {"refused": "sum(max by (model, version) (dropserve_refused_version)) or vector(0)"},
        ),
        Figure(
            "Alerts that fire",
            "docs/alerts.md says of each what to do.",
            "none",
            {
                "{{alertname}}": "sum by (alertname) ("
                'ALERTS{alertname=~"Dropserve.*",alertstate="firing"}) or vector(0)'
            },
        ),
        Figure(
            "Processors used",
            "Processor seconds a second, all workers of an instance, without their decoders.",
            "none",
            {"{{instance}}": "job_instance:process_cpu_seconds:rate5m"},
        ),
        Figure(
            "Memory of each worker",
            "Resident memory; what workers share counts for each.",
            "bytes",
            {"{{instance}} {{pid}}": 'process_resident_memory_bytes{job="dropserve"}'},
        ),
        Figure(
            "Scrapes and log lines lost",
            "Instances that answer, and lines a second that the log has dropped.",
            "none",
            {
                "up {{instance}}": 'up{job="dropserve"}',
                "dropped {{instance}}": "sum by (instance) (rate("
                'dropserve_log_lines_dropped_total{job="dropserve"}[$__rate_interval]))',
            },
        ),
        Figure(
            "Requests refused for their key",
            "Requests a second without a key, or with one that is not good or not for the route; "
            "too_many: an address that goes on with wrong ones.",
            "reqps",
            {
                "{{reason}}": "sum by (reason) (rate("
                'dropserve_access_refusals_total{job="dropserve"}[$__rate_interval])) or vector(0)'
            },
        ),
        Figure(
            "Traffic log",
            "Lines a second that were written, and that were dropped.",
            "short",
            {
                "{{outcome}}": "sum by (outcome) (rate("
                'dropserve_traffic_log_lines_total{job="dropserve"}[$__rate_interval])) '
                "or vector(0)"
            },
        ),
    ],
}


def _panel(figure: Figure, number: int) -> TimeSeries:
    panel = (
        TimeSeries()
        .id(number)
        .title(figure.title)
        .description(figure.description)
        .unit(figure.unit)
        .datasource(_SOURCE)
        .span(_COLUMNS // _PANELS_A_ROW)
        .height(_HEIGHT)
        .legend(VizLegendOptions().show_legend(True))
    )
    if figure.least is not None:
        panel.min(figure.least)
    if figure.most is not None:
        panel.max(figure.most)
    for place, (legend, expression) in enumerate(figure.queries.items()):
        query = Dataquery().expr(expression).legend_format(legend).ref_id(chr(ord("A") + place))
        panel.with_target(query)
    return panel


def dashboard_json() -> str:
    """Return the dashboard as Grafana's provisioning reads it, the same text each time."""
    model = (
        QueryVariable("model")
        .label("model")
        .datasource(_SOURCE)
        .query("label_values(dropserve_model_info, model)")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )
    dashboard = (
        Dashboard("Dropserve")
        .uid("dropserve")
        .tags(["dropserve"])
        .time("now-1h", "now")
        .refresh("15s")
        .with_variable(DatasourceVariable("source").type("prometheus"))
        .with_variable(model)
    )
    numbers = itertools.count(1)
    for title, figures in PANELS.items():
        dashboard.with_row(Row(title).id(next(numbers)))
        for figure in figures:
            dashboard.with_panel(_panel(figure, next(numbers)))
    return JSONEncoder(indent=1, sort_keys=True).encode(dashboard.build()) + "\n"


if __name__ == "__main__":
    FILE.write_text(dashboard_json())
