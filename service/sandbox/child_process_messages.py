"""The messages between the service and its sandbox processes: JSON and bytes, with their lengths.

Nothing is pickled, and both sides limit what they accept. Knows no process.
"""

import struct
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from service.codecs.body_to_images import JSON_TYPE, JsonLayout
from service.codecs.compression import IDENTITY
from service.codecs.image_limits import Limits

HEADER = struct.Struct("<IQ")
"""The header of each message: the length of its JSON and of the bytes after it."""
MAX_JSON_BYTES = 2**18
UNRESERVED_BYTES = 2**24
"""Memory that a task may take without a reservation."""
RESERVED = b"\1"
"""The reply to a process that has requested memory."""

Kind = Literal["images", "image", "files", "infer"]


@dataclass(frozen=True, slots=True)
class Task:
    """Instructions for a sandbox process on how to decode a body."""

    kind: Kind
    """`images` decodes the images in a body, `image` a single one and also tells its size, and
    `files` decodes concatenated image files. `infer` rewrites an Open Inference request so that its
    images are one binary tensor."""
    spec: dict[str, Any]
    """The fields of the model's `InputSpec`."""
    limits: Limits
    seconds: float
    """Limit of processor time, at which the kernel ends the process."""
    encoding: str = IDENTITY
    content_type: str = JSON_TYPE
    layout: JsonLayout = "native"
    json_length: int | None = None
    lengths: tuple[int, ...] = ()
    """Lengths in bytes of the concatenated files."""


def encode_message(content: Any, data_length: int = 0) -> bytes:
    """Serialise a message without its bytes: the header and the JSON."""
    text = orjson.dumps(content)
    return HEADER.pack(len(text), data_length) + text


def decode_task(text: bytes) -> Task:
    """Parse the JSON of a task that `encode_message` has serialised."""
    content = orjson.loads(text)
    content["limits"] = Limits(**content["limits"])
    content["lengths"] = tuple(content["lengths"])
    return Task(**content)
