"""A request's body -> the images in it. Knows no model beyond the input it declares.

What is small is read at once, on the event loop; everything else, with the same code, in a sandbox
process. By content type: JSON `{"instances": [...]}`, a form with `file` fields, or one image.
"""

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request

from model.images.image_files import picture
from model.images.preprocessing import InputSpec, to_float
from service.codecs.compression import IDENTITY
from service.codecs.image_bodies import (
    FORM_TYPE,
    JSON_TYPE,
    Images,
    Layout,
    media_type,
    read_items,
    to_images,
)
from service.codecs.limits import Limits
from service.codecs.tensors import MAX_JSON_BYTES, InferRequest, Payload, parse, parse_numbers
from service.errors import UnsupportedMediaTypeError
from service.http.body import Body, BodyReader, header
from service.observability.metrics import Metrics
from service.sandbox.messages import Task
from service.sandbox.pool import Sandbox
from service.settings import ServiceSettings

IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp")

_OTHER_IMAGE_TYPES = ("image/jpg", "image/x-ms-bmp", "image/x-bmp")
_BRIEF_BYTES, _BRIEF_PIXELS = 2**14, 2**14
"""Of the images of a request that are decoded on the event loop."""
_RIFF = b"RIFF"
_SCAN, _MOST_SCANS = b"\xff\xda", 12
"""A progressive JPEG goes over all its pixels in each scan, and has some ten."""
_BRIEF_NUMBERS_BYTES = 2**19
"""Of a JSON body that is one long list of numbers, and read in one go: a few milliseconds."""
_MANY_VALUES = 2**18
"""More are converted beside the event loop."""

Floats = NDArray[np.float32]


class ImageReader:
    """Reads images out of requests, within the configured limits."""

    def __init__(self, settings: ServiceSettings, metrics: Metrics) -> None:
        self.limits = Limits(
            images=settings.max_images,
            image_pixels=settings.max_image_pixels,
            request_pixels=settings.max_request_pixels,
            body_bytes=settings.max_body_bytes,
        )
        self._bodies = BodyReader(settings)
        self._sandbox = Sandbox(settings)
        self._decode_seconds = metrics.stage.labels("decode")

    def start_soon(self) -> None:
        """Get ready for large bodies; call it in the event loop that will read them."""
        self._sandbox.start_soon()

    async def close(self) -> None:
        """End whatever is being read."""
        await self._sandbox.close()

    async def read(self, request: Request, spec: InputSpec) -> Floats:
        """Return the request's images, float32 [N, C, H, W] in 0..1, N at least 1.

        Raises:
            ServiceError: about the body. InputError: about an image in it.
        """
        return await self._read(request, spec, _content_type(request), "native")

    async def read_rows(self, request: Request, spec: InputSpec) -> Floats:
        """Do the same with JSON in TensorFlow Serving's row form, whatever its content type."""
        return await self._read(request, spec, JSON_TYPE, "rows")

    async def decode(self, files: Sequence[bytes], spec: InputSpec, client: str) -> Floats:
        """Decode image files to float32 [N, C, H, W]; raises InputError."""
        images = self._at_once(files, spec)
        if images is not None:
            return images
        task = self._sandbox.task("files", spec, self.limits, lengths=tuple(map(len, files)))
        return await self._in_sandbox(task, b"".join(files), spec, client)

    def parse_at_once(
        self, body: Body, json_length: int | None
    ) -> tuple[InferRequest, Payload] | None:
        """Parse a request of the Open Inference Protocol; None: that may take long.

        json_length: bytes of its JSON; None: all of it.
        """
        if body.is_small:
            return parse(body.data, json_length)
        if body.encoding != IDENTITY:
            return None
        if json_length is not None and json_length != len(body.data):
            return parse(body.data, json_length) if json_length <= MAX_JSON_BYTES else None
        return parse_numbers(body.data) if len(body.data) <= _BRIEF_NUMBERS_BYTES else None

    async def condense(
        self, body: Body, json_length: int | None, spec: InputSpec, client: str
    ) -> tuple[bytes, int]:
        """Turn such a request into one that asks the same, its images as one binary tensor.

        Returns:
            the body, and the length of its JSON.
        """
        task = self._sandbox.task(
            "infer", spec, self.limits, encoding=body.encoding, json_length=json_length
        )
        largest = _largest(self.limits, spec) + self.limits.body_bytes + MAX_JSON_BYTES
        content, data = await self._sandbox.run(task, body.data, client, largest)
        return data.tobytes(), content["json_length"]

    async def _read(
        self, request: Request, spec: InputSpec, content_type: str, layout: Layout
    ) -> Floats:
        body = await self._bodies.read(request)
        items = None
        if body.is_small:
            items = read_items(body.data, content_type, layout, self.limits)
        with self._decode_seconds.time():
            images = None if items is None else self._at_once(items, spec)
            if images is not None:
                return images
            task = self._sandbox.task(
                "images",
                spec,
                self.limits,
                encoding=body.encoding,
                content_type=content_type,
                layout=layout,
            )
            return await self._in_sandbox(task, body.data, spec, client_of(request))

    def _at_once(self, items: Sequence[Any], spec: InputSpec) -> Floats | None:
        """Decode what is small, and says so in its headers; None: it may take long."""
        files = [item for item in items if type(item) is bytes]
        if files and not (
            len(files) * spec.height * spec.width <= _BRIEF_PIXELS and _is_brief(files)
        ):
            return None
        try:
            images = to_images(items, spec, self.limits, _refuse_work)
        except _TakesLongError:
            return None
        return to_float(images)

    async def _in_sandbox(self, task: Task, body: bytes, spec: InputSpec, client: str) -> Floats:
        content, data = await self._sandbox.run(task, body, client, _largest(self.limits, spec))
        return await as_floats(data.view(content["dtype"]).reshape(content["shape"]))


