"""A bundle's calibration: temperatures, prediction sets, abstention and typicality.

It was fitted on validation images by `training.export.calibrate`, with the exported graphs. This
module applies it. It fits nothing and knows no HTTP.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.npz_arrays import ArchiveError, ArraySpec, read_arrays
from model.uncertainty.prediction_sets import (
    SetKind,
    aps_scores,
    class_conditional_thresholds,
    classes_up_to,
    conformal_threshold,
)
from model.uncertainty.selective_risk import confidence_threshold
from model.uncertainty.uncertainty_measures import Uncertainty

CALIBRATION_FILE = "calibration.npz"
MIN_CALIBRATION_IMAGES = 100
"""With fewer validation images nothing is fitted, and the bundle stays uncalibrated."""
MAX_CALIBRATION_IMAGES = 50_000
"""Of more validation images, so many are used. A search over them takes some 10 ms on the event
loop of the service, for limits that clients choose."""

DEFAULT_MAX_FALSE_ALARM = 0.01
"""The share of images like the validation images that count as unusual, unless a request names
another. It is the least that MIN_CALIBRATION_IMAGES can show, and needs no fit."""

AbstentionReason = Literal["unsure", "unusual", "both"]
ABSTENTION_REASONS: tuple[AbstentionReason, ...] = get_args(AbstentionReason)

Float64Array = NDArray[np.float64]
Float32Array = NDArray[np.float32]
Int64Array = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


class Calibration(BaseModel):
    """`calibration` in the manifest: the scalars that go with the arrays in `calibration.npz`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: int = Field(
        ge=MIN_CALIBRATION_IMAGES,
        le=MAX_CALIBRATION_IMAGES,
        description="validation images it was fitted on",
    )
    temperature: float = Field(gt=0, description="divides the logits of the deterministic answer")
    sampled_temperature: float = Field(gt=0, description="divides the logits of every sample")
    samples: int = Field(ge=1, description="of the answers that the rest was fitted on")
    seed: int = Field(ge=0, description="of the same")
    max_risk: float = Field(gt=0, lt=1, description="the error rate abstention keeps, by default")
    guarantee: float = Field(gt=0, lt=1, description="confidence that it is kept")


class CalibrationArrays(BaseModel):
    """`calibration.npz`: a table of n validation images, by falling confidence."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    confidences: Float64Array
    """[n] descending: the label's mean probability."""
    correct: BoolArray
    """bool [n]: whether the label is the true class."""
    true_classes: Int64Array
    """int64 [n]: the true class, 0..K-1."""
    thr: Float64Array
    """[n]: 1 - the true class's mean probability."""
    aps: Float64Array
    """[n]: the true class's score among the `aps_scores`."""
    ood_scores: Float64Array
    """[n]: the out-of-distribution score; a higher one is more typical."""

    @model_validator(mode="after")
    def _check_arrays(self) -> Self:
        scores = (self.confidences, self.thr, self.aps, self.ood_scores)
        if not (
            all(np.isfinite(each).all() for each in scores)
            and all(each.dtype == np.float64 for each in scores)
            and self.correct.dtype == np.bool_
            and self.true_classes.dtype == np.int64
            and {each.shape for each in (*scores, self.correct, self.true_classes)}
            == {(len(self.thr),)}
            and (np.diff(self.confidences) <= 0).all()
            and (self.true_classes >= 0).all()
        ):
            raise ValueError("its arrays do not fit one another")
        return self

    @cached_property
    def least_typical_first(self) -> Int64Array:
        """The rows by rising out-of-distribution score: int64 [n]."""
        return np.argsort(self.ood_scores, kind="stable")

    def threshold(self, max_risk: float, max_false_alarm: float, guarantee: float) -> float | None:
        """Return the confidence below which an image that is not unusual is unsure.

        With probability `guarantee` over the draw of the validation images, at most `max_risk` of
        the labels of images that are neither unusual nor unsure are wrong, see
        `confidence_threshold`, which is given the validation images that are not unusual.

        Images are unusual below the k-th smallest score of the validation images, k being the
        largest rank whose p-value k/(n + 1) is at most `max_false_alarm`. Given that score, the
        images above it are independent draws of all images above it, so the bound is exact although
        the limit comes from the same images. The k images up to it are left out, and the k-th is
        one of them, because it is no draw of those above.

        Returns:
            None if no threshold keeps the risk.
        """
        count = len(self.ood_scores)
        unusual = np.count_nonzero(np.arange(1, count + 1) / (count + 1) <= max_false_alarm)
        usual = np.ones(count, np.bool_)
        usual[self.least_typical_first[:unusual]] = False
        return confidence_threshold(
            self.confidences[usual], self.correct[usual], max_risk, 1 - guarantee
        )

    @classmethod
    def read(cls, data: bytes, images: int, classes: int) -> Self:
        """Read the bytes of the file, with n `images` and K `classes`.

        Raises:
            ArchiveError, ValidationError: the file is damaged, lacks an array, or belongs to
                another model.
        """
        scores = ArraySpec(np.float64, (images,))
        arrays = cls.model_validate(
            read_arrays(
                data,
                {
                    **dict.fromkeys(("confidences", "thr", "aps", "ood_scores"), scores),
                    "correct": ArraySpec(np.bool_, (images,)),
                    "true_classes": ArraySpec(np.int64, (images,)),
                },
            )
        )
        if (arrays.true_classes >= classes).any():
            raise ArchiveError("it names a class that the model does not have")
        return arrays

    def write(self, path: Path) -> None:
        """Write the arrays to the file `path`."""
        np.savez_compressed(path, **self.model_dump())


