"""A body's bytes -> the images in it, all at once and in one thread.

Runs on the event loop for what is small, and in a sandbox process for everything else, so it
imports no web framework. Knows no request and no model beyond the input it declares.
"""

import base64
import binascii
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from model.images.preprocessing import (
    InputSpec,
    from_numbers,
    from_tensor,
    open_all,
    require_planes,
    to_float,
)
from service.codecs.forms import form_files
from service.codecs.limits import Limits
from service.codecs.tensors import InferRequest, Tensor
from service.errors import (
    EmptyBodyError,
    InvalidBase64Error,
    InvalidJsonError,
    InvalidRequestError,
    InvalidTensorError,
    TooManyImagesError,
)

JSON_TYPE = "application/json"
FORM_TYPE = "multipart/form-data"
INPUT = "images"
"""Name of the one tensor that a model takes."""

Layout = Literal["native", "rows"]
"""Of a JSON body: `native` is that of /predict and /uncertainty, `rows` TensorFlow Serving's."""

Item = Any
"""An image: a file's bytes, or nested numbers."""
Images = NDArray[np.uint8] | NDArray[np.float32]
"""[N, C, H, W]: 0..255 as decoded, or 0..1."""
Ask = Callable[[int, int], None]
"""Told how many bytes of memory the next step takes, and how many pixels it decodes; returns when
it may be taken."""

_INSTANCES = '{"instances": [IMAGE, ...]}'
_SIGNATURE = "serving_default"
_ROWS_FIELDS = {"instances", "signature_name"}
JSON_BYTES = 24
"""Of memory that a byte of JSON comes to, at most: `[],` is a list of 56 bytes and its place."""
_SPARE_VALUES = 2**16
"""Of a JSON body beside its numbers."""


def read_items(body: bytes, content_type: str, layout: Layout, limits: Limits) -> Sequence[Item]:
    """Find the images in a body, at least one and no more than allowed; decodes none.

    content_type: the header as it came.

    Raises:
        EmptyBodyError, InvalidJsonError, InvalidRequestError, InvalidBase64Error,
        TooManyImagesError.
    """
    if not body and layout == "native":
        raise EmptyBodyError("The request has no body; send an image.")
    kind = media_type(content_type)
    if kind == FORM_TYPE:
        return form_files(body, content_type, limits)
    if kind != JSON_TYPE:
        return [body]
    content = read_json(body)
    instances = _native(content) if layout == "native" else _rows(content)
    if not instances:
        raise EmptyBodyError("'instances' is empty; send at least one image.")
    limits.check_count(len(instances))
    return [_from_base64(item) if isinstance(item, dict) else item for item in instances]


def to_images(items: Sequence[Item], spec: InputSpec, limits: Limits, ask: Ask) -> Images:
    """Decode files and check numbers, in their order; raises InputError."""
    files = [item for item in items if type(item) is bytes]
    if not files:
        images = [from_numbers(item, spec) for item in items]
        return np.stack(images) if len(images) > 1 else images[0][np.newaxis]
    pixels = decode_files(files, spec, limits, ask)
    if len(files) == len(items):
        return pixels
    decoded = iter(to_float(pixels))
    return np.stack(
        [next(decoded) if type(item) is bytes else from_numbers(item, spec) for item in items]
    )


def decode_files(
    files: Sequence[bytes], spec: InputSpec, limits: Limits, ask: Ask
) -> NDArray[np.uint8]:
    """Decode image files to uint8 [N, C, H, W]; raises InputError."""
    opened = open_all(files, limits.image_pixels, limits.request_pixels)
    ask(opened.peak_bytes, opened.pixels)
    return opened.load(spec)


def bound_json(body: bytes, content_type: str, spec: InputSpec, limits: Limits, ask: Ask) -> None:
    """Refuse JSON of more values than the images of a request have, before it is read.

    Raises:
        TooManyImagesError: several times as many.
    """
    if media_type(content_type) != JSON_TYPE:
        return
    values = spec.height * spec.width * (spec.channels + 2)  # each pixel may be a list
    most = 2 * limits.images * values + _SPARE_VALUES
    if body.count(b",") + body.count(b"[") > most:
        raise TooManyImagesError(
            f"The JSON holds far more values than the {limits.images} images that one request "
            f"may have, of {spec.channels} x {spec.height} x {spec.width} numbers each; send "
            "fewer or smaller images."
        )
    ask(JSON_BYTES * len(body), 0)


