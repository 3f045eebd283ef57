"""Extracts and decodes the images in a request body.

The code is synchronous. It runs inline for small bodies and in a sandbox process for all others,
so it imports no web framework. Knows no request and no model beyond the input that it declares.
"""

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray

from model.errors import DropserveError, InputError
from model.images.images_from_numbers import from_numbers, from_tensor, require_nchw
from model.images.preprocessing import InputSpec, open_all, to_float
from service.codecs.image_limits import Limits
from service.codecs.infer_requests import InferRequest
from service.codecs.multipart_forms import read_form_files
from service.codecs.tensors import Tensor
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
INPUT_NAME = "images"
"""Name of the only input tensor of a model."""

T = TypeVar("T")

JsonLayout = Literal["native", "rows"]
"""Format of a JSON body: `native` for /predict and /uncertainty, `rows` for TensorFlow Serving."""

Item = Any
"""One image of a body: the bytes of a file, or nested lists of numbers."""


class Items(NamedTuple):
    """The images of a body, not decoded yet."""

    images: Sequence[Item]
    file_names: Sequence[str] = ()
    """Of the files of a form, as their client writes them; "" for one without a name."""


Images = NDArray[np.uint8] | NDArray[np.float32]
"""[N, C, H, W]: uint8 in 0..255 as decoded, or float32 in 0..1."""
ReserveMemory = Callable[[int, int], None]
"""Takes the bytes of memory and the pixels that the next step needs; returns, perhaps after a
wait, when the step may run, and raises if it may not."""

_INSTANCES_FORM = '{"instances": [IMAGE, ...]}'
_SIGNATURE = "serving_default"
_ROWS_FIELDS = {"instances", "signature_name"}
MEMORY_BYTES_PER_JSON_BYTE = 24
"""Upper bound of parsed JSON in memory: `[],` becomes a list of 56 bytes and a pointer to it."""
_URL_ALPHABET = {ord("-"): "+", ord("_"): "/"}
_EXTRA_JSON_VALUES = 2**16
"""Values that a JSON body may have besides the pixels."""
_MAX_NAME_CHARACTERS = 100
"""An error message quotes at most this many characters of a file's name."""


def read_items(body: bytes, content_type: str, layout: JsonLayout, limits: Limits) -> Items:
    """Extract the images of a body without decoding them: between 1 and `limits.images` of them.

    content_type: the unparsed value of the header.

    Raises:
        EmptyBodyError, InvalidJsonError, InvalidRequestError, InvalidBase64Error,
        TooManyImagesError.
    """
    if not body and layout == "native":
        raise EmptyBodyError("The request has no body; send an image.")
    kind = media_type(content_type)
    if kind == FORM_TYPE:
        files = read_form_files(body, content_type, limits)
        return Items([file.content for file in files], [file.name for file in files])
    if kind != JSON_TYPE:
        return Items([body])
    content = read_json(body)
    instances = _native_instances(content) if layout == "native" else _row_instances(content)
    if not instances:
        raise EmptyBodyError("'instances' is empty; send at least one image.")
    limits.check_count(len(instances))
    return Items(
        _each(instances, lambda item: _from_base64(item) if isinstance(item, dict) else item)
    )


def to_images(items: Items, spec: InputSpec, limits: Limits, reserve: ReserveMemory) -> Images:
    """Decode the files and validate the numbers of `items`, in order; raises InputError."""
    places = [place for place, item in enumerate(items.images) if type(item) is bytes]
    if not places:
        images = _each(items.images, lambda item: from_numbers(item, spec))
        return np.stack(images) if len(images) > 1 else images[0][np.newaxis]
    try:
        pixels = _decode_files([items.images[place] for place in places], spec, limits, reserve)
    except InputError as error:
        place = None if error.image is None else places[error.image]
        raise _about_image(error, place, len(items.images), items.file_names) from None
    if len(places) == len(items.images):
        return pixels
    decoded = iter(to_float(pixels))
    return np.stack(
        _each(
            items.images,
            lambda item: next(decoded) if type(item) is bytes else from_numbers(item, spec),
        )
    )


