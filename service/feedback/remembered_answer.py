"""What is remembered of an answer until its true label arrives: no image, and no text but ids.

Knows no database.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import orjson

from model.bundle.store import Manifest
from model.uncertainty.calibration import Calibrator
from model.uncertainty.prediction_sets import SetKind
from service.traffic_log.traffic_record import Row, TrafficOptions

MAX_REQUEST_ID = 128
"""Most characters of the id of a request."""


class VersionIdentity(NamedTuple):
    """One version of a model, as its labels are counted: another bundle has other figures."""

    model: str
    version: str
    digest: str
    """Of the files of its bundle."""
    class_names: tuple[str, ...]
    validation_images: int
    """That the calibration was fitted on; 0: it is uncalibrated."""

    @classmethod
    def of(cls, manifest: Manifest, calibrator: Calibrator | None) -> Self:
        """Return the identity of the version of a bundle."""
        return cls(
            manifest.name,
            str(manifest.version),
            digest_of_files(manifest.files),
            manifest.class_names,
            0 if calibrator is None else calibrator.parameters.images,
        )


class Promise(NamedTuple):
    """What an answer promised; None: nothing of that kind."""

    max_risk: float | None = None
    coverage: float | None = None
    sets: SetKind | None = None


class AnsweredImage(NamedTuple):
    """The answer for one image; classes are numbers, 0..K-1."""

    label: int
    confidence: float
    abstained: bool | None
    """None: the answer does not say."""
    prediction_set: Sequence[int] | None


class RememberedAnswer(NamedTuple):
    """The answer to one request, for N images."""

    promise: Promise
    images: tuple[AnsweredImage, ...]

    def to_bytes(self) -> bytes:
        """Return the answer as JSON, which `from_bytes` reads."""
        return orjson.dumps([*self.promise, [tuple(each) for each in self.images]])

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read what `to_bytes` has written."""
        *promise, images = orjson.loads(content)
        return cls(Promise(*promise), tuple(AnsweredImage(*each) for each in images))


def promise_of(options: TrafficOptions | None, calibrator: Calibrator | None) -> Promise:
    """Return what answers with these options promise; options: None for deterministic ones."""
    if options is None or calibrator is None:
        return Promise()
    default = calibrator.parameters.max_risk
    risk = default if options.max_risk is None else options.max_risk
    return Promise(risk, options.coverage, options.sets)


def answered_images(
    rows: Sequence[Row], class_numbers: Mapping[str, int]
) -> tuple[AnsweredImage, ...]:
    """Return what is remembered of the rows of an answer."""
    return tuple(_answered_image(row, class_numbers) for row in rows)


def digest_of_files(files: Mapping[str, str]) -> str:
    """Return one digest for the files of a bundle, from the digest of each by its name."""
    listing = orjson.dumps(sorted(files.items()))
    return hashlib.sha256(listing, usedforsecurity=False).hexdigest()[:32]


def _answered_image(row: Row, class_numbers: Mapping[str, int]) -> AnsweredImage:
    members: Sequence[str] | None = row.get("prediction_set")
    abstained: Any = row.get("abstain")
    return AnsweredImage(
        class_numbers[row["label"]],
        float(row["confidence"]),
        None if abstained is None else bool(abstained),
        None if members is None else tuple(class_numbers[name] for name in members),
    )
