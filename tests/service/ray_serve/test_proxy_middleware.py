"""The middleware around Serve's proxy, with applications that behave as that proxy does."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.response_headers import SECURITY_HEADERS
from service.ray_serve.proxy_middleware import middlewares
from tests.service.serving import check_error

LIMIT = 1000


@pytest.fixture(autouse=True)
def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DROPSERVE_MAX_BODY_BYTES", str(LIMIT))


def around(app: ASGIApp) -> ASGIApp:
    (middleware,) = middlewares()
    return middleware.cls(app, *middleware.args, **middleware.kwargs)


def post(app: ASGIApp, body: bytes = b"", *, chunked: bool = False) -> httpx.Response:
    async def chunks() -> AsyncIterator[bytes]:
        for begin in range(0, len(body), 100):
            yield body[begin : begin + 100]

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(around(app))) as client:
            return await client.post("http://x/predict", content=chunks() if chunked else body)

    return asyncio.run(send())


async def silent_proxy(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body and answer nothing, as Serve does where a replica has died."""
    while (await receive()).get("more_body"):
        pass


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    await Response(await Request(scope, receive).body())(scope, receive, send)


async def buffering_proxy(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the whole body, and answer nothing to a client that hangs up."""
    try:
        await echo(scope, receive, send)
    except ClientDisconnect:
        return


def test_request_of_a_replica_that_died_is_refused() -> None:
    response = post(silent_proxy)

    check_error(response, 503, "not_ready", "The replica that was to answer has ended; …")
    assert response.headers["Retry-After"] == "1"


@pytest.mark.parametrize(
    ("status", "ours", "code", "sentence"),
    [
        (404, 404, "not_found", "No application is deployed at this path; see serve status."),
        (408, 504, "deadline_exceeded", "No replica has answered within request_timeout_s; …"),
        (503, 503, "overloaded", "No replica can take the request now; …"),
    ],
)
def test_plain_text_that_serve_answers_becomes_an_error_of_the_service(
    status: int, ours: int, code: str, sentence: str
) -> None:
    response = post(PlainTextResponse("Request dropped due to backpressure", status))

    check_error(response, ours, code, sentence)


def test_request_has_one_id_for_serve_the_replica_and_the_answer() -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(Request(scope).headers["X-Request-ID"])

    response = post(app)

    assert seen == [response.headers["X-Request-ID"]]


def test_error_of_a_replica_is_passed_on() -> None:
    content = {"error": "A sentence.", "code": "a_word"}

    assert post(JSONResponse(content, 503)).json() == content


def test_answer_gets_the_headers_of_every_answer_and_one_request_id() -> None:
    app = PlainTextResponse("metrics")
    app.raw_headers += [(b"x-request-id", b"of the replica"), (b"X-Request-ID", b"of Serve")]

    response = post(app)

    assert response.text == "metrics"
    assert response.headers.get_list("X-Request-ID") == ["of the replica"]
    assert all(response.headers[name] == value for name, value in SECURITY_HEADERS)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("app", [silent_proxy, buffering_proxy])
def test_body_that_is_too_large_is_not_buffered(app: ASGIApp, chunked: bool) -> None:
    response = post(app, (LIMIT + 1) * b"x", chunked=chunked)

    check_error(response, 413, "body_too_large", "The body is larger than 1,000 bytes; …")


@pytest.mark.parametrize("chunked", [False, True])
def test_largest_body_arrives_whole(chunked: bool) -> None:
    body = bytes(range(250)) * (LIMIT // 250)

    assert post(echo, body, chunked=chunked).content == body


def test_other_events_are_passed_on() -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def receive() -> Message:
        return {}

    async def send(_message: Message) -> None:
        return

    async def run() -> None:
        await around(app)({"type": "lifespan"}, receive, send)

    asyncio.run(run())

    assert seen == ["lifespan"]
