"""A request's body -> the images in it. Knows no model beyond the input it declares.

By content type: JSON `{"instances": [...]}`, a form with `file` fields, or one image as it is.
"""

import asyncio
import base64
import binascii
import os
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from model.preprocessing import InputSpec, OpenImages, from_numbers, open_all, to_float
from service.bodies import BodyReader
from service.errors import (
    EmptyBodyError,
    InvalidBase64Error,
    InvalidJsonError,
    InvalidRequestError,
    TooManyImagesError,
    UnsupportedMediaTypeError,
)
from service.metrics import Metrics
from service.settings import ServiceSettings

IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp")
JSON_TYPE = "application/json"
FORM_TYPE = "multipart/form-data"

_OTHER_IMAGE_TYPES = ("image/jpg", "image/x-ms-bmp", "image/x-bmp")
_FORM_FIELD = "file"
_BRIEF_BYTES, _BRIEF_PIXELS = 2**14, 2**14
"""Of the images of a request that are decoded on the event loop."""
_PACKED_CHUNKS = (b"zTXt", b"iTXt", b"iCCP")
"""Parts of a PNG that are no picture and may unpack to a thousand times their size."""
_SCAN, _MOST_SCANS = b"\xff\xda", 12
"""A progressive JPEG goes over all its pixels in each scan, and has some ten."""

_INSTANCES = '{"instances": [IMAGE, ...]}'

Floats = NDArray[np.float32]


