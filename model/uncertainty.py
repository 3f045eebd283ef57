"""What T samples say of an image, and what they disagree about. Knows no mask and no network.

Only the head's dropout is treated as Bayesian. Entropies are in nats.

`model.figures` computes what takes all samples, in ONNX Runtime; here it becomes an answer.

The entropy of a mean of T samples is too low on average, by about half the sum over classes of the
mean's variance over the mean (the delta method; Miller 1955 for counts). For random samples that is
added to the mutual information and taken from the expected entropy, so the predictive entropy stays
that of the probabilities reported beside it, and the three still add up.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.figures import BLOCK, DETAILS, LOGITS, MAIN, alone, rule, scaling
from model.sampling_error import divergence_variances, information_errors
from model.sessions import Session, start

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
_TINY = np.finfo(np.float64).tiny


@dataclass(
    slots=True
)  # not frozen: one is made for each request, and that would take thrice as long
class Uncertainty:
    """What T samples say of N images over K classes; all float64 but `labels`.

    Attributes:
        labels: int64 [N], the class of the highest mean probability.
        mean_probabilities: [N, K], mean over samples of the softmax.
        probability_std: [N, K], standard deviation over samples (divisor T).
        standard_error: [N, K], of the mean, from the sampling alone; NaN where nothing, or a single
            sample, was drawn. It is the error of T independent samples, and as orthogonal ones are
            better it overstates theirs: a safe bound.
        predictive_entropy: [N], H(mean), 0..ln K (Gal 2016).
        expected_entropy: [N], predictive entropy - mutual information, the aleatoric part (Depeweg
            et al. 2018).
        mutual_information: [N], H(mean) - mean of H(sample), the epistemic part (Houlsby et al.
            2011), 0..predictive entropy.
        mutual_information_error: [N], its standard error, as above; NaN in a brief answer.
        variation_ratio: [N], share of samples whose label is another, 0..1-1/K (Freeman 1965).
        samples_used: int64 [N], how many samples, or points, these figures are of.
        settled: bool [N], whether sampling stopped because the label was settled.
        typicality: [N], share of validation images that lie farther out, 0..1; NaN: uncalibrated,
            or a brief answer.
        set_draws: [N], what `model.calibration` draws for prediction sets; NaN as above.
    """

    labels: NDArray[np.int64]
    mean_probabilities: Floats
    probability_std: Floats
    standard_error: Floats
    predictive_entropy: Floats
    expected_entropy: Floats
    mutual_information: Floats
    mutual_information_error: Floats
    variation_ratio: Floats
    samples_used: NDArray[np.int64]
    settled: NDArray[np.bool_]
    typicality: Floats
    set_draws: Floats

    def take(self, rows: slice | NDArray[np.int64]) -> "Uncertainty":
        """Return some of the rows."""
        return Uncertainty(*[column[rows] for column in _columns(self)])


_columns = attrgetter(*(field.name for field in fields(Uncertainty)))


def joined(parts: Sequence[Uncertainty]) -> Uncertainty:
    """Put the rows of several summaries one after another."""
    if len(parts) == 1:
        return parts[0]
    return Uncertainty(*map(np.concatenate, zip(*map(_columns, parts), strict=True)))


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> Floats:
    """Softmax of logits / temperature over the last axis, in float64; any shape."""
    powers: Floats = np.divide(logits, temperature, dtype=np.float64)
    powers -= np.maximum.reduce(powers, axis=-1, keepdims=True)
    np.exp(powers, out=powers)
    powers /= np.add.reduce(powers, axis=-1, keepdims=True)
    return powers


def entropy(probabilities: Floats) -> Floats:
    """Shannon entropy over the last axis in nats; 0 ln 0 = 0."""
    result: Floats = -(probabilities * _logarithm(probabilities)).sum(axis=-1)
    return result


def summarise(logits: NDArray[np.float32], temperature: float = 1.0) -> Uncertainty:
    """Summarise the logits of T random samples, float32 [N, T, K], divided by `temperature`."""
    return answer(_summary(logits, temperature), logits.shape[1])


def integrate(logits: NDArray[np.floating], temperature: float = 1.0) -> Uncertainty:
    """Summarise logits [N, T, K] of points that stand for a distribution; errors are NaN.

    Points that are all equal (p = 0) have a spread and a mutual information of exactly 0.
    """
    figures = _summary(logits.astype(np.float32), temperature)
    return answer(figures[: len(MAIN)], logits.shape[1], random=False)


def answer(figures: Sequence[Any], samples: int, random: bool = True) -> Uncertainty:
    """Make an answer of the outputs MAIN of `model.figures`, or of these and DETAILS.

    Args:
        figures: of a single sample taken twice, if it is one.
        samples: T.
        random: whether the samples were drawn, and another draw would differ.
    """
    means, spreads, tails, votes, confidence, *details = figures
    images, classes = votes.shape
    count = max(samples, 2)
    random = random and samples > 1
    rows, used, settled, unknown = _unchanging(images, samples)
    sums = means[:, :classes, 0].astype(np.float64)
    mean = sums / np.add.reduce(sums, axis=1, keepdims=True)
    labels = mean.argmax(axis=1)
    variances = spreads[:, :classes, 0].astype(np.float64)
    predictive = 0 - np.add.reduce(mean * np.log(mean), axis=1)
    scatter = np.add.reduce(variances / mean, axis=1)
    # A divergence is at most that of Pearson: so it is exactly 0 where the samples are equal.
    information = np.minimum(predictive - float(classes) * confidence[:, 0, 0], scatter)
    if random:
        information += scatter * (0.5 / (count - 1))
    information = np.minimum(np.maximum(information, 0), predictive)
    errors = np.maximum(variances * (count / (count - 1)), tails[..., 0])
    errors /= count if random else np.nan
    return Uncertainty(
        labels=labels,
        mean_probabilities=mean,
        probability_std=np.sqrt(variances),
        standard_error=np.sqrt(errors),
        predictive_entropy=predictive,
        expected_entropy=predictive - information,
        mutual_information=information,
        mutual_information_error=_information_errors(means, spreads, mean, labels, *details)
        if random and details
        else unknown,
        variation_ratio=np.subtract(1, votes[rows, labels], dtype=np.float64),
        samples_used=used,
        settled=settled,
        typicality=unknown,
        set_draws=unknown,
    )


@lru_cache(maxsize=256)
def _unchanging(
    images: int, samples: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], Floats]:
    """Return each row's number, and what is the same for each row, read-only: [N]."""
    arrays = (
        np.arange(images),
        np.full(images, samples),
        np.zeros(images, np.bool_),
        np.full(images, np.nan),
    )
    for array in arrays:
        array.setflags(write=False)
    return arrays


