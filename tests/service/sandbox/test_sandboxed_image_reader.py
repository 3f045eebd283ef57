"""The image reader, without an application around it."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.types import Message

from model.errors import ImageShapeError
from model.images.preprocessing import InputSpec, decode, to_float
from service.codecs.body_to_images import FORM_TYPE, JSON_TYPE
from service.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    InvalidRequestError,
    TooManyImagesError,
)
from service.observability.metrics_recorder import Metrics
from service.sandbox.sandboxed_image_reader import ImageReader, _is_fast_to_decode
from service.settings import ServiceSettings
from tests.pictures import Pixels, encode, form, instances, numbers
from tests.service.serving import metric

GREY = InputSpec(channels=1, height=6, width=4, resize="pad")
COLOUR = InputSpec(channels=3, height=6, width=4, resize="crop")

Floats = NDArray[np.float32]


def pixels(seed: int, spec: InputSpec) -> Pixels:
    shape = (spec.height, spec.width, spec.channels)[: 3 if spec.channels == 3 else 2]
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def request(messages: Sequence[Message], content_type: str, **headers: str) -> Request:
    """Build a request whose body arrives as these messages, without an end of its own."""
    waiting = list(messages)

    async def receive() -> Message:
        if not waiting:
            await asyncio.Event().wait()
        return waiting.pop(0)

    all_headers = {"content-type": content_type} | headers
    raw = [(name.encode(), value.encode()) for name, value in all_headers.items()]
    return Request({"type": "http", "method": "POST", "headers": raw}, receive)


def chunk(body: bytes, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def read(
    http_request: Request, spec: InputSpec, metrics: Metrics | None = None, **limits: Any
) -> Floats:
    async def reading() -> Floats:
        reader = ImageReader(ServiceSettings(**limits), metrics or Metrics())
        try:
            return await reader.read(http_request, spec)
        finally:
            await reader.close()

    return asyncio.run(reading())


def read_body(body: bytes, content_type: str, spec: InputSpec, **limits: Any) -> Floats:
    return read(request([chunk(body)], content_type), spec, **limits)


def expected(images: Sequence[Pixels], spec: InputSpec) -> Floats:
    """Return images of the right size as float32 [N, C, H, W]."""
    shaped = [image.reshape(spec.height, spec.width, spec.channels) for image in images]
    return to_float(np.stack(shaped).transpose(0, 3, 1, 2))


@pytest.mark.parametrize("spec", [GREY, COLOUR], ids=["grey", "colour"])
def test_read_keeps_the_order_of_numbers_and_files_in_json(spec: InputSpec) -> None:
    images = [pixels(seed, spec) for seed in range(5)]
    mixed = [encode(each) if row % 2 else numbers(each) for row, each in enumerate(images)]
    images_read = read_body(instances(mixed), JSON_TYPE, spec)
    assert images_read.dtype == np.float32
    np.testing.assert_array_equal(images_read, expected(images, spec))


@pytest.mark.parametrize("spec", [GREY, COLOUR], ids=["grey", "colour"])
def test_read_keeps_the_order_of_files_in_a_form(spec: InputSpec) -> None:
    images = [pixels(seed, spec) for seed in range(5)]
    sent = httpx.Request("POST", "http://service", files=form(*map(encode, images)))
    images_read = read_body(sent.read(), sent.headers["Content-Type"], spec)
    np.testing.assert_array_equal(images_read, expected(images, spec))


def test_read_refuses_grey_numbers_for_a_colour_model() -> None:
    grey = numbers(pixels(0, GREY))
    with pytest.raises(
        ImageShapeError, match=r"^The image is 6 x 4, but this model takes \[6\]\[4\]\[3"
    ):
        read_body(instances([grey]), JSON_TYPE, COLOUR)


@pytest.mark.parametrize("spec", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("shape", [(60, 40, 3), (20, 7), (6, 9, 3)])
def test_read_resizes_and_converts_a_file_as_the_spec_declares(
    spec: InputSpec, shape: tuple[int, ...]
) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    images_read = read_body(encode(image), "image/png", spec)
    np.testing.assert_array_equal(images_read, to_float(decode(encode(image), spec))[np.newaxis])


def test_read_accepts_a_body_in_chunks() -> None:
    image = pixels(0, GREY)
    data = encode(image)
    messages = [
        *(chunk(data[place : place + 7], True) for place in range(0, len(data), 7)),
        chunk(b""),
    ]
    images_read = read(request(messages, "image/png"), GREY)
    np.testing.assert_array_equal(images_read, expected([image], GREY))


def test_read_stops_at_the_body_limit() -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield bytes(100)

    body = endless()

    async def receive() -> Message:
        return chunk(await anext(body), more=True)

    http_request = Request({"type": "http", "headers": [(b"content-type", b"image/png")]}, receive)
    with pytest.raises(
        BodyTooLargeError, match=r"^The body is larger than 1,000 bytes; send fewer"
    ):
        read(http_request, GREY, max_body_bytes=1000)
    assert taken == 11


def test_read_refuses_a_too_large_content_length_without_reading() -> None:
    http_request = request([], "image/png", **{"content-length": "1001"})
    with pytest.raises(BodyTooLargeError):
        read(http_request, GREY, max_body_bytes=1000)


@pytest.mark.parametrize("declared", ["", "many", "-1", "10"])
def test_read_enforces_the_limit_despite_a_wrong_content_length(declared: str) -> None:
    http_request = request([chunk(bytes(1001))], "image/png", **{"content-length": declared})
    with pytest.raises(BodyTooLargeError):
        read(http_request, GREY, max_body_bytes=1000)


def test_read_accepts_a_body_of_exactly_the_limit() -> None:
    image = pixels(0, GREY)
    images_read = read_body(encode(image), "image/png", GREY, max_body_bytes=len(encode(image)))
    np.testing.assert_array_equal(images_read, expected([image], GREY))


def test_read_times_out_if_the_body_stops_arriving() -> None:
    http_request = request([chunk(b"\x89PNG", more=True)], "image/png")
    with pytest.raises(BodyTimeoutError, match=r"^The body did not arrive within 0\.01 seconds"):
        read(http_request, GREY, body_timeout_seconds=0.01)


def test_read_reports_a_disconnect_as_an_invalid_request() -> None:
    http_request = request([chunk(b"\x89PNG", more=True), {"type": "http.disconnect"}], "image/png")
    with pytest.raises(InvalidRequestError, match="hung up before its body was whole"):
        read(http_request, GREY)


def test_read_limits_the_number_of_images() -> None:
    image = numbers(pixels(0, GREY))
    assert len(read_body(instances([image] * 3), JSON_TYPE, GREY, max_images=3)) == 3
    with pytest.raises(TooManyImagesError, match=r"^One request takes at most 3 images; send sev"):
        read_body(instances([image] * 4), JSON_TYPE, GREY, max_images=3)


def test_read_keeps_a_large_form_file_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The form parser's limit of a part's size and its temporary files do not apply."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    large = encode(np.random.default_rng(0).integers(0, 256, (1500, 1500)).astype(np.uint8))
    assert len(large) > 2**21
    sent = httpx.Request("POST", "http://service", files=form(large))
    images_read = read_body(sent.read(), sent.headers["Content-Type"], GREY)
    np.testing.assert_array_equal(images_read, to_float(decode(large, GREY))[np.newaxis])


def test_read_accepts_a_form_as_curl_sends_it() -> None:
    boundary = "------------------------abc"
    image = pixels(0, GREY)
    head = (
        'Content-Disposition: form-data; name="file"; filename="a b.png"\r\nContent-Type: image/png'
    )
    body = (
        f"--{boundary}\r\n{head}\r\n\r\n".encode()
        + encode(image)
        + f"\r\n--{boundary}--\r\n".encode()
    )
    images_read = read_body(body, f"{FORM_TYPE}; boundary={boundary}", GREY)
    np.testing.assert_array_equal(images_read, expected([image], GREY))


@pytest.mark.parametrize("size", [10, 100_000], ids=["inline", "in a sandbox process"])
def test_malformed_form_writes_nothing_into_the_log(
    size: int, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InvalidRequestError, match="The form cannot be read"):
        read_body(b"-x" + bytes(size), f"{FORM_TYPE}; boundary=x", GREY)
    assert caplog.records == []
    assert capfd.readouterr().err == ""


def test_decode_metric_counts_each_request_once() -> None:
    metrics = Metrics()
    file = encode(pixels(0, GREY))
    for number, (body, content_type) in enumerate(
        [
            (file, "image/png"),
            (instances([numbers(pixels(0, GREY))]), JSON_TYPE),
            (instances([file, file]), JSON_TYPE),
        ],
        start=1,
    ):
        read(request([chunk(body)], content_type), GREY, metrics)
        text = metrics.render().decode()
        assert metric(text, "dropserve_stage_seconds_count", stage="decode") == number


@pytest.mark.parametrize(
    ("files", "is_fast"),
    [
        ([b"\x89PNG" + bytes(300)], True),
        ([b"\x89PNG" + bytes(20_000)], False),
        ([b"\x89PNG" + bytes(9_000)] * 2, False),
        ([b"\xff\xd8" + b"\xff\xda" * 100], False),
    ],
)
def test_event_loop_decodes_small_single_images_only(files: list[Any], is_fast: bool) -> None:
    assert _is_fast_to_decode(files) is is_fast
