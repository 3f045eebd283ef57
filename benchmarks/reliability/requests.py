"""Valid requests of well-behaved clients, to the model of the digits."""

import io
import random

import orjson
from PIL import Image

from benchmarks.reliability.wire import request

_JSON = "Content-Type: application/json"
_SIDE = 8
_PHOTO_SIDE = 300


def infer(*headers: str, samples: int | None = None, images: int = 1) -> bytes:
    """Write a request of the Open Inference Protocol; with `samples`, for the MC dropout model."""
    data = [0.5] * (images * _SIDE * _SIDE)
    shape = [images, 1, _SIDE, _SIDE]
    tensor = {"name": "images", "shape": shape, "datatype": "FP32", "data": data}
    body: dict[str, object] = {"inputs": [tensor]}
    if samples is not None:
        body["parameters"] = {"samples": samples}
    model = "digits" if samples is None else "digits-mc"
    return request("POST", f"/v2/models/{model}/infer", orjson.dumps(body), _JSON, *headers)


def predict(*headers: str) -> bytes:
    """Write a request to /predict with nested numbers."""
    image = [[0.5] * _SIDE] * _SIDE
    return request("POST", "/predict", orjson.dumps({"instances": [image]}), _JSON, *headers)


def photo(*headers: str) -> bytes:
    """Write a request to /predict with a PNG of 300 x 300 pixels."""
    pixels = random.Random(3).randbytes(3 * _PHOTO_SIDE**2 // 4) * 4  # noqa: S311
    file = io.BytesIO()
    Image.frombytes("RGB", (_PHOTO_SIDE, _PHOTO_SIDE), pixels).save(file, "PNG")
    return request("POST", "/predict", file.getvalue(), "Content-Type: image/png", *headers)


def mixed(*headers: str) -> list[bytes]:
    """Write one request of each kind."""
    return [predict(*headers), photo(*headers), infer(*headers, samples=64), infer(*headers)]