def _decode_files(
    files: Sequence[bytes], spec: InputSpec, limits: Limits, reserve: ReserveMemory
) -> NDArray[np.uint8]:
    """Decode image files to uint8 [N, C, H, W]; raises InputError."""
    opened = open_all(files, limits.image_pixels, limits.request_pixels)
    reserve(opened.peak_bytes(spec), opened.pixels)
    return opened.load(spec)


def _each(images: Sequence[Item], step: Callable[[Item], T]) -> list[T]:
    """Return what `step` makes of each image; its error says which of several it is about."""
    made = []
    for number, image in enumerate(images):
        try:
            made.append(step(image))
        except DropserveError as error:
            raise _about_image(error, number, len(images)) from None
    return made


def _about_image(
    error: DropserveError, number: int | None, count: int, file_names: Sequence[str] = ()
) -> DropserveError:
    """Return an error that names the image that it is about, if it is one of several.

    number: from 0; None: it is about all of them.
    """
    if number is None or count == 1:
        return error
    name = file_names[number][:_MAX_NAME_CHARACTERS] if file_names else ""
    called = f" ({name!r})" if name else ""
    return type(error)(f"Image {number}{called}, counted from 0: {error}")


def upright_size(item: Item, limits: Limits) -> tuple[int, int] | None:
    """Return the width and height of a file, turned upright; None for numbers; raises InputError.

    Reads the header alone.
    """
    if type(item) is not bytes:
        return None
    return open_all([item], limits.image_pixels).images[0].upright_size


def check_json_size(
    body: bytes, content_type: str, spec: InputSpec, limits: Limits, reserve: ReserveMemory
) -> None:
    """Refuse JSON of far more values than a request can have, and reserve memory to parse it.

    Commas and brackets are counted, since parsing is what takes the memory. A body of another
    content type passes.

    Raises:
        TooManyImagesError: the JSON has more than twice the values of `limits.images` images.
    """
    if media_type(content_type) != JSON_TYPE:
        return
    image_values = spec.height * spec.width * (spec.channels + 2)  # each pixel may be a list
    max_values = 2 * limits.images * image_values + _EXTRA_JSON_VALUES
    if body.count(b",") + body.count(b"[") > max_values:
        raise TooManyImagesError(
            f"The JSON holds far more values than the {limits.images} images that one request "
            f"may have, of {spec.channels} x {spec.height} x {spec.width} numbers each; send "
            "fewer or smaller images."
        )
    reserve(MEMORY_BYTES_PER_JSON_BYTE * len(body), 0)


def images_from_tensors(tensors: Sequence[Tensor], spec: InputSpec) -> Images | list[bytes]:
    """Extract the images from the input tensors of a request.

    Returns:
        an array [N, C, H, W] for FP32 and UINT8, or the encoded files for BYTES.

    Raises:
        InvalidTensorError: the request has an input other than `images`, or of another rank.
        InputError, InvalidBase64Error: an image cannot be used.
    """
    if len(tensors) != 1 or tensors[0].name != INPUT_NAME:
        names = ", ".join(repr(tensor.name) for tensor in tensors)
        raise InvalidTensorError(f"The one input is {INPUT_NAME!r}, but the request has {names}.")
    tensor = tensors[0]
    values = tensor.values
    if tensor.datatype == "FP32":
        try:
            return from_tensor(values, spec)
        except InputError as error:
            count = len(values) if values.ndim else 1
            raise _about_image(error, error.image, count) from None
    if tensor.datatype == "UINT8":
        require_nchw(values.shape, spec)
        return values
    count = values.size
    if not count or values.shape not in ((count,), (count, 1)):
        raise encoded_shape_error(values.shape)
    return _each(
        values.reshape(-1).tolist(),
        lambda element: (
            decode_base64(element, f"An element of {INPUT_NAME!r}")
            if isinstance(element, str)
            else element
        ),
    )


