"""Validated query parameters -> the `Sampling` that a predictor takes. Knows no HTTP."""

from model.dropout.sampling_methods import AdaptiveSamples, Analytic, FixedSamples, Sampling
from service.api.schemas import SamplingQuery
from service.errors import InvalidQueryError
from service.settings import ServiceSettings


def parse_sampling(
    query: SamplingQuery, settings: ServiceSettings, *, summary_only: bool = False
) -> Sampling:
    """Build the sampling that a request selects, with the configured defaults filled in.

    summary_only: compute only the statistics that the Open Inference Protocol returns.

    Raises:
        InvalidQueryError: too many samples, or parameters that exclude one another.
    """
    if query.method == "analytic":
        _refuse_parameters(query, ("samples", "seed", "design"), "method=analytic draws no samples")
        return Analytic()
    seed = settings.default_seed if query.seed is None else query.seed
    if query.samples == "auto":
        _refuse_parameters(query, ("design",), "samples=auto draws masks in independent pairs")
        return AdaptiveSamples(seed, settings.max_samples)
    samples = settings.default_samples if query.samples is None else query.samples
    if samples > settings.max_samples:
        raise InvalidQueryError(
            f"Parameter 'samples': at most {settings.max_samples} are drawn here, "
            f"but got {samples}."
        )
    return FixedSamples(seed, samples, query.design or "orthogonal", summary_only)


def _refuse_parameters(query: SamplingQuery, names: tuple[str, ...], reason: str) -> None:
    for name in names:
        if getattr(query, name) is not None:
            raise InvalidQueryError(f"Parameter {name!r}: {reason}; leave it out.")
