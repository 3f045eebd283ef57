"""Reads the images of a request. Knows no model beyond the input that it declares.

Small bodies are decoded inline, on the event loop; all others, with the same code, in a sandbox
process. The content type selects JSON `{"instances": [...]}`, a form with `file` fields, or one
image file.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request

from model.images.file_formats import needs_isolation
from model.images.metadata_stripping import strip_metadata
from model.images.preprocessing import InputSpec, to_float
from service.codecs.body_to_images import (
    FORM_TYPE,
    JSON_TYPE,
    Images,
    Items,
    JsonLayout,
    media_type,
    read_items,
    to_images,
)
from service.codecs.compression import IDENTITY
from service.codecs.image_limits import Limits
from service.codecs.infer_requests import (
    MAX_JSON_BYTES,
    InferRequest,
    Payload,
    parse_numeric_request,
    parse_request,
)
from service.errors import UnsupportedMediaTypeError
from service.http.client_rate_limits import charge_images
from service.http.request_body import Body, BodyReader, header
from service.http.request_head_checks import INSPECTED, InspectedHead
from service.observability.metrics_recorder import Metrics
from service.sandbox.child_process_messages import Task
from service.sandbox.process_pool import SandboxPool
from service.settings import ServiceSettings
from service.tracing.request_trace import mark_decoded

IMAGE_TYPES = (
    "image/png",
    "image/jpeg",
    "image/webp",
    "image/gif",
    "image/bmp",
    "image/tiff",
    "image/avif",
    "image/heic",
    "image/heif",
)

_OTHER_IMAGE_TYPES = ("image/jpg", "image/pjpeg", "image/x-ms-bmp", "image/x-bmp")
_MAX_INLINE_BYTES, _MAX_INLINE_PIXELS = 2**14, 2**14
"""Limits of the image files of a request that are decoded inline, together."""
_RIFF = b"RIFF"
_START_OF_SCAN, _MAX_INLINE_SCANS = b"\xff\xda", 12
"""A progressive JPEG, which usually has about ten scans, is decoded anew in each of them."""
_MAX_INLINE_NUMBERS_BYTES = 2**19
"""A JSON list of numbers of this length is parsed in a few milliseconds."""
_MAX_INLINE_VALUES = 2**18
"""More pixel values than this are converted to float32 in a thread."""

Floats = NDArray[np.float32]


class ImageReader:
    """Reads and decodes the images of requests, within the configured limits."""

    def __init__(self, settings: ServiceSettings, metrics: Metrics) -> None:
        self.limits = Limits(
            images=settings.max_images,
            image_pixels=settings.max_image_pixels,
            request_pixels=settings.max_request_pixels,
            body_bytes=settings.max_body_bytes,
        )
        self._bodies = BodyReader(settings)
        self._sandbox = SandboxPool(settings)
        self._decode_seconds = metrics.stage.labels("decode")

    def start_soon(self) -> None:
        """Schedule the start of a sandbox process; call it in the event loop that reads bodies."""
        self._sandbox.start_soon()

    async def close(self) -> None:
        """Kill the sandbox processes, and fail the requests that wait for them."""
        await self._sandbox.close()

    async def read(self, request: Request, spec: InputSpec) -> Floats:
        """Return the images of a request, float32 [N, C, H, W] in 0..1, N at least 1.

        Raises:
            ServiceError: the body is invalid. InputError: an image in it is invalid.
        """
        return await self._read(request, spec, _content_type(request), "native")

    async def read_rows(self, request: Request, spec: InputSpec) -> Floats:
        """Read JSON in TensorFlow Serving's row form like `read`, and ignore the content type."""
        return await self._read(request, spec, JSON_TYPE, "rows")

    async def read_one(
        self, request: Request, spec: InputSpec
    ) -> tuple[Floats, tuple[int, int] | None]:
        """Read a body like `read` that has a single image, always in a sandbox process.

        Returns:
            the image, float32 [1, C, H, W], and the width and height of its file, turned upright;
            None for numbers.

        Raises:
            TooManyImagesError: there are several images.
        """
        content_type = _content_type(request)
        body = await self._bodies.read(request)
        task = self._sandbox.task(
            "image",
            spec,
            replace(self.limits, images=1),
            encoding=body.encoding,
            content_type=content_type,
        )
        with self._decode_seconds.time():
            content, data = await self._sandbox.run(
                task, body.data, client_address(request), _max_result_bytes(task.limits, spec)
            )
        image = to_float(data.view(content["dtype"]).reshape(content["shape"]))
        mark_decoded(len(image))
        return image, content["size"] and tuple(content["size"])

    async def decode(self, files: Sequence[bytes], spec: InputSpec, client: str) -> Floats:
        """Decode image files to float32 [N, C, H, W]; raises InputError."""
        images = self._decode_inline(Items(files), spec)
        if images is not None:
            return images
        task = self._sandbox.task("files", spec, self.limits, lengths=tuple(map(len, files)))
        return await self._in_sandbox(task, b"".join(files), spec, client)

    def parse_inline(
        self, body: Body, json_length: int | None
    ) -> tuple[InferRequest, Payload] | None:
        """Parse an Open Inference request inline; None if that could take long.

        json_length: bytes of its JSON; None if the whole body is JSON.
        """
        if body.is_small:
            return parse_request(body.data, json_length)
        if body.encoding != IDENTITY:
            return None
        if json_length is not None and json_length != len(body.data):
            if json_length > MAX_JSON_BYTES:
                return None
            parsed = parse_request(body.data, json_length)
            return None if parsed[0].has_base64_in_binary else parsed
        return (
            parse_numeric_request(body.data)
            if len(body.data) <= _MAX_INLINE_NUMBERS_BYTES
            else None
        )

    async def rewrite_as_binary(
        self, body: Body, json_length: int | None, spec: InputSpec, client: str
    ) -> tuple[bytes, int]:
        """Rewrite an Open Inference request, in a sandbox process, with its images in binary.

        Returns:
            the body of the equivalent request, which is fast to parse, and the length of its JSON.
        """
        task = self._sandbox.task(
            "infer", spec, self.limits, encoding=body.encoding, json_length=json_length
        )
        largest = _max_result_bytes(self.limits, spec) + self.limits.body_bytes + MAX_JSON_BYTES
        content, data = await self._sandbox.run(task, body.data, client, largest)
        return data.tobytes(), content["json_length"]

    async def _read(
        self, request: Request, spec: InputSpec, content_type: str, layout: JsonLayout
    ) -> Floats:
        body = await self._bodies.read(request)
        items = None
        if body.is_small:
            items = read_items(body.data, content_type, layout, self.limits)
            charge_images(request.scope, len(items.images))
        with self._decode_seconds.time():
            images = None if items is None else self._decode_inline(items, spec)
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
            decoded = await self._in_sandbox(task, body.data, spec, client_address(request))
        if items is None:  # only now is their number known
            charge_images(request.scope, len(decoded))
        return decoded

    def _decode_inline(self, items: Items, spec: InputSpec) -> Floats | None:
        """Decode small images; None if their files or their headers show that it may take long."""
        files = [item for item in items.images if type(item) is bytes]
        if files and not (
            len(files) * spec.height * spec.width <= _MAX_INLINE_PIXELS
            and _is_fast_to_decode(files)
        ):
            return None
        try:
            images = to_images(items, spec, self.limits, _refuse_many_pixels)
        except _NotInlineError:
            return None
        return to_float(images)

    async def _in_sandbox(self, task: Task, body: bytes, spec: InputSpec, client: str) -> Floats:
        content, data = await self._sandbox.run(
            task, body, client, _max_result_bytes(self.limits, spec)
        )
        return await as_floats(data.view(content["dtype"]).reshape(content["shape"]))