def check_input_shapes(request: InferRequest, limits: Limits) -> None:
    """Check the declared shapes of the inputs against the limits, before their values are parsed.

    Raises:
        TooManyImagesError: the first dimension exceeds the limit.
        InvalidTensorError: a BYTES input has more elements than images are allowed.
    """
    for each in request.inputs:
        if each.shape and each.shape[0] > limits.images:
            limits.check_count(each.shape[0])
        if each.datatype == "BYTES" and math.prod(each.shape) > limits.images:
            raise encoded_shape_error(each.shape)


def check_raw_length(length: int, spec: InputSpec) -> None:
    """Check the length of a raw request, whose body is one FP32 image and nothing else.

    Raises:
        InvalidTensorError: the body has another number of bytes.
    """
    expected = 4 * spec.channels * spec.height * spec.width
    if length != expected:
        raise InvalidTensorError(
            f"A raw request is one FP32 image of {expected} bytes, but this body has {length}; "
            "describe any other input in JSON."
        )


def encoded_shape_error(shape: Sequence[int]) -> InvalidTensorError:
    """Build the error of encoded images whose shape is neither [N] nor [N, 1]."""
    return InvalidTensorError(
        f"Encoded images are of shape [N] or [N, 1], but {INPUT_NAME!r} has {list(shape)}."
    )


def media_type(content_type: str) -> str:
    """Return a Content-Type without its parameters, in lower case."""
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


def decode_base64(text: str, what: str) -> bytes:
    """Decode base64 as clients write it; raises InvalidBase64Error, which begins with `what`.

    Accepted besides the plain form (RFC 4648, 4): the alphabet for URLs (5), missing padding, line
    breaks and blanks (RFC 2045, 6.8), and a data URL (RFC 2397) around it.
    """
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        pass
    if text[:5].lower() == "data:":
        kind, comma, text = text.partition(",")
        if not comma or kind[-7:].lower() != ";base64":
            raise InvalidBase64Error(
                f"{what} is a data URL without base64; send 'data:image/png;base64,...' or the "
                "base64 alone."
            )
    text = "".join(text.translate(_URL_ALPHABET).split()).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise InvalidBase64Error(f"{what} is not base64; encode it (RFC 4648).") from None


def _native_instances(content: Any) -> Sequence[Any]:
    if not isinstance(content, dict) or set(content) != {"instances"}:
        raise InvalidRequestError(
            f"The body is not of the form {_INSTANCES_FORM} and nothing else."
        )
    return _require_list(content["instances"])


def _row_instances(content: Any) -> Sequence[Any]:
    """Return the images of TensorFlow Serving's row form; each may be `{"images": IMAGE}`."""
    if not isinstance(content, dict) or not {"instances"} <= set(content) <= _ROWS_FIELDS:
        raise InvalidRequestError(
            f"The body is not of the form {_INSTANCES_FORM}, with or without "
            f'"signature_name": "{_SIGNATURE}".'
        )
    if content.get("signature_name", _SIGNATURE) != _SIGNATURE:
        raise InvalidRequestError(f"The one signature here is {_SIGNATURE!r}; leave it out.")
    return [
        each[INPUT_NAME] if isinstance(each, Mapping) and set(each) == {INPUT_NAME} else each
        for each in _require_list(content["instances"])
    ]


def _require_list(instances: Any) -> list[Any]:
    if not isinstance(instances, list):
        raise InvalidRequestError(f"'instances' is not a list; send {_INSTANCES_FORM}.")
    return instances


def _from_base64(item: dict[str, Any]) -> bytes:
    text = item.get("b64")
    if set(item) != {"b64"} or not isinstance(text, str):
        raise InvalidRequestError('An image given as an object must be {"b64": "..."} alone.')
    return decode_base64(text, "A 'b64' field")
