"""Encodes an image as the request bodies that servers accept; decodes their responses.

Knows no server: `benchmarks.serving.peers` lists which of these a server accepts at which path.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]
"""An image as float32 [C, H, W], every value a whole number / 255, so that a PNG can hold it."""

JSON = "application/json"
_BOUNDARY = "a-part-of-the-benchmark"
_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Content:
    """A request's headers and body."""

    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Response:
    """A response's headers, their names in lower case, and its body."""

    headers: Mapping[str, str]
    body: bytes


def flat(image: Floats) -> Content:
    """Write {"image": [numbers]}, for a hand-written endpoint, which knows the shape."""
    return _json({"image": _numbers(image)})


def nested(image: Floats) -> Content:
    """Write {"instances": [numbers [H, W] or [H, W, C]]}, for our own routes."""
    rows = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
    return _json({"instances": [np.ascontiguousarray(rows)]})


def batch(image: Floats) -> Content:
    """Write {"images": numbers [1, C, H, W]}, for an endpoint with an array as a parameter."""
    return _json({"images": image[None]})


def open_inference(image: Floats, samples: int | None = None) -> Content:
    """Write the Open Inference Protocol's JSON; with `samples`, for our MC dropout model."""
    output = "probabilities" if samples is None else "mean_probabilities"
    parameters = {} if samples is None else {"parameters": {"samples": samples}}
    tensor = {**_tensor(image), "data": _numbers(image)}
    return _json({"inputs": [tensor], "outputs": [{"name": output}], **parameters})


def open_inference_binary(image: Floats) -> Content:
    """Write the protocol with a binary tensor after the JSON, and request a binary output."""
    raw = image.tobytes()
    head = orjson.dumps(
        {
            "inputs": [{**_tensor(image), "parameters": {"binary_data_size": len(raw)}}],
            "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
        }
    )
    headers = {"Content-Type": "application/octet-stream", _LENGTH: str(len(head))}
    return Content(headers, head + raw)


def png(image: Floats) -> Content:
    """Write the encoded file as the body."""
    return Content({"Content-Type": "image/png"}, _encoded(image))


def jpeg(image: Floats) -> Content:
    """Write a photograph of one megapixel, in the colours of the image, as the body."""
    return Content({"Content-Type": "image/jpeg"}, photograph(len(image)))


def jpeg_form(image: Floats, field: str = "file") -> Content:
    """Write the photograph as the one field of a form."""
    return _form(photograph(len(image)), field, "jpeg")


def form(image: Floats, field: str = "file") -> Content:
    """Write the encoded file as the one field of a form."""
    return _form(_encoded(image), field, "png")


@cache
def photograph(channels: int) -> bytes:
    """Encode filtered noise of several scales, 1152 x 864, as a JPEG of a camera's quality."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(0, 6, (864, 1152, 3))
    for cells in (4, 16, 64, 256):
        noise = rng.integers(0, 256, (cells * 3 // 4, cells, 3)).astype(np.uint8)
        pixels += np.asarray(Image.fromarray(noise).resize((1152, 864)), np.float64) / 4
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    file = io.BytesIO()
    image.convert("L" if channels == 1 else "RGB").save(file, "JPEG", quality=90)
    return file.getvalue()


def _form(content: bytes, field: str, kind: str) -> Content:
    head = (
        f"--{_BOUNDARY}\r\n"
        f'Content-Disposition: form-data; name="{field}"; filename="image.{kind}"\r\n'
        f"Content-Type: image/{kind}\r\n\r\n"
    )
    body = head.encode() + content + f"\r\n--{_BOUNDARY}--\r\n".encode()
    return Content({"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}, body)


def parse_list(response: Response) -> list[float]:
    """Parse {"probabilities": [numbers]}."""
    return list(orjson.loads(response.body)["probabilities"])


def parse_rows(response: Response) -> list[float]:
    """Parse [[numbers]]."""
    return list(orjson.loads(response.body)[0])


def parse_predictions(response: Response) -> list[float]:
    """Parse a response of our own routes."""
    return list(orjson.loads(response.body)["predictions"][0]["probabilities"].values())


def parse_open_inference(response: Response) -> list[float]:
    """Parse the first output of the protocol's JSON."""
    return list(orjson.loads(response.body)["outputs"][0]["data"])


def parse_open_inference_binary(response: Response) -> list[float]:
    """Parse the binary tensor after the protocol's JSON."""
    head = int(response.headers[_LENGTH.lower()])
    return list(np.frombuffer(response.body[head:], np.float32).astype(float))


def _json(content: dict[str, Any]) -> Content:
    return Content({"Content-Type": JSON}, orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY))


def _tensor(image: Floats) -> dict[str, Any]:
    return {"name": "images", "shape": [1, *image.shape], "datatype": "FP32"}


def _numbers(image: Floats) -> Floats:
    return image.ravel()


def _encoded(image: Floats) -> bytes:
    pixels = np.round(255 * image).astype(np.uint8)
    encoded = Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1))
    file = io.BytesIO()
    encoded.save(file, "PNG")
    return file.getvalue()
