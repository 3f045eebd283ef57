"""Images of tasks come from one Label Studio, with its token, within limits of bytes and time."""

import asyncio
import base64
import gzip
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from model.errors import DropserveError
from service.label_studio.task_images import TaskImageError, TaskImages
from service.label_studio_url import parse_label_studio

STUDIO = "http://studio.test:8080"
FILE = "/data/upload/1/a.png"
JWT = "header.payload.signature"
Handler = Callable[[httpx.Request], httpx.Response]


def read(handler: Handler, reference: Any = FILE, token: str | None = None) -> bytes:
    """Read one file through a fake network."""
    images = TaskImages(parse_label_studio(STUDIO), token, 1000, httpx.MockTransport(handler))

    async def run() -> bytes:
        async with images.reading() as read_file:
            return await read_file(reference)

    return asyncio.run(run())


def streamed(content: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
    """Return an answer whose body is read as from a network."""
    return httpx.Response(200, stream=httpx.ByteStream(content), headers=headers)


def never(request: httpx.Request) -> httpx.Response:
    raise AssertionError(f"{request.url} was asked for")


def test_file_is_fetched_with_a_legacy_token() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert str(request.url) == STUDIO + FILE
        assert request.headers["Authorization"] == "Token 123"
        return streamed(b"PNG")

    assert read(handler, token="123") == b"PNG"


def test_personal_access_token_is_exchanged_first() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/token/refresh/":
            assert json.loads(request.content) == {"refresh": JWT}
            return streamed(b'{"access": "abc.def.ghi"}')
        assert request.headers["Authorization"] == "Bearer abc.def.ghi"
        return streamed(b"PNG")

    assert read(handler, token=JWT) == b"PNG"


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(401),
        streamed(b"no JSON"),
        streamed(rb'{"access": "a b\r\nHost: evil.example"}'),
        streamed(b'{"access": "%s"}' % (b"evil" * 10_000)),
        streamed(gzip.compress(b'{"access": "evil"}'), {"Content-Encoding": "gzip"}),
    ],
)
def test_token_that_is_not_exchanged_is_told_and_never_shown(answer: httpx.Response) -> None:
    with pytest.raises(TaskImageError, match="Label Studio") as error:
        read(lambda _request: answer, token=JWT)
    assert JWT not in str(error.value)
    assert "evil" not in str(error.value)


def test_data_url_is_read_without_a_network() -> None:
    encoded = base64.b64encode(b"PNG").decode()
    assert read(never, f"data:image/png;base64,{encoded}") == b"PNG"


@pytest.mark.parametrize(
    "reference",
    [
        *(None, 7, "", [FILE], {"url": FILE}),
        *("data:image/png,abc", "data:;base64,*"),
        *("http://169.254.169.254/data/", "/api/projects", "/data/../api/projects"),
        *("http://studio.test/data/a.png", "//evil.example/data/a.png", "file:///etc/passwd"),
    ],
)
def test_nothing_else_is_asked_for(reference: Any) -> None:
    with pytest.raises(DropserveError, match=r"\.$"):
        read(never, reference)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            httpx.Response(302, headers={"Location": "http://169.254.169.254/"}),
            "answered 302; see its log",
        ),
        (httpx.Response(404), "answered 404; see its log"),
        (httpx.Response(401), "answered 401; see its token"),
        (httpx.Response(403), "answered 403; see its token"),
        (httpx.Response(200, stream=httpx.ByteStream(bytes(1001))), "larger than 1,000 bytes"),
        (
            httpx.Response(
                200, content=gzip.compress(bytes(10)), headers={"Content-Encoding": "gzip"}
            ),
            "compressed",
        ),
    ],
)
def test_answer_that_is_not_a_small_file_is_refused(answer: httpx.Response, reason: str) -> None:
    asked = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.url)
        return answer

    with pytest.raises(TaskImageError, match=reason):
        read(handler)
    assert len(asked) == 1


def test_endless_file_is_left_after_the_limit() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 100
            yield bytes(100)

    with pytest.raises(TaskImageError, match="larger than"):
        read(lambda _request: httpx.Response(200, content=endless()))
    assert sent <= 1200


def test_unreachable_label_studio_is_told() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(TaskImageError, match="not reached at http://studio"):
        read(handler)


def test_slow_label_studio_is_told() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("slow", request=request)

    with pytest.raises(TaskImageError, match="did not arrive within 10 seconds"):
        read(handler)


def test_query_of_an_image_which_may_be_signed_is_not_told() -> None:
    with pytest.raises(TaskImageError, match="elsewhere") as error:
        read(never, "https://elsewhere.example/a.png?X-Amz-Signature=secret")
    assert "secret" not in str(error.value)
