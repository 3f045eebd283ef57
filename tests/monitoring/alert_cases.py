"""What `promtool test rules` is given: an hour of ordinary traffic, and the cause of each alert.

A series is `name{labels}` and its samples, one a minute, as promtool writes them: `0+600x75` grows
by 600 a minute for 75 minutes.
"""

from dataclasses import dataclass, field

_JOB = 'job="dropserve",instance="service:8000"'
_MODEL = f'{_JOB},model="digits",version="1"'


def _requests(route: str, status: int) -> str:
    return f'dropserve_requests_total{{{_JOB},route="{route}",method="POST",status="{status}"}}'


def _bucket(limit: str) -> str:
    return f'dropserve_request_duration_seconds_bucket{{{_JOB},route="/predict",le="{limit}"}}'


UP = f"up{{{_JOB}}}"
LOADED = f"dropserve_model_info{{{_MODEL}}}"
ANSWERED, FAILED, OVERLOADED = (_requests("/predict", status) for status in (200, 500, 503))
FAST, SLOW, ALL = map(_bucket, ("0.25", "2.5", "+Inf"))
QUEUE = f'dropserve_inference_seconds_total{{{_MODEL},part="queue"}}'
CALIBRATED = f"dropserve_prediction_set_classes_count{{{_MODEL}}}"
ABSTAINED = f"dropserve_abstentions_total{{{_MODEL}}}"
DRIFT = f'dropserve_drift_alarm{{{_MODEL},figure="typicality"}}'
PROMISE = f'dropserve_feedback_alarm{{{_MODEL},promise="coverage"}}'
FEEDBACK_FAILING = f"dropserve_feedback_failing{{{_JOB}}}"
REFUSED = f'dropserve_refused_version{{{_JOB},model="digits",version="2"}}'
ROLLOUTS = f"dropserve_rollouts_valid{{{_JOB}}}"
SOURCE = (
    f'dropserve_models_source_last_success_timestamp_seconds{{{_JOB},source="s3://bucket/models"}}'
)
DROPPED = f"dropserve_log_lines_dropped_total{{{_JOB}}}"
TRAFFIC_LOST = f'dropserve_traffic_log_lines_total{{{_JOB},outcome="dropped"}}'
WRONG_KEYS, TOO_MANY_KEYS = (
    f'dropserve_access_refusals_total{{{_JOB},reason="{reason}"}}'
    for reason in ("wrong_key", "too_many")
)
KEYS_UNREADABLE = f"dropserve_keys_unreadable{{{_JOB}}}"
CERTIFICATE = f'dropserve_tls_certificate_expiry_timestamp_seconds{{{_JOB},certificate="server"}}'
OPEN = f'process_open_fds{{{_JOB},pid="7"}}'

ORDINARY = {
    UP: "1x75",
    LOADED: "1x75",
    ANSWERED: "0+600x75",
    _requests("/uncertainty", 200): "0+120x75",
    _requests("/predict", 400): "0+9x75",
    FAILED: "0x20 1x54",  # one traceback in the hour
    OVERLOADED: "0x30 3x44",  # a short burst
    _requests("/health/ready", 503): "0+4x5 20x69",  # while it was loading
    FAST: "0+597x75",
    SLOW: "0+600x75",
    ALL: "0+600x75",
    QUEUE: "0+3x75",
    f'dropserve_inference_requests_total{{{_MODEL},outcome="success"}}': "0+720x75",
    CALIBRATED: "0+120x75",
    ABSTAINED: "0+6x75",
    DRIFT: "0x75",
    f'dropserve_drift_alarm{{{_MODEL},figure="confidence"}}': "0x75",
    PROMISE: "0x75",
    FEEDBACK_FAILING: "0x30 1x3 0x41",  # its disk was full for a moment
    REFUSED: "0x75",
    ROLLOUTS: "1x75",
    SOURCE: "0+60x75",  # polled a moment ago, by promtool's clock that begins at 0
    DROPPED: "0x75",
    TRAFFIC_LOST: "0x75",
    f'dropserve_traffic_log_lines_total{{{_JOB},outcome="written"}}': "0+720x75",
    WRONG_KEYS: "0x20 0+2x54",  # somebody tries an old key
    TOO_MANY_KEYS: "0x75",
    f'dropserve_access_refusals_total{{{_JOB},reason="no_key"}}': "0+5x75",
    KEYS_UNREADABLE: "0x30 1x1 0x43",  # the file was being replaced
    CERTIFICATE: "2592000x75",  # promtool begins at 1970: thirty days
    OPEN: "60x75",
    f'process_max_fds{{{_JOB},pid="7"}}': "1024x75",
}