async def as_floats(images: Images) -> Floats:
    """Turn images as they were decoded into float32 0..1; those that are, are left as they are."""
    if images.itemsize > 1 or images.size <= _MANY_VALUES:
        return to_float(images)
    return await asyncio.to_thread(to_float, images)


def client_of(request: Request) -> str:
    """Return the address that a request comes from."""
    client = request.scope.get("client")
    return client[0] if client else ""


class _TakesLongError(Exception):
    """The images are larger than their files look."""


def _refuse_work(_bytes: int, pixels: int) -> None:
    if pixels > _BRIEF_PIXELS:
        raise _TakesLongError


def _is_brief(files: Sequence[bytes]) -> bool:
    """Tell whether files are as small as they look, so that decoding holds up nobody."""
    return sum(map(len, files)) <= _BRIEF_BYTES and not any(
        file.count(_SCAN) > _MOST_SCANS or _makes_room(file) for file in files
    )


def _makes_room(file: bytes) -> bool:
    """Tell whether a decoder would take much memory as soon as it is given a file."""
    size = picture(file).size if file.startswith(_RIFF) else None
    return size is not None and math.prod(size) > _BRIEF_PIXELS


def _largest(limits: Limits, spec: InputSpec) -> int:
    """Bytes of as many images as a request may have, as float32."""
    return 4 * limits.images * spec.channels * spec.height * spec.width


def _content_type(request: Request) -> str:
    content_type = header(request.scope, b"content-type") or ""
    if "," in content_type:  # of several lines the first counts
        content_type = request.headers["content-type"]
    kind = media_type(content_type)
    if kind in (JSON_TYPE, FORM_TYPE, *IMAGE_TYPES, *_OTHER_IMAGE_TYPES):
        return content_type
    given = f"Content-Type {kind!r} is not taken" if kind else "Content-Type is missing"
    raise UnsupportedMediaTypeError(
        f"{given}; send {JSON_TYPE}, {FORM_TYPE}, or an image as {', '.join(IMAGE_TYPES)}."
    )