def of_tensors(tensors: Sequence[Tensor], spec: InputSpec) -> Images | list[bytes]:
    """Take the images out of the inputs of a request: as an array, or as files still to be decoded.

    Raises:
        InvalidTensorError: another input than `images`, or another rank.
        InputError, InvalidBase64Error: about the images.
    """
    if len(tensors) != 1 or tensors[0].name != INPUT:
        names = ", ".join(repr(tensor.name) for tensor in tensors)
        raise InvalidTensorError(f"The one input is {INPUT!r}, but the request has {names}.")
    tensor = tensors[0]
    values = tensor.values
    if tensor.datatype == "FP32":
        return from_tensor(values, spec)
    if tensor.datatype == "UINT8":
        require_planes(values.shape, spec)
        return values
    if values.ndim != 1 or not len(values):
        raise not_a_list_of_files(values.shape)
    return [
        unpack_base64(each, f"An element of {INPUT!r}") if isinstance(each, str) else each
        for each in values
    ]


def check_inputs(request: InferRequest, limits: Limits) -> None:
    """Hold the shapes that a request declares to the limits, before its values are looked at.

    Raises:
        TooManyImagesError, InvalidTensorError.
    """
    for each in request.inputs:
        if each.shape and each.shape[0] > limits.images:
            limits.check_count(each.shape[0])
        if each.datatype == "BYTES" and math.prod(each.shape) > limits.images:
            raise not_a_list_of_files(each.shape)


def check_raw(length: int, spec: InputSpec) -> None:
    """Hold a raw request, which is one image and nothing else, to its length in bytes."""
    expected = 4 * spec.channels * spec.height * spec.width
    if length != expected:
        raise InvalidTensorError(
            f"A raw request is one FP32 image of {expected} bytes, but this body has {length}; "
            "describe any other input in JSON."
        )


def not_a_list_of_files(shape: Sequence[int]) -> InvalidTensorError:
    """Build the error of encoded images in another shape."""
    return InvalidTensorError(f"Encoded images are of shape [N], but {INPUT!r} has {list(shape)}.")


def media_type(content_type: str) -> str:
    """Return a Content-Type without its parameters, in small letters."""
    if content_type == JSON_TYPE:
        return content_type
    return content_type.partition(";")[0].strip().lower()


def read_json(body: bytes) -> Any:
    """Parse a JSON body; raises InvalidJsonError."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidJsonError(
            f"The body is not JSON that can be read ({error}); "
            "NaN and Infinity are not JSON, and nesting is limited."
        ) from None


def unpack_base64(text: str, what: str) -> bytes:
    """Decode base64; raises InvalidBase64Error, naming `what` it was."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        hint = "leave out the 'data:...;base64,' in front" if text[:5] == "data:" else "encode it"
        raise InvalidBase64Error(f"{what} is not base64; {hint} (RFC 4648).") from None


def _native(content: Any) -> Sequence[Any]:
    if not isinstance(content, dict) or set(content) != {"instances"}:
        raise InvalidRequestError(f"The body is not of the form {_INSTANCES} and nothing else.")
    return _list(content["instances"])


def _rows(content: Any) -> Sequence[Any]:
    """Return the images of a request in row form; each may stand under its input's name."""
    if not isinstance(content, dict) or not {"instances"} <= set(content) <= _ROWS_FIELDS:
        raise InvalidRequestError(
            f"The body is not of the form {_INSTANCES}, with or without "
            f'"signature_name": "{_SIGNATURE}".'
        )
    if content.get("signature_name", _SIGNATURE) != _SIGNATURE:
        raise InvalidRequestError(f"The one signature here is {_SIGNATURE!r}; leave it out.")
    return [
        each[INPUT] if isinstance(each, Mapping) and set(each) == {INPUT} else each
        for each in _list(content["instances"])
    ]


def _list(instances: Any) -> list[Any]:
    if not isinstance(instances, list):
        raise InvalidRequestError(f"'instances' is not a list; send {_INSTANCES}.")
    return instances


def _from_base64(item: dict[str, Any]) -> bytes:
    text = item.get("b64")
    if set(item) != {"b64"} or not isinstance(text, str):
        raise InvalidRequestError('An image given as an object must be {"b64": "..."} alone.')
    return unpack_base64(text, "A 'b64' field")