def _information_errors(
    means: Singles,
    spreads: Singles,
    mean: Floats,
    labels: NDArray[np.int64],
    probabilities: Singles,
    surprises: Singles,
) -> Floats:
    images, classes, count = probabilities.shape
    rows = np.arange(images)
    centres, widths = (
        each[rows, classes + labels, 0].astype(np.float64) for each in (means, spreads)
    )
    divergences = divergence_variances(centres, widths, count, mean[rows, labels])
    return information_errors(probabilities, surprises, mean, divergences)


def _summary(logits: NDArray[np.float32], temperature: float) -> Sequence[Any]:
    """Compute all figures of logits [N, T, K] that are at hand."""
    _, count, classes = logits.shape
    if count == 1:
        logits, count = np.repeat(logits, 2, axis=1), 2
    feeds = {**rule(count), **scaling(temperature)}
    session, size = _session(classes), 1 if count % BLOCK else len(logits)
    runs = [
        session.run([*MAIN, *DETAILS], {LOGITS: logits[start : start + size], **feeds})
        for start in range(0, len(logits), size)
    ]
    return runs[0] if len(runs) == 1 else [np.concatenate(part) for part in zip(*runs, strict=True)]


@lru_cache(maxsize=16)
def _session(classes: int) -> Session:
    return start(alone(classes), threads=1)


def _logarithm(values: Floats) -> Floats:
    return np.log(np.maximum(values, _TINY))
