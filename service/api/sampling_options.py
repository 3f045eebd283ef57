"""What a request asks of dropout -> what a head is asked. Knows no HTTP."""

from model.dropout.sampling import AdaptiveSamples, Analytic, FixedSamples, Sampling
from service.api.schemas import SamplingQuery
from service.errors import InvalidQueryError
from service.settings import ServiceSettings


def sampling(query: SamplingQuery, settings: ServiceSettings, *, brief: bool = False) -> Sampling:
    """Turn what a request asks into what a head is asked.

    brief: without the figures that a protocol does not give.

    Raises:
        InvalidQueryError: more samples than allowed, or parameters that exclude one another.
    """
    if query.method == "analytic":
        _refuse(query, ("samples", "seed", "design"), "method=analytic draws no samples")
        return Analytic()
    seed = settings.default_seed if query.seed is None else query.seed
    if query.samples == "auto":
        _refuse(query, ("design",), "samples=auto draws masks in independent pairs")
        return AdaptiveSamples(seed, settings.max_samples)
    samples = settings.default_samples if query.samples is None else query.samples
    if samples > settings.max_samples:
        raise InvalidQueryError(
            f"Parameter 'samples': at most {settings.max_samples} are drawn here, "
            f"but got {samples}."
        )
    return FixedSamples(seed, samples, query.design or "orthogonal", brief)


def _refuse(query: SamplingQuery, names: tuple[str, ...], reason: str) -> None:
    for name in names:
        if getattr(query, name) is not None:
            raise InvalidQueryError(f"Parameter {name!r}: {reason}; leave it out.")
