"""Whether and which requests are traced, as OpenTelemetry's environment variables say.

The SDK itself reads the others of them: endpoint, headers, timeout, resource, batches. What is read
here decides whether it is imported at all, and which requests are sampled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from service.tracing.trace_context import TraceParent

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
EXTRA = "pip install '.[tracing]'"
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"
_LIMIT = 2**64
"""A trace is sampled if the lower 64 bits of its id are below the ratio times this, as the SDK's
TraceIdRatioBased has it: so all services with one ratio sample the same traces."""
_DEFAULT_SAMPLER = "parentbased_always_on"
_PARENT_BASED = "parentbased_"
_RATIO_SAMPLER = "traceidratio"
_RATIOS = {"always_on": 1.0, "always_off": 0.0, _RATIO_SAMPLER: None}


@dataclass(frozen=True, slots=True)
class Sampler:
    """Decides which requests are sampled."""

    name: str
    ratio: float
    """Which share of the requests that begin a trace is sampled, 0..1."""
    bound: int
    """Trace ids of which the lower 64 bits are smaller are sampled."""
    follows_parent: bool
    """Whether a request that names its trace is sampled if its caller's span is."""

    def samples(self, trace_id: int, parent: TraceParent | None) -> bool:
        """Return whether a request of this trace is sampled."""
        if parent is not None and self.follows_parent:
            return parent.is_sampled
        return trace_id & (_LIMIT - 1) < self.bound


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """What the environment says about traces."""

    sampler: Sampler | None
    """None: no request is traced, and there is nothing more to do."""
    problems: Sequence[str]
    """What is set and cannot be obeyed: a sentence each."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self:
        """Read the variables."""
        name = next((each for each in ENDPOINTS if environment.get(each)), None)
        exporter = environment.get("OTEL_TRACES_EXPORTER") or "otlp"
        is_disabled = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
        if name is None or is_disabled or exporter == "none":
            return cls(None, ())
        if not environment[name].lower().startswith(("http://", "https://")):
            return cls(None, [f"{name} is no URL; write http://HOST:4318, or with https://."])
        problems = []
        protocol = next((found for each in _PROTOCOLS if (found := environment.get(each))), None)
        if (protocol or _PROTOCOL) != _PROTOCOL:
            problems.append(f"OTLP is sent as {_PROTOCOL}, not as {protocol!r}; see that it fits.")
        if exporter != "otlp":
            problems.append(f"OTEL_TRACES_EXPORTER is {exporter!r}; traces are sent by otlp alone.")
        return cls(_read_sampler(environment, problems), problems)


def _read_sampler(environment: Mapping[str, str], problems: list[str]) -> Sampler:
    name = (environment.get("OTEL_TRACES_SAMPLER") or _DEFAULT_SAMPLER).strip().lower()
    root = name.removeprefix(_PARENT_BASED)
    if root not in _RATIOS:
        problems.append(f"OTEL_TRACES_SAMPLER {name!r} is not offered; {_DEFAULT_SAMPLER} is used.")
        name = _DEFAULT_SAMPLER
        root = name.removeprefix(_PARENT_BASED)
    ratio = _RATIOS[root]
    if ratio is None:
        ratio = _read_ratio(environment.get("OTEL_TRACES_SAMPLER_ARG") or "1", problems)
    return Sampler(name, ratio, round(ratio * _LIMIT), name.startswith(_PARENT_BASED))


def _read_ratio(text: str, problems: list[str]) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if 0 <= ratio <= 1:
        return ratio
    problems.append(f"OTEL_TRACES_SAMPLER_ARG {text!r} is no number from 0 to 1; 1 is used.")
    return 1.0
