"""What T samples say of an image, and what they disagree about. Knows no mask and no network.

Only the head's dropout is treated as Bayesian. Entropies are in nats.

`model.graphs.mc_statistics` computes what takes all samples, in ONNX Runtime; here it becomes an answer.

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

from model.graphs.mc_statistics import (
    BLOCK,
    BY_CLASS,
    BY_IMAGE,
    DETAILS,
    LOGITS,
    MAIN,
    alone,
    rule,
    scaling,
)
from model.graphs.sessions import Session, start
from model.uncertainty.mi_error import divergence_variances, information_errors

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
            2011), 0..predictive entropy. A difference of float32: 1e-6 is as good as 0.
        mutual_information_error: [N], its standard error, as above.
        variation_ratio: [N], share of samples whose label is another, 0..1-1/K (Freeman 1965).
        samples_used: int64 [N], how many samples, or points, these figures are of.
        settled: bool [N], whether sampling stopped because the label was settled.
        typicality: [N], share of validation images that lie farther out, 0..1; NaN: uncalibrated.
        set_draws: [N], what `model.uncertainty.calibration` draws for prediction sets; NaN as above.
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

    def columns(self) -> dict[str, Singles]:
        """Return what a summary has."""
        return {name: getattr(self, name).astype(np.float32) for name in (*BY_CLASS, *BY_IMAGE)}


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
    return answer(_figures(logits, temperature, random=True), logits.shape[1])


def integrate(logits: NDArray[np.floating], temperature: float = 1.0) -> Uncertainty:
    """Summarise logits [N, T, K] of points that stand for a distribution; errors are NaN.

    Points that are all equal (p = 0) have a spread and a mutual information of exactly 0.
    """
    figures = _figures(logits.astype(np.float32), temperature, random=False)
    return answer(figures, logits.shape[1])


@dataclass(slots=True)
class Summary:
    """The same of N images over K classes, but for what only POST /uncertainty tells.

    Attributes:
        values: float32 [N, 3K + 4], those of BY_CLASS, K of each, then those of BY_IMAGE.
        labels: int64 [N].
    """

    values: Singles
    labels: NDArray[np.int64]

    @classmethod
    def of(cls, figures: Sequence[Any]) -> "Summary":
        """Take the outputs MAIN of `model.graphs.mc_statistics`."""
        values, labels = figures
        return cls(values[:, :, 0], labels[:, 0, 0])

    @classmethod
    def joined(cls, parts: "Sequence[Summary]") -> "Summary":
        """Put the rows of several summaries one after another."""
        return cls(
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.labels for part in parts]),
        )

    def take(self, rows: slice | NDArray[np.int64]) -> "Summary":
        """Return some of the rows."""
        return Summary(self.values[rows], self.labels[rows])

    def columns(self) -> dict[str, Singles]:
        """Return each of BY_CLASS, [N, K], and of BY_IMAGE, [N]."""
        values = self.values
        first = values.shape[1] - len(BY_IMAGE)
        classes = first // len(BY_CLASS)
        found = {
            name: values[:, index * classes : (index + 1) * classes]
            for index, name in enumerate(BY_CLASS)
        }
        for index, name in enumerate(BY_IMAGE, first):
            found[name] = values[:, index]
        return found


def answer(figures: Sequence[Any], samples: int) -> Uncertainty:
    """Make an answer of the outputs MAIN of `model.graphs.mc_statistics`, or of these and DETAILS.

    Args:
        figures: of a single sample taken twice, if it is one; with details if another draw would
            differ.
        samples: T.
    """
    values, labels, *details = figures
    summary = Summary.of((values, labels))
    told = {name: column.astype(np.float64) for name, column in summary.columns().items()}
    mean = told["mean_probabilities"]
    mean /= mean.sum(axis=1, keepdims=True)  # which float32 has rounded
    told["expected_entropy"] = told["predictive_entropy"] - told["mutual_information"]
    samples_used, settled, unknown = _unchanging(len(mean), samples)
    return Uncertainty(
        labels=summary.labels,
        **told,
        mutual_information_error=_information_errors(mean, summary.labels, *details)
        if details
        else unknown,
        samples_used=samples_used,
        settled=settled,
        typicality=unknown,
        set_draws=unknown,
    )


@lru_cache(maxsize=256)
def _unchanging(images: int, samples: int) -> tuple[NDArray[np.int64], NDArray[np.bool_], Floats]:
    """Return what is the same for each row, read-only: [N]."""
    arrays = (
        np.full(images, samples),
        np.zeros(images, np.bool_),
        np.full(images, np.nan),
    )
    for array in arrays:
        array.setflags(write=False)
    return arrays


def _information_errors(
    mean: Floats,
    labels: NDArray[np.int64],
    means: Singles,
    spreads: Singles,
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


def _figures(logits: Singles, temperature: float, *, random: bool) -> Sequence[Any]:
    """Compute all figures of logits [N, T, K] that are at hand."""
    _, count, classes = logits.shape
    if count == 1:
        logits, count, random = np.repeat(logits, 2, axis=1), 2, False
    names = MAIN + DETAILS if random else MAIN
    feeds = {**rule(count, random), **scaling(temperature)}
    session, size = _session(classes), 1 if count % BLOCK else len(logits)
    runs = [
        session.run(names, {LOGITS: logits[start : start + size], **feeds})
        for start in range(0, len(logits), size)
    ]
    return runs[0] if len(runs) == 1 else [np.concatenate(part) for part in zip(*runs, strict=True)]


@lru_cache(maxsize=16)
def _session(classes: int) -> Session:
    return start(alone(classes), threads=1)


def _logarithm(values: Floats) -> Floats:
    return np.log(np.maximum(values, _TINY))
