"""Uncertainty of images from the logits of T samples. Knows no mask and no network.

Only the head's dropout is treated as Bayesian. Entropies are in nats.

A graph of the bundle computes the statistics over all samples (`model.graphs.mc_statistics`); this
module converts its outputs into a `Summary` or an `Uncertainty`.

The entropy of a mean of T samples is too low on average, by about half the sum over classes of the
mean's variance over the mean (the delta method; Miller 1955 for counts). For random samples this
bias is added to the mutual information and subtracted from the expected entropy. So the predictive
entropy stays that of the probabilities reported beside it, and the three still add up.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.graphs.mc_statistics import (
    DETAIL_OUTPUTS,
    PER_CLASS_COLUMNS,
    PER_IMAGE_COLUMNS,
    SAMPLE_PROBABILITIES,
    MCStatistics,
)
from model.uncertainty.mutual_information_standard_error import (
    divergence_variances,
    mutual_information_errors,
)

Float64Array = NDArray[np.float64]
Float32Array = NDArray[np.float32]
_TINY = np.finfo(np.float64).tiny


@dataclass(slots=True)  # not frozen: every request makes one, and that would take thrice as long
class Uncertainty:
    """The uncertainty of N images over K classes, estimated from T samples; float64 but `labels`.

    Attributes:
        labels: int64 [N], the class of the highest mean probability.
        mean_probabilities: [N, K], mean over samples of the softmax.
        probability_std: [N, K], standard deviation over samples (divisor T).
        standard_error: [N, K], of the mean, from the sampling alone; NaN where nothing, or a single
            sample, was drawn. It is the error of T independent samples. Orthogonal samples have a
            smaller error, so for them it is a safe upper bound.
        predictive_entropy: [N], H(mean), 0..ln K (Gal 2016).
        expected_entropy: [N], predictive entropy - mutual information, the aleatoric part (Depeweg
            et al. 2018).
        mutual_information: [N], H(mean) - mean of H(sample), the epistemic part (Houlsby et al.
            2011), 0..predictive entropy. It is a difference of float32: 1e-6 is as good as 0.
        mutual_information_error: [N], its standard error; NaN as for `standard_error`.
        variation_ratio: [N], share of samples with another label, 0..1-1/K (Freeman 1965).
        samples_used: int64 [N], the number of samples, or of quadrature points, of each image.
        label_decided: bool [N], whether adaptive sampling stopped because the label was decided.
        typicality: [N], conformal p-value among the validation images, above 0 and up to 1; NaN:
            uncalibrated.
        set_draws: [N], random numbers in 0..1 that `model.uncertainty.calibration` uses for
            prediction sets; NaN: uncalibrated.
        sample_probabilities: object [N], the probabilities of each sample, float32 [K, T], whose
            mean `mean_probabilities` is; None where they were not asked for. T may differ from
            image to image.
    """

    labels: NDArray[np.int64]
    mean_probabilities: Float64Array
    probability_std: Float64Array
    standard_error: Float64Array
    predictive_entropy: Float64Array
    expected_entropy: Float64Array
    mutual_information: Float64Array
    mutual_information_error: Float64Array
    variation_ratio: Float64Array
    samples_used: NDArray[np.int64]
    label_decided: NDArray[np.bool_]
    typicality: Float64Array
    set_draws: Float64Array
    sample_probabilities: NDArray[np.object_]

    def take(self, rows: slice | NDArray[np.int64]) -> "Uncertainty":
        """Return some of the rows."""
        return Uncertainty(*[column[rows] for column in _field_values(self)])

    def confidences(self) -> Float64Array:
        """Return the labels' mean probabilities: float64 [N]."""
        confidences: Float64Array = np.maximum.reduce(self.mean_probabilities, axis=1)
        return confidences

    def columns(self) -> dict[str, Float32Array]:
        """Return the columns of a `Summary`, float32."""
        return {
            name: getattr(self, name).astype(np.float32)
            for name in (*PER_CLASS_COLUMNS, *PER_IMAGE_COLUMNS)
        }


_field_values = attrgetter(*(each.name for each in fields(Uncertainty)))