_CACHE_SIZE = 64
"""Clients may request any risk, false-alarm rate and coverage, so the caches are bounded."""


@dataclass(frozen=True, slots=True)
class Abstentions:
    """Which of N predictions abstain, and why."""

    max_risk: float
    """The error rate that is kept among the labels that are not abstained from."""
    max_false_alarm: float
    """The share of images like the validation images that are unusual."""
    unsure: BoolArray
    """bool [N]: whether the prediction is not confident enough to keep to `max_risk`."""
    unusual: BoolArray
    """bool [N]: whether the typicality is at most `max_false_alarm`."""

    @property
    def abstain(self) -> BoolArray:
        """Whether the prediction is unsure or the image unusual: bool [N]."""
        return self.unsure | self.unusual

    @property
    def reason_numbers(self) -> Int64Array:
        """0 where it does not abstain, else 1 + the index in ABSTENTION_REASONS: int64 [N]."""
        numbers: Int64Array = self.unsure + 2 * self.unusual
        return numbers

    def reasons(self) -> list[AbstentionReason | None]:
        """Return why each prediction abstains; None: it does not."""
        choices = (None, *ABSTENTION_REASONS)
        return [choices[number] for number in self.reason_numbers.tolist()]


@dataclass(frozen=True, slots=True)
class Decisions(Abstentions):
    """The prediction sets and abstentions for N images over K classes."""

    coverage: float
    """Of the prediction sets."""
    sets: BoolArray
    """bool [N, K]: which classes belong to each prediction set; none is empty."""


