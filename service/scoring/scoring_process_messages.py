"""The messages between `python -m service.score` and its processes: JSON lines, then bytes.

Nothing is pickled. Knows no process.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from service.scoring.image_file import ImageReference


@dataclass(frozen=True)
class ModelFacts:
    """What a process tells of the bundle that it has loaded, and of how it samples."""

    name: str
    version: int
    class_names: tuple[str, ...]
    digest: str
    """SHA-256 of the manifest, which has those of all files."""
    samples: int | str | None
    """Dropout samples, or "auto"; None: none are drawn."""
    seed: int | None
    """Of the dropout masks; None: none are drawn."""
    calibrated: bool
    """Whether it has prediction sets, typicality and abstention."""


@dataclass(frozen=True)
class ScoredBatch:
    """The lines of a batch, in order, and what is in them."""

    lines: bytes
    errors: int
    abstentions: int


def encode(content: Any) -> bytes:
    """Serialise a message as one line; names that are not UTF-8 are kept by escapes."""
    return json.dumps(content).encode("ascii") + b"\n"


def decode(line: bytes) -> Any:
    """Parse a line of `encode`."""
    return json.loads(line)


def encode_batch(images: Sequence[ImageReference]) -> bytes:
    """Serialise the references of a batch."""
    return encode([asdict(image) for image in images])


def decode_batch(line: bytes) -> list[ImageReference]:
    """Parse a line of `encode_batch`."""
    return [ImageReference(**fields) for fields in decode(line)]
