"""What a line of the traffic log must hold to be replayed. Reads no file."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from model.dropout.masks import MAX_SAMPLES, MAX_SEED, Design
from model.dropout.sampling_methods import AdaptiveSamples, Analytic, FixedSamples, Sampling
from model.uncertainty.prediction_sets import SetKind
from service.traffic_log.traffic_record import TrafficOptions

Share = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Samples = Annotated[int, Field(ge=1, le=MAX_SAMPLES)]


class _Schema(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Levels(_Schema):
    max_risk: Share | None
    max_false_alarm: Share
    coverage: Share | None
    sets: SetKind | None


class FixedOptions(_Levels):
    """A fixed number of samples."""

    method: Literal["mc_dropout"]
    samples: Samples
    seed: Seed
    design: Design


class AdaptiveOptions(_Levels):
    """As many samples as decide the label."""

    method: Literal["mc_dropout"]
    samples: Literal["auto"]
    seed: Seed
    max_samples: Samples


class AnalyticOptions(_Levels):
    """The distribution of the logits, integrated."""

    method: Literal["analytic"]


class Answer(_Schema):
    """The label, and the probabilities of the likeliest classes."""

    label: str
    probabilities: dict[str, Annotated[float, Field(ge=0, le=1)]]


class Doubt(_Schema):
    """Whether the answer abstained, where that was asked."""

    abstain: bool | None = None


class ModelOfLine(_Schema):
    """What of a line says whether it is meant."""

    model: str


class LogLine(ModelOfLine):
    """One line; what else it holds is not looked at."""

    version: str
    route: str
    request_id: str | None
    digest: Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
    options: FixedOptions | AdaptiveOptions | AnalyticOptions | None
    answer: Answer
    doubt: Doubt

    def traffic_options(self, *, summary_only: bool) -> TrafficOptions | None:
        """Return the options as they were noted; None: deterministic.

        summary_only: as in `FixedSamples`; it changes the last digits, so the route decides it.
        """
        match self.options:
            case None:
                return None
            case FixedOptions(samples=samples, seed=seed, design=design):
                sampling: Sampling = FixedSamples(seed, samples, design, summary_only)
            case AdaptiveOptions(seed=seed, max_samples=most):
                sampling = AdaptiveSamples(seed, most)
            case AnalyticOptions():
                sampling = Analytic()
        levels = self.options
        return TrafficOptions(
            sampling, levels.max_risk, levels.max_false_alarm, levels.coverage, levels.sets
        )
