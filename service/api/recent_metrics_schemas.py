"""Pydantic schemas of GET /metrics/recent, for the OpenAPI description.

`Counts` and `Values` have a value for each interval, the oldest first; null: unknown. Windows are
in the order of `windows_seconds`.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from service.api.feedback_schemas import VersionFeedback
from service.api.schemas import Drift, Probability, RefusedVersion

Counts = list[int]
Values = list[float | None]


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Percentiles(_Schema):
    """Durations of requests in a window, seconds; null: there was no request."""

    p50: float | None
    p90: float | None
    p99: float | None


class PercentileSeries(_Schema):
    """Durations of requests in each interval, seconds; null: there was no request."""

    p50: Values
    p90: Values
    p99: Values


class RouteWindow(_Schema):
    """The requests of a window."""

    answered: int
    refused: int
    failed: int
    seconds: Percentiles


class RecentRequests(_Schema):
    """Requests in each interval by outcome, and how long they took."""

    answered: Counts = Field(description="with a status below 400")
    refused: Counts = Field(description="with a status of 400 to 499")
    failed: Counts = Field(description="with a status from 500")
    seconds: PercentileSeries
    windows: list[RouteWindow]


class RecentRoute(RecentRequests):
    """The requests of one route."""

    route: str = Field(description="unmatched: requests for no route")
    for_operators: bool = Field(description="whether it is one of pages, health or metrics")


class BatchRows(_Schema):
    """Inference runs in each window, by their number of images."""

    edges: list[int] = Field(description="most images of each bucket; one more bucket follows")
    counts: list[list[int]] = Field(description="of each window, inference runs by bucket")


class RecentEngine(_Schema):
    """The processes of the service and its inference runs; null: nothing was recorded then."""

    memory_bytes: Values = Field(
        description="resident memory of the workers and their child processes; what they share "
        "counts for each"
    )
    processors: Values = Field(description="processors that they used, 1 for one fully used")
    in_flight: Values = Field(description="requests in flight at the end of the interval")
    queue_rows: Values = Field(description="images that waited for inference at the end")
    queue_seconds: Values = Field(description="mean wait of a request for its inference run")
    rows_per_run: Values = Field(description="mean number of images of an inference run")
    batch_rows: BatchRows


class Abstentions(_Schema):
    """Predictions that abstained, by reason."""

    unsure: int
    unusual: int
    both: int


class Histograms(_Schema):
    """Numbers of predictions by bucket."""

    predictive_entropy: list[int]
    mutual_information: list[int]
    typicality: list[int] = Field(description="all 0 for an uncalibrated model")
    set_size: list[int] = Field(description="all 0 for an uncalibrated model")


class Edges(_Schema):
    """The upper ends of the buckets; one more bucket follows."""

    predictive_entropy: list[float] = Field(description="nats")
    mutual_information: list[float] = Field(description="nats")
    typicality: list[float]
    set_size: list[float] = Field(description="classes")


class Reference(_Schema):
    """The share of validation images in each bucket; null: the bundle does not tell."""

    predictive_entropy: list[Probability] | None
    mutual_information: list[Probability] | None
    typicality: list[Probability] | None
    set_size: list[Probability] | None = Field(description="of sets with the default coverage")


class VersionWindow(_Schema):
    """The predictions of POST /uncertainty in a window."""

    images: int
    abstentions: Abstentions
    histograms: Histograms


class RecentVersion(_Schema):
    """The predictions of POST /uncertainty by one active version, drift tests and labels."""

    model: str
    version: str
    role: Literal["stable", "canary"]
    classes: int
    images: Counts
    abstained: Counts
    windows: list[VersionWindow]
    edges: Edges
    reference: Reference
    drift: Drift
    feedback: VersionFeedback | None = Field(
        description="what the true labels say, two seconds old at most; null: the service takes "
        "none, or has not read them yet"
    )


class RecentMetrics(_Schema):
    """The response of GET /metrics/recent."""

    time: int = Field(description="end of the newest interval, seconds since 1970")
    interval_seconds: int
    windows_seconds: list[int] = Field(description="how long before `time` each window begins")
    workers: Counts = Field(description="how many recorded the interval; 0: none was there")
    engine: RecentEngine
    requests: RecentRequests = Field(description="of all routes that are not for operators")
    routes: list[RecentRoute] = Field(description="those with requests, the busiest first")
    versions: list[RecentVersion]
    refused: list[RefusedVersion]
