"""The answers of one request, and their lines in the traffic log. Knows no file and no route.

A line is one image. It ends with the answer and its doubt, so that these can be compared as bytes.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from model.dropout.sampling_methods import AdaptiveSamples, Analytic, FixedSamples, Sampling
from model.uncertainty.prediction_sets import SetKind

Floats = NDArray[np.float32]
Row = Mapping[str, Any]
"""The answer for one image: `label`, `confidence`, `probabilities` by class, DOUBT_FIELDS."""

MAX_LOGGED_CLASSES = 10
"""Most classes in a line, the likeliest ones: a line stays short however many there are."""
DOUBT_FIELDS = (
    *("predictive_entropy", "expected_entropy", "mutual_information", "variation_ratio"),
    *("prediction_set", "typicality", "abstain", "abstain_because"),
    *("samples_used", "stopped_because"),
)
ANSWER_MARK = b',"answer":'
"""Begins the answer. No text in a line contains it, since JSON escapes quotation marks in text."""
_RECORD_BYTES, _NUMBER_BYTES = 2048, 64
"""Memory of answers without their numbers, and of each number, approximately."""
_PIECE_BYTES, _MAX_HASHED_IN_PIECES = 2047, 2**14
"""hashlib releases the GIL for longer data. To get it back takes longer than to hash a small image,
and as much of the event loop's time again."""
_FLAGS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z


class TrafficOptions(NamedTuple):  # hashed for every request, which is fast
    """How answers with dropout active were sampled and decided."""

    sampling: Sampling
    max_risk: float | None
    """None: that of the bundle."""
    max_false_alarm: float
    coverage: float | None = None
    """None: the protocol has no prediction sets."""
    sets: SetKind | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the options as they stand in a line."""
        levels = {name: getattr(self, name) for name in self._fields[1:]}
        match self.sampling:
            case FixedSamples(seed, samples, design):
                fixed = {"samples": samples, "seed": seed, "design": design}
                return {"method": "mc_dropout", **fixed, **levels}
            case AdaptiveSamples(seed, most):
                adaptive = {"samples": "auto", "seed": seed, "max_samples": most}
                return {"method": "mc_dropout", **adaptive, **levels}
            case Analytic():
                return {"method": "analytic", **levels}


class Subject(NamedTuple):
    """What a request asked: of which version, and for which N images."""

    route: str
    model: str
    version: str
    images: Floats
    """As the network took them, float32 [N, C, H, W]."""
    options: TrafficOptions | None
    """None: deterministic."""


@dataclass(slots=True)  # one per request; a frozen dataclass is slower to create
class TrafficRecord:
    """The answers of one request for N images."""

    time: float
    """When the answer was built, seconds since 1970."""
    request_id: str | None
    trace_id: str | None
    """Of the trace that the request is known to belong to."""
    key_name: str | None
    """The name of the API key that the request came with."""
    subject: Subject
    rows: Callable[[], Sequence[Row]]
    """Returns the N answers; called on the writing thread."""

    def lines(self) -> Iterator["TrafficLine"]:
        """Yield the line of each image."""
        head = orjson.dumps(
            {
                "time": datetime.fromtimestamp(self.time, UTC),
                "request_id": self.request_id,
                "trace_id": self.trace_id,
                "key_name": self.key_name,
            },
            option=_FLAGS,
        )[:-1]
        route, model, version, images, options = self.subject
        head += _encode_version(route, model, version, options)
        for number, row in enumerate(self.rows()):
            image = images[number]
            digest = image_digest(image)
            text = b'%b,"row":%d,"digest":"%b"%b'
            yield TrafficLine(
                digest, image, text % (head, number, digest.encode(), encode_answer(row))
            )


class TrafficLine(NamedTuple):
    """The line of one image, with its line break, and the image, float32 [C, H, W]."""

    digest: str
    image: Floats
    text: bytes


def memory_bytes(images: Floats, numbers: int) -> int:
    """Return how much memory the answers to a request and its images take, approximately.

    numbers: how many numbers the answers hold.
    """
    return images.nbytes + memory_bytes_of_numbers(numbers)


def memory_bytes_of_numbers(numbers: int) -> int:
    """Return how much memory answers with so many numbers take, approximately."""
    return _RECORD_BYTES + _NUMBER_BYTES * numbers


def image_digest(image: Floats) -> str:
    """Return the SHA-256 of an image as a network takes it, little-endian float32 [C, H, W]."""
    data = np.ascontiguousarray(image).data.cast("B")
    if len(data) > _MAX_HASHED_IN_PIECES:
        return hashlib.sha256(data, usedforsecurity=False).hexdigest()
    digest = hashlib.sha256(usedforsecurity=False)
    for start in range(0, len(data), _PIECE_BYTES):
        digest.update(data[start : start + _PIECE_BYTES])
    return digest.hexdigest()


def encode_answer(row: Row) -> bytes:
    """Return the end of a line: the answer, its doubt, and the line break."""
    answer = {
        "label": row["label"],
        "confidence": row["confidence"],
        "probabilities": likeliest(row["probabilities"]),
    }
    doubt = {name: row[name] for name in DOUBT_FIELDS if name in row}
    prediction_set = doubt.get("prediction_set")
    if prediction_set is not None:
        doubt["prediction_set"] = prediction_set[:MAX_LOGGED_CLASSES]
        doubt["set_size"] = len(prediction_set)
    text = orjson.dumps({"answer": answer, "doubt": doubt}, option=_FLAGS)
    return b"," + text[1:] + b"\n"


def likeliest(probabilities: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the probabilities of the MAX_LOGGED_CLASSES likeliest classes."""
    if len(probabilities) <= MAX_LOGGED_CLASSES:
        return probabilities
    values = np.fromiter(probabilities.values(), np.float64, len(probabilities))
    names = list(probabilities)
    order = (-values).argsort(kind="stable")[:MAX_LOGGED_CLASSES].tolist()
    return {names[each]: probabilities[names[each]] for each in order}


@lru_cache(maxsize=256)
def _encode_version(route: str, model: str, version: str, options: TrafficOptions | None) -> bytes:
    """Return the fields that many requests have in common, from the comma before them on."""
    asked = None if options is None else options.to_json()
    common = {"route": route, "model": model, "version": version, "options": asked}
    return b"," + orjson.dumps(common)[1:-1]
