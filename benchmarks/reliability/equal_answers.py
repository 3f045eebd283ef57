"""Sends the same requests to two services and compares what they answer, byte for byte."""

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.reliability.requests import photo
from benchmarks.reliability.wire import Address, Response, exchange, request
from benchmarks.serving.payloads import (
    Content,
    Floats,
    form,
    nested,
    open_inference,
    open_inference_binary,
    png,
)

_INFER, _INFER_MC = "/v2/models/digits/infer", "/v2/models/digits-mc/infer"
_KINDS: Sequence[tuple[str, Callable[[Floats], Content]]] = (
    ("/predict", nested),
    ("/predict", png),
    ("/predict", form),
    ("/uncertainty", nested),
    ("/uncertainty?samples={samples}&seed={seed}", png),
    (_INFER, open_inference),
    (_INFER, open_inference_binary),
    (_INFER_MC, lambda image: open_inference(image, samples=32)),
    ("/v1/models/digits:predict", nested),
    ("/predict?model=nothing", nested),
)
_EVERY_PHOTO = 50
_OF_THE_SERVER = (b"date:", b"server:", b"connection:")
_TIMEOUT_SECONDS = 60.0
_CONCURRENT = 8


def requests_of_every_kind(count: int) -> list[bytes]:
    """Write requests with images of their own: every route and format, and a wrong request."""
    numbers, generator = random.Random(3), np.random.default_rng(3)  # noqa: S311
    found = []
    for index in range(count):
        path, content_of = _KINDS[index % len(_KINDS)]
        image = (generator.integers(0, 256, (1, 8, 8)) / 255).astype(np.float32)
        content = content_of(image)
        path = path.format(samples=numbers.randint(1, 200), seed=numbers.randint(0, 9))
        headers = [f"{name}: {value}" for name, value in content.headers.items()]
        if index % _EVERY_PHOTO == 0:  # which a sandbox process decodes
            found.append(photo(f"X-Request-ID: equal-{index}"))
        else:
            headers.append(f"X-Request-ID: equal-{index}")
            found.append(request("POST", path, content.body, *headers))
    return found


def differences(one: Address, other: Address, messages: Sequence[bytes]) -> list[str]:
    """Return a line for each request that two services answer differently.

    Compared are the status, the headers but those of the server itself, and the body.
    """

    def difference(message: bytes) -> str | None:
        first, second = (exchange(each, message, timeout=_TIMEOUT_SECONDS) for each in (one, other))
        if first is not None and second is not None and _compared(first) == _compared(second):
            return None
        return f"{message.partition(b' HTTP')[0]!r}: {first} and {second}"

    with ThreadPoolExecutor(_CONCURRENT) as threads:
        return [each for each in threads.map(difference, messages) if each is not None]


def _compared(response: Response) -> tuple[int, list[bytes], bytes]:
    lines = [each.lower() for each in response.head.split(b"\r\n")[1:]]
    own = (b"date:", b"server:", b"connection:")
    return (
        response.status,
        sorted(line for line in lines if not line.startswith(own)),
        response.body,
    )