class Calibrator:
    """Applies a calibration: typicality, prediction sets and abstention come from here only."""

    def __init__(self, parameters: Calibration, arrays: CalibrationArrays) -> None:
        self.parameters = parameters
        self._arrays = arrays
        self._ood_scores = arrays.ood_scores[arrays.least_typical_first]
        self._aps = np.sort(arrays.aps)
        order = np.argsort(arrays.thr, kind="stable")
        self._thr, self._thr_classes = arrays.thr[order], arrays.true_classes[order]
        # Most requests have the same levels, and a search takes as long as other parts of them.
        self.threshold = lru_cache(_CACHE_SIZE)(self._threshold)
        """`CalibrationArrays.threshold` by maximum risk and false-alarm rate, cached."""
        self._set_thresholds = lru_cache(_CACHE_SIZE)(self._fit_set_thresholds)

    def write(self, path: Path) -> None:
        """Write the arrays to the file `path`."""
        self._arrays.write(path)

    def decide(
        self,
        uncertainty: Uncertainty,
        coverage: float,
        kind: SetKind,
        max_risk: float | None,
        max_false_alarm: float,
    ) -> Decisions:
        """Compute prediction sets and abstentions.

        Args:
            uncertainty: from calibrated probabilities, with typicality and set draws.
            coverage: of the prediction sets, 0 < coverage < 1.
            kind: of the prediction sets.
            max_risk: error rate to keep, 0 < max_risk < 1; None for the bundle's default.
            max_false_alarm: share of unusual images, 0 < max_false_alarm < 1.
        """
        abstentions = self.abstentions(
            uncertainty.confidences(), uncertainty.typicality, max_risk, max_false_alarm
        )
        sets = self.prediction_sets(
            uncertainty.mean_probabilities, coverage, kind, uncertainty.set_draws
        )
        return Decisions(
            max_risk=abstentions.max_risk,
            max_false_alarm=max_false_alarm,
            unsure=abstentions.unsure,
            unusual=abstentions.unusual,
            coverage=coverage,
            sets=sets,
        )

    def abstentions(
        self,
        confidences: Float64Array,
        typicality: Float64Array,
        max_risk: float | None,
        max_false_alarm: float,
    ) -> Abstentions:
        """Decide which predictions abstain: those that are unsure, and those of unusual images.

        Args:
            confidences: [N], the labels' mean probabilities.
            typicality: [N], from `typicality`.
            max_risk: error rate to keep, 0 < max_risk < 1; None for the bundle's default.
            max_false_alarm: share of unusual images, 0 < max_false_alarm < 1.
        """
        risk = self.parameters.max_risk if max_risk is None else max_risk
        threshold = self.threshold(risk, max_false_alarm)
        return Abstentions(
            risk,
            max_false_alarm,
            confidences < (np.inf if threshold is None else threshold),
            typicality <= max_false_alarm,
        )

    def prediction_sets(
        self, probabilities: Float64Array, coverage: float, kind: SetKind, draws: Float64Array
    ) -> BoolArray:
        """Return which classes belong to each image's prediction set: bool [N, K].

        Split conformal prediction (Vovk et al. 2005): a set holds the true class with probability
        `coverage`, for images drawn as the validation images were. The likeliest class is always in
        the set, so none is empty, and the probability can only be higher.

        Args:
            probabilities: mean probabilities, [N, K].
            coverage: 0 < coverage < 1.
            kind: `thr` takes the classes above a threshold (Sadinle et al. 2019): the smallest sets
                on average. `class-conditional` has a threshold for each class, so that the coverage
                holds for each of them (`class_conditional_thresholds`). `aps` takes the likeliest
                classes up to a total probability (Romano et al. 2020): better coverage for hard
                images.
            draws: [N] in 0..1, from `uniform_draws`; only `aps` uses them.
        """
        scores = aps_scores(probabilities, draws) if kind == "aps" else 1 - probabilities
        thresholds = self._set_thresholds(kind, coverage, probabilities.shape[1])
        return classes_up_to(thresholds, scores, probabilities)

    def typicality(self, ood_scores: Float32Array | Float64Array) -> Float64Array:
        """Return the conformal p-value of each image among n validation images: float64 [N].

        It is (1 + number of validation images with a score that is not higher) / (n + 1), which is
        1/(n + 1) to 1 (Vovk et al. 2005; as a test of outliers, Bates et al. 2023). Of images drawn
        as the validation images were, at most the share a has a typicality of at most a, for every
        a. None has less than 1/(n + 1), so no image is unusual at a lower false-alarm rate.

        Args:
            ood_scores: [N]; one that is not finite counts as the least typical.
        """
        finite = np.where(np.isfinite(ood_scores), ood_scores, -np.inf)
        not_higher = np.searchsorted(self._ood_scores, finite, side="right")
        return (1 + not_higher) / (len(self._ood_scores) + 1)

    def typicality_ranks(self, typicality: Float64Array) -> Int64Array:
        """Return how many validation images are at most as typical: int64 [N] in 0..n.

        Args:
            typicality: [N], from `typicality`.
        """
        return np.rint(typicality * (self.parameters.images + 1)).astype(np.int64) - 1

    def confidence_ranks(self, confidences: Float64Array) -> Int64Array:
        """Return how many validation images are at most as confident: int64 [N] in 0..n.

        Args:
            confidences: [N], mean probabilities of the labels, sampled as in the calibration.
        """
        return np.searchsorted(self._arrays.confidences[::-1], confidences, side="right")

    def _threshold(self, max_risk: float, max_false_alarm: float) -> float | None:
        return self._arrays.threshold(max_risk, max_false_alarm, self.parameters.guarantee)

    def _fit_set_thresholds(self, kind: SetKind, coverage: float, classes: int) -> Float64Array:
        """Return the scores up to which classes belong to a set: float64 [K], or [1] for all."""
        if kind == "class-conditional":
            return class_conditional_thresholds(self._thr, self._thr_classes, classes, coverage)
        scores = self._aps if kind == "aps" else self._thr
        return np.array([conformal_threshold(scores, coverage)])
