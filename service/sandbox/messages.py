"""What goes between the service and its sandbox processes: JSON and bytes, each with its length.

Nothing is pickled, and either side bounds what it takes. Knows no process.
"""

import struct
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from service.codecs.compression import IDENTITY
from service.codecs.image_bodies import JSON_TYPE, Layout
from service.codecs.limits import Limits

HEADER = struct.Struct("<IQ")
"""Before each message: the lengths of its JSON and of the bytes that follow it."""
MAX_JSON_BYTES = 2**18
FREE_BYTES = 2**24
"""Of memory that a task may take without asking."""
GO = b"\1"
"""The answer to a process that asks."""

Kind = Literal["images", "files", "infer"]


@dataclass(frozen=True, slots=True)
class Task:
    """What a sandbox process is to make of a body."""

    kind: Kind
    """`images`: the images in a body. `files`: those in files, one after the other. `infer`: the
    same request of the Open Inference Protocol, its images as one binary tensor."""
    spec: dict[str, Any]
    """The InputSpec."""
    limits: Limits
    seconds: float
    """Of processor time: who takes longer is ended."""
    encoding: str = IDENTITY
    content_type: str = JSON_TYPE
    layout: Layout = "native"
    json_length: int | None = None
    lengths: tuple[int, ...] = ()
    """Of the files."""


def message(content: Any, data_length: int = 0) -> bytes:
    """Write what comes before a message's bytes."""
    text = orjson.dumps(content)
    return HEADER.pack(len(text), data_length) + text


def read_task(text: bytes) -> Task:
    """Read a task as `message` writes it."""
    content = orjson.loads(text)
    content["limits"] = Limits(**content["limits"])
    content["lengths"] = tuple(content["lengths"])
    return Task(**content)