class ImageReader:
    """Reads images out of requests, within the configured limits."""

    def __init__(self, settings: ServiceSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._bodies = BodyReader(settings)
        self._decode_seconds = metrics.stage.labels("decode")
        # More threads would only take more memory.
        self._decoders = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode")

    async def read(self, request: Request, spec: InputSpec) -> Floats:
        """Return the request's images, float32 [N, C, H, W] in 0..1, N at least 1.

        Raises:
            ServiceError: about the body. InputError: about an image in it.
        """
        media_type = _media_type(request.headers)
        body = await self._bodies.read(request)
        if not body:
            raise EmptyBodyError("The request has no body; send an image.")
        if media_type == JSON_TYPE:
            return await self.from_instances(_instances(read_json(body)), spec)
        is_form = media_type == FORM_TYPE
        files = await self._form_files(request.headers, body) if is_form else [body]
        with self._decode_seconds.time():
            return await self.decode(files, spec)

    async def from_instances(self, instances: Sequence[Any], spec: InputSpec) -> Floats:
        """Read images given as `{"b64": ...}` or as nested numbers; raises as `read`."""
        if not instances:
            raise EmptyBodyError("'instances' is empty; send at least one image.")
        self.check_count(len(instances))
        files = [_from_base64(item) for item in instances if isinstance(item, dict)]
        with self._decode_seconds.time():
            decoded = iter(await self.decode(files, spec)) if files else iter(())
            return np.stack(
                [
                    next(decoded) if isinstance(item, dict) else from_numbers(item, spec)
                    for item in instances
                ]
            )

    async def _form_files(self, headers: Headers, body: bytes) -> Sequence[bytes]:
        async def chunks() -> AsyncGenerator[bytes, None]:
            yield body

        with closing(
            _InMemoryParser(headers, chunks(), max_files=self._settings.max_images)
        ) as parser:
            try:
                form = await parser.parse()
            except (MultiPartException, KeyError, ValueError) as error:
                reason = getattr(error, "message", "") or "no valid boundary"
                if "Too many files" in reason:
                    raise TooManyImagesError(self._too_many()) from None
                raise InvalidRequestError(
                    f"The form cannot be read ({reason.rstrip('.')}); "
                    "send it with curl -F file=@IMAGE."
                ) from None
            files = [await _form_file(name, value) for name, value in form.multi_items()]
        if not files:
            raise EmptyBodyError("The form has no 'file' field; send an image in one.")
        self.check_count(len(files))
        return files

    async def decode(self, files: Sequence[bytes], spec: InputSpec) -> Floats:
        """Decode image files to float32 [N, C, H, W]; raises InputError."""
        if _is_brief(files) and len(files) * spec.height * spec.width <= _BRIEF_PIXELS:
            opened = self._open(files)
            if opened.pixels <= _BRIEF_PIXELS:
                return to_float(opened.load(spec))
        loop = asyncio.get_running_loop()
        pixels = await loop.run_in_executor(self._decoders, lambda: self._open(files).load(spec))
        return to_float(pixels)

    def _open(self, files: Sequence[bytes]) -> OpenImages:
        settings = self._settings
        return open_all(files, settings.max_image_pixels, settings.max_request_pixels)

    def check_count(self, count: int) -> None:
        """Raise TooManyImagesError if a request has more images than it may."""
        if count > self._settings.max_images:
            raise TooManyImagesError(self._too_many())

    def _too_many(self) -> str:
        return f"One request takes at most {self._settings.max_images} images; send several."


class _InMemoryParser(MultiPartParser):
    """Never spools to disk: the whole body is in memory already, within its limit."""

    spool_max_size = 0  # 0 means no roll-over to a file
    _whole = False

    def on_end(self) -> None:
        """Note that the closing boundary came: without it the last files are silently lost."""
        self._whole = True

    async def parse(self) -> FormData:
        """Parse, and hold the form to its closing boundary."""
        form = await super().parse()
        if not self._whole:
            raise MultiPartException("its closing boundary is missing")
        return form

    def close(self) -> None:
        """Let every file go, also those of a form that was refused."""
        for file in self._files_to_close_on_error:
            file.close()


async def _form_file(name: str, value: UploadFile | str) -> bytes:
    if name == _FORM_FIELD and isinstance(value, UploadFile):
        return await value.read()
    what = "no file name" if name == _FORM_FIELD else f"the name {name!r}"
    raise InvalidRequestError(
        f"A field of the form has {what}; send image files in fields named 'file' alone."
    )


def _is_brief(files: Sequence[bytes]) -> bool:
    """Tell whether files are as small as they look, so that decoding holds up nobody."""
    return sum(map(len, files)) <= _BRIEF_BYTES and not any(
        file.count(_SCAN) > _MOST_SCANS or any(chunk in file for chunk in _PACKED_CHUNKS)
        for file in files
    )


def _media_type(headers: Headers) -> str:
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type in (JSON_TYPE, FORM_TYPE, *IMAGE_TYPES, *_OTHER_IMAGE_TYPES):
        return media_type
    given = f"Content-Type {media_type!r} is not taken" if media_type else "Content-Type is missing"
    raise UnsupportedMediaTypeError(
        f"{given}; send {JSON_TYPE}, {FORM_TYPE}, or an image as {', '.join(IMAGE_TYPES)}."
    )


def read_json(body: bytes) -> Any:
    """Parse a JSON body; raises InvalidJsonError."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidJsonError(
            f"The body is not JSON that can be read ({error}); "
            "NaN and Infinity are not JSON, and nesting is limited."
        ) from None


def _instances(content: Any) -> Sequence[Any]:
    if not isinstance(content, dict) or set(content) != {"instances"}:
        raise InvalidRequestError(f"The body is not of the form {_INSTANCES} and nothing else.")
    instances = content["instances"]
    if not isinstance(instances, list):
        raise InvalidRequestError(f"'instances' is not a list; send {_INSTANCES}.")
    return instances


def _from_base64(item: dict[str, Any]) -> bytes:
    text = item.get("b64")
    if set(item) != {"b64"} or not isinstance(text, str):
        raise InvalidRequestError('An image given as an object must be {"b64": "..."} alone.')
    return unpack_base64(text, "A 'b64' field")


def unpack_base64(text: str, what: str) -> bytes:
    """Decode base64; raises InvalidBase64Error, naming `what` it was."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        hint = "leave out the 'data:...;base64,' in front" if text[:5] == "data:" else "encode it"
        raise InvalidBase64Error(f"{what} is not base64; {hint} (RFC 4648).") from None
