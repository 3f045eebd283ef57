"""What was fitted on a bundle's validation images, and what it says of an answer.

Knows no HTTP and fits nothing: `training.export.calibrate` does that, on the exported graphs.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.npz import Expected, read_arrays
from model.uncertainty.ood import RelativeMahalanobis
from model.uncertainty.summary import Uncertainty

CALIBRATION_FILE = "calibration.npz"
FEWEST_IMAGES = 100
"""Validation images without which nothing is fitted."""

RISK_STARTS = 10
"""Shares of the images from which a threshold is looked for."""

SetKind = Literal["thr", "aps"]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Calibration(BaseModel):
    """`calibration` in the manifest: what was fitted, beside the arrays in `calibration.npz`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: int = Field(ge=FEWEST_IMAGES, description="validation images it was fitted on")
    temperature: float = Field(gt=0, description="divides the logits of the deterministic answer")
    sampled_temperature: float = Field(gt=0, description="divides the logits of every sample")
    samples: int = Field(ge=1, description="of the answers that the rest was fitted on")
    seed: int = Field(ge=0, description="of the same")
    max_risk: float = Field(gt=0, lt=1, description="the error rate abstention keeps, by default")
    guarantee: float = Field(gt=0, lt=1, description="confidence that it is kept")


class Arrays(BaseModel):
    """`calibration.npz`; n validation images, C classes, F features. All float64."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    thr: Floats
    """[n] ascending: 1 - the true class's mean probability."""
    aps: Floats
    """[n] ascending: probability of the classes likelier than the true one, and part of its own."""
    confidences: Floats
    """[n] descending: the label's mean probability."""
    risk_bounds: Floats
    """[n]: of answers at least as confident as `confidences`, no more than this share are wrong."""
    axes: Floats
    """[F, 2D], of `model.uncertainty.ood.RelativeMahalanobis`."""
    centres: Floats
    """[C, D], of the same."""
    middle: Floats
    """[D], of the same."""
    nearness: Floats
    """[n] ascending: how near a class the validation images lie."""

    @model_validator(mode="after")
    def _fit_one_another(self) -> Self:
        sorted_ones = (self.thr, self.aps, -self.confidences, self.nearness)
        scores = (*sorted_ones, self.risk_bounds)
        directions = (self.axes, self.centres, self.middle[np.newaxis])
        if not (
            all(each.dtype == np.float64 and np.isfinite(each).all() for each in self._all())
            and {each.shape for each in scores} == {(len(self.thr),)}
            and all((np.diff(each) >= 0).all() for each in sorted_ones)
            and all(each.ndim == 2 for each in directions)
            and self.axes.shape[1] == 2 * self.centres.shape[1] == 2 * len(self.middle)
        ):
            raise ValueError("its arrays do not fit one another")
        return self

    def _all(self) -> list[Floats]:
        return [getattr(self, name) for name in type(self).model_fields]

    @property
    def density(self) -> RelativeMahalanobis:
        """What the features' typicality is measured with."""
        return RelativeMahalanobis(self.axes, self.centres, self.middle)

    def threshold(self, max_risk: float) -> float | None:
        """Return the least confidence to answer with, or None where no threshold is known to do.

        Selection with guaranteed risk (Geifman & El-Yaniv 2017): with confidence `guarantee` over
        the draw of the validation images, at most `max_risk` of the answers at least as confident
        are wrong. Their binary search gives up where half of the images are too few to tell. Here
        one image after the other is answered from each of RISK_STARTS shares on, which split what
        the guarantee leaves, until a bound fails (fixed sequences: Angelopoulos et al. 2022). Both
        take the risk to fall as the confidence rises.
        """
        count = len(self.risk_bounds)
        broken = np.append(self.risk_bounds > max_risk, True)
        starts = [count * (part + 1) // RISK_STARTS - 1 for part in range(RISK_STARTS)]
        ends = [start + int(broken[start:].argmax()) for start in starts if not broken[start]]
        return float(self.confidences[max(ends) - 1]) if ends else None

    @classmethod
    def read(cls, data: bytes, images: int, features: int, classes: int) -> Self:
        """Read the file's bytes, of n images, F features and at most C classes.

        Raises:
            ArchiveError, ValidationError: it is damaged, lacks an array, or is of another model.
        """
        scores = Expected(np.float64, (images,))
        expected = {
            **dict.fromkeys(("thr", "aps", "confidences", "risk_bounds", "nearness"), scores),
            "axes": Expected(np.float64, (features, 2 * features)),
            "centres": Expected(np.float64, (classes, features)),
            "middle": Expected(np.float64, (features,)),
        }
        return cls.model_validate(read_arrays(data, expected))

    def write(self, path: Path) -> None:
        """Write the file `path`."""
        np.savez_compressed(path, **self.model_dump())


def aps_scores(probabilities: Floats, draws: Floats) -> Floats:
    """Return for each class the total of the likelier ones and a drawn part of its own: [N, K].

    Args:
        probabilities: [N, K].
        draws: [N], the part of its own that counts, 0..1.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")
    totals = np.cumsum(np.take_along_axis(probabilities, order, axis=1), axis=1)
    scores = np.empty_like(probabilities)
    np.put_along_axis(scores, order, totals, axis=1)
    scores -= (1 - draws[:, np.newaxis]) * probabilities
    return scores


_MOST_KNOWN = 64
"""Thresholds that are remembered; a client may ask for any risk."""


def conformal_threshold(known: Floats, coverage: float) -> float:
    """Return the score up to which classes belong to a set; infinite where images are too few.

    Args:
        known: [n] ascending, scores of the true classes of validation images.
        coverage: 0 < coverage < 1.
    """
    rank = int(np.ceil((len(known) + 1) * coverage))
    return float(known[rank - 1]) if rank <= len(known) else np.inf


def uniform_draws(features: NDArray[np.float32]) -> Floats:
    """Draw a number in 0..1 for each image, always the same for the same features: [N].

    Args:
        features: float32 [N, F].
    """
    digests = [hashlib.sha256(b"dropserve sets" + row.tobytes()).digest() for row in features]
    words = np.frombuffer(b"".join(digests), dtype="<u8")[::4]
    return words / 2.0**64


@dataclass(frozen=True, slots=True)
class Decisions:
    """What to do with the answers for N images, K classes."""

    coverage: float
    max_risk: float
    sets: Bools
    """[N, K]: which classes belong to each prediction set."""
    abstain: Bools
    """[N]: the answer is not sure enough to keep to `max_risk`."""


class Calibrator:
    """A calibration, ready for answers."""

    def __init__(self, numbers: Calibration, arrays: Arrays) -> None:
        self.numbers = numbers
        self._arrays = arrays
        self._density = arrays.density
        # What every request asks for again takes long to find.
        self.threshold = lru_cache(_MOST_KNOWN)(arrays.threshold)
        """As `Arrays.threshold`."""

    def write(self, path: Path) -> None:
        """Write the arrays to the file `path`."""
        self._arrays.write(path)

    def decide(
        self, answer: Uncertainty, coverage: float, kind: SetKind, max_risk: float | None
    ) -> Decisions:
        """Turn uncertainties into decisions.

        Args:
            answer: of calibrated probabilities.
            coverage: of the prediction sets, 0 < coverage < 1.
            kind: of the prediction sets.
            max_risk: error rate to keep, 0 < max_risk < 1; None for the bundle's own.
        """
        probabilities = answer.mean_probabilities
        risk = self.numbers.max_risk if max_risk is None else max_risk
        threshold = self.threshold(risk)
        confident = probabilities.max(axis=1) >= (np.inf if threshold is None else threshold)
        sets = self.prediction_sets(probabilities, coverage, kind, answer.set_draws)
        return Decisions(coverage, risk, sets, ~confident)

    def prediction_sets(
        self, probabilities: Floats, coverage: float, kind: SetKind, draws: Floats
    ) -> Bools:
        """Say which classes belong to each image's set: bool [N, K].

        Split conformal prediction (Vovk et al. 2005): a set holds the true class with probability
        `coverage`, for images drawn as the validation images were.

        Args:
            probabilities: mean probabilities, [N, K].
            coverage: 0 < coverage < 1.
            kind: `thr` takes the classes above a threshold (Sadinle et al. 2019): the smallest sets
                on average; `aps` the likeliest ones up to a total (Romano et al. 2020): fairer to
                hard images.
            draws: [N] in 0..1, of `uniform_draws`; `thr` uses none.
        """
        known = self._arrays.thr if kind == "thr" else self._arrays.aps
        scores = 1 - probabilities if kind == "thr" else aps_scores(probabilities, draws)
        sets: Bools = scores <= conformal_threshold(known, coverage)
        if kind == "aps":  # else a draw would leave the clearest images without a class
            sets[np.arange(len(sets)), probabilities.argmax(axis=1)] = True
        return sets

    def typicality(self, features: NDArray[np.float32]) -> Floats:
        """Return the share of validation images that lie farther out, 0..1: [N].

        Args:
            features: float32 [N, F].
        """
        known = self._arrays.nearness
        nearness = self._density.score(features)
        farthest = np.where(np.isfinite(nearness), nearness, -np.inf)
        return np.searchsorted(known, farthest) / len(known)