async def as_floats(images: Images) -> Floats:
    """Convert uint8 images to float32 in 0..1, many of them in a thread; keep float32 images."""
    if images.itemsize > 1 or images.size <= _MAX_INLINE_VALUES:
        return to_float(images)
    return await asyncio.to_thread(to_float, images)


def client_address(request: Request) -> str:
    """Return the address or network of a request's client, or "" if it is unknown."""
    head: InspectedHead | None = request.scope.get(INSPECTED)
    return "" if head is None else head.network


class _NotInlineError(Exception):
    """The images have too many pixels to be decoded inline."""


def _refuse_many_pixels(_bytes: int, pixels: int) -> None:
    if pixels > _MAX_INLINE_PIXELS:
        raise _NotInlineError


def _is_fast_to_decode(files: Sequence[bytes]) -> bool:
    """True if decoding these files takes no more time than their size suggests."""
    return sum(map(len, files)) <= _MAX_INLINE_BYTES and not any(
        file.count(_START_OF_SCAN) > _MAX_INLINE_SCANS
        or needs_isolation(file)
        or _allocates_much(file)
        for file in files
    )


def _allocates_much(file: bytes) -> bool:
    """True for a WebP file whose decoder would allocate much memory when it is opened."""
    size = strip_metadata(file).size if file.startswith(_RIFF) else None
    return size is not None and math.prod(size) > _MAX_INLINE_PIXELS


def _max_result_bytes(limits: Limits, spec: InputSpec) -> int:
    """Bytes of the largest result: as many float32 images as a request may have."""
    return 4 * limits.images * spec.channels * spec.height * spec.width


def _content_type(request: Request) -> str:
    content_type = header(request.scope, b"content-type") or ""
    if "," in content_type:  # if the header is repeated, the first one counts
        content_type = request.headers["content-type"]
    kind = media_type(content_type)
    if kind in (JSON_TYPE, FORM_TYPE, *IMAGE_TYPES, *_OTHER_IMAGE_TYPES):
        return content_type
    reason = f"Content-Type {kind!r} is not taken" if kind else "Content-Type is missing"
    raise UnsupportedMediaTypeError(
        f"{reason}; send {JSON_TYPE}, {FORM_TYPE}, or an image as {', '.join(IMAGE_TYPES)}."
    )