def concatenate(parts: Sequence[Uncertainty]) -> Uncertainty:
    """Return the rows of several uncertainties, in order."""
    if len(parts) == 1:
        return parts[0]
    return Uncertainty(*map(np.concatenate, zip(*map(_field_values, parts), strict=True)))


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> Float64Array:
    """Return the softmax of logits / temperature over the last axis: float64, of any shape."""
    powers: Float64Array = np.divide(logits, temperature, dtype=np.float64)
    powers -= np.maximum.reduce(powers, axis=-1, keepdims=True)
    np.exp(powers, out=powers)
    powers /= np.add.reduce(powers, axis=-1, keepdims=True)
    return powers


def entropy(probabilities: Float64Array) -> Float64Array:
    """Return the Shannon entropy over the last axis in nats; 0 ln 0 = 0."""
    logarithms = np.log(np.maximum(probabilities, _TINY))
    result: Float64Array = -(probabilities * logarithms).sum(axis=-1)
    return result


def summarise(
    statistics: MCStatistics,
    logits: Float32Array,
    temperature: float = 1.0,
    *,
    keep_samples: bool = False,
) -> Uncertainty:
    """Summarise the logits of T random samples, float32 [N, T, K], divided by `temperature`."""
    outputs = statistics.run(logits, temperature, random=True)
    return to_uncertainty(outputs, logits.shape[1], keep_samples=keep_samples)


def summarise_points(
    statistics: MCStatistics, logits: NDArray[np.floating], temperature: float = 1.0
) -> Uncertainty:
    """Summarise logits [N, T, K] at T quadrature points of a distribution; errors are NaN.

    Points that are all equal (p = 0) have a standard deviation and a mutual information of exactly
    0.
    """
    outputs = statistics.run(logits.astype(np.float32), temperature, random=False)
    return to_uncertainty(outputs, logits.shape[1])


@dataclass(slots=True)
class Summary:
    """The columns of an `Uncertainty` that the Open Inference Protocol outputs, as float32.

    It leaves out what only POST /uncertainty reports, and so takes less time.

    Attributes:
        values: float32 [N, 3K + 4], the PER_CLASS_COLUMNS, K of each, then the PER_IMAGE_COLUMNS.
        labels: int64 [N], the class of the highest mean probability.
        typicality: float64 [N], as that of an `Uncertainty`.
        run: the summary of all requests of an inference run and which of its rows these are, where
            several requests share one; None: these are all rows of the run.
        derived: what is computed once from all rows of a run, for all of its requests, by any key.
    """

    values: Float32Array
    labels: NDArray[np.int64]
    typicality: Float64Array
    run: "tuple[Summary, slice] | None" = None
    derived: dict[Any, Any] = field(default_factory=dict)

    @classmethod
    def from_outputs(cls, outputs: Sequence[Any]) -> "Summary":
        """Make a summary from the SUMMARY_OUTPUTS of `model.graphs.mc_statistics`.

        Its typicality is NaN.
        """
        values, labels = outputs
        return cls(values[:, :, 0], labels[:, 0, 0], _constant_columns(len(values), 0)[2])

    @classmethod
    def concatenate(cls, parts: "Sequence[Summary]") -> "Summary":
        """Return the rows of several summaries, in order."""
        return cls(
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.typicality for part in parts]),
        )

    def take(self, rows: slice) -> "Summary":
        """Return some of the rows of a run, for one of its requests."""
        return Summary(
            self.values[rows], self.labels[rows], self.typicality[rows], (self, rows), self.derived
        )

    def whole_run(self) -> "tuple[Summary, slice]":
        """Return the summary of all rows of the run, and which of them these are."""
        return (self, slice(None)) if self.run is None else self.run

    def confidences(self) -> Float64Array:
        """Return what `Uncertainty.confidences` returns for the same outputs, bit for bit."""
        mean = self.values[:, : self._classes]
        totals = np.add.reduce(mean, axis=1, dtype=np.float64)
        confidences: Float64Array = np.maximum.reduce(mean, axis=1) / totals
        return confidences

    def columns(self) -> dict[str, Float32Array]:
        """Return each of the PER_CLASS_COLUMNS, [N, K], and of the PER_IMAGE_COLUMNS, [N]."""
        values, classes = self.values, self._classes
        columns = {
            name: values[:, index * classes : (index + 1) * classes]
            for index, name in enumerate(PER_CLASS_COLUMNS)
        }
        for index, name in enumerate(PER_IMAGE_COLUMNS, len(PER_CLASS_COLUMNS) * classes):
            columns[name] = values[:, index]
        return columns

    @property
    def _classes(self) -> int:
        """K, the number of classes."""
        width = int(self.values.shape[1])
        return (width - len(PER_IMAGE_COLUMNS)) // len(PER_CLASS_COLUMNS)


