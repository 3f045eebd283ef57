"""A bundle's calibration: temperatures, prediction sets, abstention and typicality.

It was fitted on validation images by `training.export.calibrate`, with the exported graphs. This
module applies it. It fits nothing and knows no HTTP.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.npz_arrays import ArraySpec, read_arrays
from model.uncertainty.ood import RelativeMahalanobis
from model.uncertainty.uncertainty_measures import Uncertainty

CALIBRATION_FILE = "calibration.npz"
MIN_CALIBRATION_IMAGES = 100
"""With fewer validation images nothing is fitted, and the bundle stays uncalibrated."""

RISK_STARTS = 10
"""How many starting points the search for a confidence threshold uses, see `threshold`."""

SetKind = Literal["thr", "aps"]
Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]
Float32Array = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


class Calibration(BaseModel):
    """`calibration` in the manifest: the scalars that go with the arrays in `calibration.npz`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: int = Field(ge=MIN_CALIBRATION_IMAGES, description="validation images it was fitted on")
    temperature: float = Field(gt=0, description="divides the logits of the deterministic answer")
    sampled_temperature: float = Field(gt=0, description="divides the logits of every sample")
    samples: int = Field(ge=1, description="of the answers that the rest was fitted on")
    seed: int = Field(ge=0, description="of the same")
    max_risk: float = Field(gt=0, lt=1, description="the error rate abstention keeps, by default")
    guarantee: float = Field(gt=0, lt=1, description="confidence that it is kept")