@dataclass(frozen=True)
class Case:
    """The cause of one alert, amid ordinary traffic."""

    cause: dict[str, str]
    """Series that are otherwise than in ordinary traffic."""
    quiet_minute: int
    """When the cause is there, and not yet for as long as the alert waits."""
    firing_minute: int
    labels: dict[str, str]
    """Of the alert, without `job` and its severity."""
    summary: str
    without: tuple[str, ...] = field(default=())
    """Series that are missing."""


_INSTANCE = {"instance": "service:8000"}
_VERSION = {"model": "digits", "version": "1"}

CASES = {
    "DropserveDown": Case(
        {UP: "1x9 0x65"}, 10, 12, _INSTANCE, "service:8000 does not answer Prometheus."
    ),
    "DropserveNothingServes": Case(
        {}, 1, 3, _INSTANCE, "service:8000 answers, and has no model.", without=(LOADED,)
    ),
    "DropserveErrorRatioHigh": Case(
        {FAILED: "0+30x75"}, 4, 8, {}, "3.953% of the requests fail with a 5xx that is not 503."
    ),
    "DropserveOverloaded": Case(
        {OVERLOADED: "0+60x75"}, 4, 8, {}, "7.605% of the requests are refused with 503."
    ),
    "DropserveSaturated": Case(
        {QUEUE: "0+144x75"}, 8, 13, {}, "Requests wait 200ms in the queue on average."
    ),
    "DropserveLatencyHigh": Case(
        {FAST: "0+300x75"},
        8,
        13,
        {"route": "/predict"},
        "The slowest 1 % of /predict takes over 2.455s.",
    ),
    "DropserveVersionRefused": Case(
        {REFUSED: "0x9 1x65"},
        10,
        12,
        {"model": "digits", "version": "2"},
        "digits version 2 was refused; the version before it serves on.",
    ),
    "DropserveRolloutsUnreadable": Case(
        {ROLLOUTS: "1x9 0x65"},
        11,
        13,
        _INSTANCE,
        "service:8000 cannot read which versions are wanted, and serves the last ones that it has "
        "read.",
    ),
    "DropserveModelsSourceStale": Case(
        {SOURCE: "0+60x9 540x65"},
        25,
        27,
        {**_INSTANCE, "source": "s3://bucket/models"},
        "service:8000 has not fetched all that s3://bucket/models has for 18m 0s, and serves what "
        "it has.",
    ),
    "DropserveAbstentionRateHigh": Case(
        {ABSTAINED: "0+60x75"},
        14,
        18,
        _VERSION,
        "digits version 1 abstains from 50% of its answers.",
    ),
    "DropserveDrift": Case(
        {DRIFT: "0x9 1x65"},
        9,
        10,
        {**_VERSION, "figure": "typicality"},
        "Images sent to digits version 1 are unlike its validation images (typicality).",
    ),
    "DropservePromiseBroken": Case(
        {PROMISE: "0x9 1x65"},
        9,
        10,
        {**_VERSION, "promise": "coverage"},
        "True labels show that digits version 1 does not keep its coverage.",
    ),
    "DropserveFeedbackNotStored": Case(
        {FEEDBACK_FAILING: "0x9 1x65"},
        14,
        16,
        _INSTANCE,
        "service:8000 cannot use its file of true labels, and refuses them.",
    ),
    "DropserveLogLinesDropped": Case(
        {DROPPED: "0x9 40x65"},
        9,
        15,
        _INSTANCE,
        "service:8000 has dropped 40 lines of its log in ten minutes.",
    ),
    "DropserveTrafficLogLinesDropped": Case(
        {TRAFFIC_LOST: "0x9 40x65"},
        9,
        15,
        _INSTANCE,
        "service:8000 has dropped 40 lines of its traffic log in ten minutes.",
    ),
    "DropserveWrongKeys": Case(
        {WRONG_KEYS: "0+20x75", TOO_MANY_KEYS: "0+40x75"},
        8,
        13,
        {},
        "1 requests a second have a key that is not good.",
    ),
    "DropserveKeysUnreadable": Case(
        {KEYS_UNREADABLE: "0x9 1x65"},
        11,
        13,
        _INSTANCE,
        "service:8000 cannot read its file of keys: those that have been revoked since stay good.",
    ),
    "DropserveCertificateExpires": Case(
        {CERTIFICATE: "432000x75"},
        8,
        13,
        {**_INSTANCE, "certificate": "server"},
        "The server certificate of service:8000 ends in 4d 23h 47m 0s.",
    ),
    "DropserveFileDescriptorsLow": Case(
        {OPEN: "960x75"},
        4,
        6,
        _INSTANCE,
        "A worker of service:8000 has 93.75% of its file descriptors open.",
    ),
}

NO_INSTANCE_IS_LEFT = Case(
    {UP: "1x9 stale", LOADED: "1x9 stale"},
    10,
    12,
    {},
    "There is no instance that answers Prometheus.",
    without=tuple(ORDINARY),
)
"""The other cause of DropserveDown: no Pod can start, or Prometheus has lost its targets."""