def to_uncertainty(
    outputs: Sequence[Any], samples: int, *, keep_samples: bool = False
) -> Uncertainty:
    """Convert outputs of `model.graphs.mc_statistics` into an uncertainty.

    Args:
        outputs: the SUMMARY_OUTPUTS, and behind them the DETAIL_OUTPUTS if the samples are random.
            A single sample counts as two equal ones, without details.
        samples: T.
        keep_samples: keep the probabilities of each sample.
    """
    values, labels, *details = outputs
    summary = Summary.from_outputs((values, labels))
    columns = {name: column.astype(np.float64) for name, column in summary.columns().items()}
    mean = columns["mean_probabilities"]
    mean /= mean.sum(axis=1, keepdims=True)  # float32 has rounded them
    columns["expected_entropy"] = columns["predictive_entropy"] - columns["mutual_information"]
    samples_used, undecided, unknown, not_kept = _constant_columns(len(mean), samples)
    return Uncertainty(
        labels=summary.labels,
        **columns,
        mutual_information_error=_mutual_information_errors(mean, summary.labels, *details)
        if details
        else unknown,
        samples_used=samples_used,
        label_decided=undecided,
        typicality=unknown,
        set_draws=unknown,
        sample_probabilities=_sample_columns(mean, samples, details) if keep_samples else not_kept,
    )


def count_votes(sample_probabilities: Float32Array) -> NDArray[np.int64]:
    """Count for each class the samples in which it is the likeliest, the first of equal ones.

    sample_probabilities: [K, T]. Returns: int64 [K], which add up to T.
    """
    labels = sample_probabilities.argmax(axis=0)
    return np.bincount(labels, minlength=len(sample_probabilities))


@lru_cache(maxsize=256)
def _constant_columns(
    images: int, samples: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_], Float64Array, NDArray[np.object_]]:
    """Return read-only columns [N] of the number of samples, of False, of NaN and of None."""
    arrays = (
        np.full(images, samples),
        np.zeros(images, np.bool_),
        np.full(images, np.nan),
        np.full(images, None),
    )
    for array in arrays:
        array.setflags(write=False)
    return arrays


def _sample_columns(
    mean: Float64Array, samples: int, details: Sequence[Float32Array]
) -> NDArray[np.object_]:
    """Return the column `Uncertainty.sample_probabilities`.

    mean: [N, K]. details: the DETAIL_OUTPUTS; empty for a single sample, which is its own mean.
    """
    probabilities = (
        details[DETAIL_OUTPUTS.index(SAMPLE_PROBABILITIES)]
        if samples > 1
        else mean.astype(np.float32)[:, :, np.newaxis]
    )
    column = np.empty(len(probabilities), object)
    for row, values in enumerate(probabilities):
        column[row] = values
    return column


def _mutual_information_errors(
    mean: Float64Array,
    labels: NDArray[np.int64],
    means: Float32Array,
    variances: Float32Array,
    probabilities: Float32Array,
    entropy_terms: Float32Array,
) -> Float64Array:
    images, classes, count = probabilities.shape
    rows = np.arange(images)
    logit_means, logit_variances = (
        column[rows, classes + labels, 0].astype(np.float64) for column in (means, variances)
    )
    label_variances = divergence_variances(logit_means, logit_variances, count, mean[rows, labels])
    return mutual_information_errors(probabilities, entropy_terms, mean, label_variances)