class CalibrationArrays(BaseModel):
    """`calibration.npz`: n validation images, C classes, F features; all float64."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    thr: Float64Array
    """[n] ascending: 1 - the true class's mean probability."""
    aps: Float64Array
    """[n] ascending: the `aps_scores` of the true classes."""
    confidences: Float64Array
    """[n] descending: the label's mean probability."""
    risk_bounds: Float64Array
    """[n]: upper bounds on the error rate of predictions at least as confident as `confidences`."""
    axes: Float64Array
    """[F, 2D], of `model.uncertainty.ood.RelativeMahalanobis`."""
    centres: Float64Array
    """[C, D], of the same."""
    middle: Float64Array
    """[D], of the same."""
    nearness: Float64Array
    """[n] ascending: the `RelativeMahalanobis.score` of the validation images."""

    @model_validator(mode="after")
    def _check_arrays(self) -> Self:
        ascending = (self.thr, self.aps, -self.confidences, self.nearness)
        scores = (*ascending, self.risk_bounds)
        directions = (self.axes, self.centres, self.middle[np.newaxis])
        if not (
            all(each.dtype == np.float64 and np.isfinite(each).all() for each in self._arrays())
            and {each.shape for each in scores} == {(len(self.thr),)}
            and all((np.diff(each) >= 0).all() for each in ascending)
            and all(each.ndim == 2 for each in directions)
            and self.axes.shape[1] == 2 * self.centres.shape[1] == 2 * len(self.middle)
        ):
            raise ValueError("its arrays do not fit one another")
        return self

    def _arrays(self) -> list[Float64Array]:
        return [getattr(self, name) for name in type(self).model_fields]

    @property
    def relative_mahalanobis(self) -> RelativeMahalanobis:
        """The out-of-distribution score that the typicality is a quantile of."""
        return RelativeMahalanobis(self.axes, self.centres, self.middle)

    def threshold(self, max_risk: float) -> float | None:
        """Return the confidence below which to abstain, or None if no threshold keeps the risk.

        Selection with guaranteed risk (Geifman & El-Yaniv 2017): with probability `guarantee` over
        the draw of the validation images, at most `max_risk` of the predictions at least as
        confident are wrong. Their binary search fails where half of the images are too few for a
        bound. Here fixed-sequence testing (Angelopoulos et al. 2022) starts at each of RISK_STARTS
        shares of the images, which divide the error 1 - `guarantee` among them, and accepts one
        image after the other, by falling confidence, until a bound exceeds `max_risk`. Both methods
        assume that the risk falls as the confidence rises.
        """
        count = len(self.risk_bounds)
        exceeded = np.append(self.risk_bounds > max_risk, True)
        starts = [count * (part + 1) // RISK_STARTS - 1 for part in range(RISK_STARTS)]
        ends = [start + int(exceeded[start:].argmax()) for start in starts if not exceeded[start]]
        return float(self.confidences[max(ends) - 1]) if ends else None

    @classmethod
    def read(cls, data: bytes, images: int, features: int, classes: int) -> Self:
        """Read the bytes of the file, with n `images`, F `features` and at most C `classes`.

        Raises:
            ArchiveError, ValidationError: the file is damaged, lacks an array, or belongs to
                another model.
        """
        scores = ArraySpec(np.float64, (images,))
        expected = {
            **dict.fromkeys(("thr", "aps", "confidences", "risk_bounds", "nearness"), scores),
            "axes": ArraySpec(np.float64, (features, 2 * features)),
            "centres": ArraySpec(np.float64, (classes, features)),
            "middle": ArraySpec(np.float64, (features,)),
        }
        return cls.model_validate(read_arrays(data, expected))

    def write(self, path: Path) -> None:
        """Write the arrays to the file `path`."""
        np.savez_compressed(path, **self.model_dump())


def aps_scores(probabilities: Float64Array, draws: Float64Array) -> Float64Array:
    """Return the randomised APS scores of all classes: float64 [N, K].

    The score of a class is the total probability of all likelier classes plus a random share of its
    own probability (Romano et al. 2020).

    Args:
        probabilities: [N, K].
        draws: [N] in 0..1, the share of its own probability that counts.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")
    totals = np.cumsum(np.take_along_axis(probabilities, order, axis=1), axis=1)
    scores = np.empty_like(probabilities)
    np.put_along_axis(scores, order, totals, axis=1)
    scores -= (1 - draws[:, np.newaxis]) * probabilities
    return scores


_THRESHOLD_CACHE_SIZE = 64
"""Clients may request any risk, so the cache of thresholds is bounded."""


def conformal_threshold(scores: Float64Array, coverage: float) -> float:
    """Return the score up to which classes belong to a set; infinite where n is too small.

    Args:
        scores: [n] ascending, scores of the true classes of validation images.
        coverage: 0 < coverage < 1.
    """
    rank = int(np.ceil((len(scores) + 1) * coverage))
    return float(scores[rank - 1]) if rank <= len(scores) else np.inf


def uniform_draws(features: Float32Array) -> Float64Array:
    """Return a pseudo-random number in 0..1 for each image, a hash of its features: float64 [N].

    Args:
        features: float32 [N, F].
    """
    digests = [hashlib.sha256(b"dropserve sets" + row.tobytes()).digest() for row in features]
    words = np.frombuffer(b"".join(digests), dtype="<u8")[::4]
    return words / 2.0**64


@dataclass(frozen=True, slots=True)
class Decisions:
    """The prediction sets and abstentions for N images over K classes."""

    coverage: float
    """Of the prediction sets."""
    max_risk: float
    """The error rate that abstention keeps."""
    sets: BoolArray
    """bool [N, K]: which classes belong to each prediction set."""
    abstain: BoolArray
    """bool [N]: whether the prediction is not confident enough to keep to `max_risk`."""


class Calibrator:
    """Applies a calibration: typicality, prediction sets and abstention come from here only."""

    def __init__(self, parameters: Calibration, arrays: CalibrationArrays) -> None:
        self.parameters = parameters
        self._arrays = arrays
        self._relative_mahalanobis = arrays.relative_mahalanobis
        # A search takes long, and most requests have the same risk.
        self.threshold = lru_cache(_THRESHOLD_CACHE_SIZE)(arrays.threshold)
        """`CalibrationArrays.threshold`, cached."""

    def write(self, path: Path) -> None:
        """Write the arrays to the file `path`."""
        self._arrays.write(path)

    def complete(self, uncertainty: Uncertainty, features: Float32Array) -> Uncertainty:
        """Return the uncertainty with the typicality and the set draws of its images filled in.

        Args:
            uncertainty: of N images.
            features: float32 [N, F] of the same images.
        """
        return replace(
            uncertainty,
            typicality=self.typicality(features),
            set_draws=uniform_draws(features),
        )

    def decide(
        self, uncertainty: Uncertainty, coverage: float, kind: SetKind, max_risk: float | None
    ) -> Decisions:
        """Compute prediction sets and abstentions.

        Args:
            uncertainty: from calibrated probabilities, with set draws.
            coverage: of the prediction sets, 0 < coverage < 1.
            kind: of the prediction sets.
            max_risk: error rate to keep, 0 < max_risk < 1; None for the bundle's default.
        """
        probabilities = uncertainty.mean_probabilities
        risk = self.parameters.max_risk if max_risk is None else max_risk
        threshold = self.threshold(risk)
        confident = probabilities.max(axis=1) >= (np.inf if threshold is None else threshold)
        sets = self.prediction_sets(probabilities, coverage, kind, uncertainty.set_draws)
        return Decisions(coverage, risk, sets, ~confident)

    def prediction_sets(
        self, probabilities: Float64Array, coverage: float, kind: SetKind, draws: Float64Array
    ) -> BoolArray:
        """Return which classes belong to each image's prediction set: bool [N, K].

        Split conformal prediction (Vovk et al. 2005): a set holds the true class with probability
        `coverage`, for images drawn as the validation images were.

        Args:
            probabilities: mean probabilities, [N, K].
            coverage: 0 < coverage < 1.
            kind: `thr` takes the classes above a threshold (Sadinle et al. 2019): the smallest sets
                on average. `aps` takes the likeliest classes up to a total probability (Romano et
                al. 2020): better coverage for hard images.
            draws: [N] in 0..1, from `uniform_draws`; `thr` uses none.
        """
        validation_scores = self._arrays.thr if kind == "thr" else self._arrays.aps
        scores = 1 - probabilities if kind == "thr" else aps_scores(probabilities, draws)
        sets: BoolArray = scores <= conformal_threshold(validation_scores, coverage)
        if kind == "aps":  # otherwise the draws leave the clearest images without a class
            sets[np.arange(len(sets)), probabilities.argmax(axis=1)] = True
        return sets

    def typicality(self, features: Float32Array) -> Float64Array:
        """Return the share of validation images that lie farther out: float64 [N] in 0..1.

        Args:
            features: float32 [N, F].
        """
        validation_scores = self._arrays.nearness
        scores = self._relative_mahalanobis.score(features)
        finite = np.where(np.isfinite(scores), scores, -np.inf)
        return np.searchsorted(validation_scores, finite) / len(validation_scores)

    def typicality_ranks(self, typicality: Float64Array) -> Int64Array:
        """Return how many validation images are less typical: int64 [N] in 0..n.

        Args:
            typicality: [N], from `typicality`.
        """
        return np.rint(typicality * self.parameters.images).astype(np.int64)

    def confidence_ranks(self, confidences: Float64Array) -> Int64Array:
        """Return how many validation images are at most as confident: int64 [N] in 0..n.

        Args:
            confidences: [N], mean probabilities of the labels, sampled as in the calibration.
        """
        return np.searchsorted(self._arrays.confidences[::-1], confidences, side="right")
