"""Validated query parameters -> the `Sampling` that a predictor takes. Knows no HTTP."""

from model.dropout.sampling_methods import AdaptiveSamples, Analytic, FixedSamples, Sampling
from service.api.schemas import MAX_SAMPLE_PROBABILITIES, SamplingQuery
from service.errors import InvalidQueryError, TooCostlyError
from service.settings import ServiceSettings

_NO_SAMPLES = "method=analytic draws no samples"


def parse_sampling(
    query: SamplingQuery,
    settings: ServiceSettings,
    *,
    summary_only: bool = False,
    keep_samples: bool = False,
) -> Sampling:
    """Build the sampling that a request selects, with the configured defaults filled in.

    summary_only: compute only the statistics that the Open Inference Protocol returns.
    keep_samples: keep the probabilities of each sample.

    Raises:
        InvalidQueryError: too many samples, or parameters that exclude one another.
    """
    if query.method == "analytic":
        _refuse_parameters(query, ("samples", "seed", "design"), _NO_SAMPLES)
        if keep_samples:
            raise InvalidQueryError(f"Parameter 'per_sample': {_NO_SAMPLES}; leave it out.")
        return Analytic()
    seed = settings.default_seed if query.seed is None else query.seed
    if query.samples == "auto":
        _refuse_parameters(query, ("design",), "samples=auto draws masks in independent pairs")
        return AdaptiveSamples(seed, settings.max_samples, keep_samples)
    samples = settings.default_samples if query.samples is None else query.samples
    if samples > settings.max_samples:
        raise InvalidQueryError(
            f"Parameter 'samples': at most {settings.max_samples} are drawn here, "
            f"but got {samples}."
        )
    return FixedSamples(seed, samples, query.design or "orthogonal", summary_only, keep_samples)


def require_few_sample_probabilities(sampling: Sampling, images: int, classes: int) -> int:
    """Check how many probabilities of single samples a response would have, and return that.

    It is 0 if they are not kept, and with adaptive sampling the most that there can be.

    Raises:
        TooCostlyError: more than MAX_SAMPLE_PROBABILITIES.
    """
    match sampling:
        case FixedSamples(samples=samples, keep_samples=True):
            what = "samples"
        case AdaptiveSamples(max_samples=samples, keep_samples=True):
            what = "most samples"
        case _:
            return 0
    count = images * samples * classes
    if count > MAX_SAMPLE_PROBABILITIES:
        fewer = MAX_SAMPLE_PROBABILITIES // (images * classes)
        advice = f"draw at most {fewer} samples" if fewer else "send fewer images"
        raise TooCostlyError(
            f"Parameter 'per_sample': {images} x {samples} x {classes} probabilities (images x "
            f"{what} x classes) are more than the {MAX_SAMPLE_PROBABILITIES:,} of one response; "
            f"{advice}."
        )
    return count


def _refuse_parameters(query: SamplingQuery, names: tuple[str, ...], reason: str) -> None:
    for name in names:
        if getattr(query, name) is not None:
            raise InvalidQueryError(f"Parameter {name!r}: {reason}; leave it out.")
