"""FastPathProtocol over real connections, with the bytes cut where it matters."""

import asyncio
import gzip
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from service.http.fast_path import fast_path_protocol as protocol
from service.http.fast_path.fast_path_route import FastPathRoute
from service.http.http_protocol import HttpProtocol
from service.http.middleware import RequestMiddleware
from tests.pictures import Pixels, encode, form
from tests.service.listening import Listening, listening
from tests.service.serving import (
    TIMEOUT_SECONDS,
    Application,
    BlockingPredictor,
    real_predictor,
    serving_models,
    serving_stub,
)

INFER = "/v2/models/digits/infer"
MIXED = "/v2/models/digits-mc/infer"


@pytest.fixture(scope="module")
def open_port(service: Application) -> Iterator[Listening]:
    with listening(service) as found:
        yield found


@pytest.fixture
def port(open_port: Listening, monkeypatch: pytest.MonkeyPatch) -> Listening:
    """The shared application; a request in pieces is waited for as long as it takes."""
    monkeypatch.setattr(protocol, "_BODY_DELAY_SECONDS", TIMEOUT_SECONDS)
    open_port.paths.clear()
    return open_port


@pytest.fixture
def held(models_folder: Path) -> BlockingPredictor:
    return BlockingPredictor(real_predictor(models_folder))


@pytest.fixture
def held_port(models_folder: Path, held: BlockingPredictor) -> Iterator[Listening]:
    """An application that answers when `held` permits it."""
    with serving_stub(models_folder, held) as service, listening(service) as found:
        yield found
        held.released.set()


def tensor(digit: Pixels, **fields: Any) -> dict[str, Any]:
    values = (digit / 255).astype(np.float32).ravel()
    given = {"name": "images", "shape": [1, 1, 8, 8], "datatype": "FP32"}
    return given | {"data": values.tolist()} | fields


def infer_body(digit: Pixels, **fields: Any) -> bytes:
    return orjson.dumps({"inputs": [tensor(digit)], **fields})


def request(url: str, body: bytes, *lines: str, version: str = "1.1") -> bytes:
    head = [f"POST {url} HTTP/{version}", "Host: service", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join([*head, "", ""]).encode() + body


JSON_LINE = "Content-Type: application/json"
ID_LINE = "X-Request-ID: mine"


@dataclass(frozen=True)
class Case:
    """A request that both paths answer alike."""

    url: str
    body: bytes
    lines: tuple[str, ...] = (JSON_LINE,)


def cases(digit: Pixels) -> list[Case]:
    picture = encode(digit)
    values = (digit / 255).astype("<f4").tobytes()
    plain = tensor(digit)
    del plain["data"]
    binary = orjson.dumps({"inputs": [plain | {"parameters": {"binary_data_size": len(values)}}]})
    large = encode(np.zeros((150, 150), np.uint8))  # decoded on a thread
    files = httpx.Request("POST", "http://service", files=form(picture, large))
    packed = gzip.compress(infer_body(digit))
    return [
        Case(INFER, infer_body(digit)),
        Case(MIXED, infer_body(digit, id="7")),
        Case(INFER, binary + values, (f"Inference-Header-Content-Length: {len(binary)}",)),
        Case(INFER, packed, (JSON_LINE, "Content-Encoding: gzip")),
        Case(INFER, infer_body(digit), (JSON_LINE, "Accept-Encoding: gzip")),
        Case("/v2/models/digits/versions/1/infer", infer_body(digit)),
        Case("/predict", picture, ("Content-Type: image/png",)),
        Case("/predict", large, ("Content-Type: image/png",)),
        Case("/uncertainty", picture, ("Content-Type: image/png",)),
        Case("/predict", files.read(), (f"Content-Type: {files.headers['Content-Type']}",)),
        Case("/predict", orjson.dumps({"instances": [(digit / 255).tolist()]})),
        # And errors.
        Case(INFER, b""),
        Case(INFER, b"{"),
        Case(INFER, infer_body(digit), (JSON_LINE, "Content-Encoding: br")),
        Case("/v2/models/nobody/infer", infer_body(digit)),
        Case("/predict", b"x", ("Content-Type: image/png",)),
        Case("/predict", picture, ("Content-Type: text/plain",)),
        Case("/predict", picture, ()),
    ]


def asgi_response(service: Application, case: Case) -> httpx.Response:
    """The same request as an ASGI server hands it over."""
    headers = dict(line.split(": ", 1) for line in (*case.lines, ID_LINE))
    headers.setdefault("Accept-Encoding", "identity")
    return service.post(case.url, case.body, headers=headers)


def test_fast_path_and_asgi_path_give_the_same_bytes(
    port: Listening, service: Application, digit: Pixels
) -> None:
    client = port.connect()
    for case in cases(digit):
        client.send(request(case.url, case.body, *case.lines, ID_LINE))
        answer, other = client.read_response(), asgi_response(service, case)
        packed = answer.headers["Content-Encoding"] == "gzip"
        assert (answer.status, gzip.decompress(answer.body) if packed else answer.body) == (
            other.status_code,
            other.content,
        )
        given = {name.lower(): value for name, value in answer.headers.items() if name != "date"}
        assert given == dict(other.headers)
    assert set(port.paths) == {"fast"}


def test_fast_path_answers_a_request_that_arrives_in_pieces(port: Listening, digit: Pixels) -> None:
    client, whole = port.connect(), request(INFER, infer_body(digit))
    client.send(whole)
    expected = client.read_response().body
    head_end = whole.index(b"\r\n\r\n") + 4
    for first, rest in [(whole[:at], whole[at:]) for at in (10, head_end, len(whole) - 1)]:
        client.send(first)
        port.until(partial(port.has_received, first))
        client.send(rest)
        assert client.read_response().body == expected
    assert port.paths == ["fast"] * 4


def test_slow_body_takes_the_asgi_path(
    port: Listening, digit: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "_BODY_DELAY_SECONDS", 0)
    client, whole = port.connect(), request(INFER, infer_body(digit))
    client.send(whole[:-9])
    port.until(lambda: port.paths == ["asgi"])
    client.send(whole[-9:])
    assert client.read_response().status == 200


@pytest.mark.parametrize(
    ("url", "lines", "version"),
    [
        (INFER + "?trace=1", (), "1.1"),
        ("/v2/models/digits/%69nfer", (), "1.1"),
        ("http://service" + INFER, (), "1.1"),
        (INFER, (), "1.0"),
        ("/v2/repository/index", (), "1.1"),
    ],
)
def test_unusual_request_takes_the_asgi_path(
    port: Listening, digit: Pixels, url: str, lines: tuple[str, ...], version: str
) -> None:
    client = port.connect()
    client.send(request(url, infer_body(digit), JSON_LINE, *lines, version=version))
    assert client.read_response().status in (200, 400)
    assert port.paths == ["asgi"]


def test_expect_100_continue_is_answered(port: Listening, digit: Pixels) -> None:
    client, body = port.connect(), infer_body(digit)
    head = request(INFER, body, "Expect: 100-continue")[: -len(body)]
    client.send(head)
    assert client.read_line() == b"HTTP/1.1 100 Continue\r\n"
    assert client.read_line() == b"\r\n"
    client.send(body)
    assert client.read_response().status == 200


def test_expect_100_continue_of_http_1_0_is_ignored(port: Listening, digit: Pixels) -> None:
    client, body = port.connect(), infer_body(digit)
    client.send(request(INFER, body, "Expect: 100-continue", version="1.0"))
    assert client.read_response().status == 200


def test_long_body_takes_the_asgi_path(port: Listening) -> None:
    client, body = port.connect(), b" " * 90_000 + b"{}"
    client.send(request(INFER, body, JSON_LINE))
    assert orjson.loads(client.read_response().body)["code"] == "invalid_request"
    assert port.paths == ["asgi"]


def test_fast_path_joins_a_chunked_body(port: Listening, digit: Pixels) -> None:
    client, body = port.connect(), infer_body(digit)
    head = f"POST {INFER} HTTP/1.1\r\nHost: service\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = [body[:7], body[7:], b""]
    client.send(head.encode() + b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in chunks))
    assert client.read_response().status == 200
    assert port.paths == ["fast"]


def test_connection_close_is_obeyed(port: Listening, digit: Pixels) -> None:
    client = port.connect()
    client.send(request(INFER, infer_body(digit), "Connection: close"))
    answer = client.read_response()
    assert (answer.status, answer.headers["Connection"]) == (200, "close")
    assert client.is_closed()


def test_invalid_chunk_is_answered_400_and_closes(port: Listening) -> None:
    client = port.connect()
    chunked = f"POST {INFER} HTTP/1.1\r\nHost: service\r\nTransfer-Encoding: chunked\r\n\r\nzz"
    client.send(chunked.encode())
    answer = client.read_response()
    assert (answer.status, orjson.loads(answer.body)["code"]) == (400, "invalid_http")
    assert client.is_closed()


@pytest.mark.parametrize(
    "head",
    [
        "POST /predict HTTP/1.1\r\n" + "a: b\r\n" * 10_924,
        "POST /predict HTTP/1.1\r\nLong: " + "x" * 65_600,
        f"POST /{'x' * 65_600}",
    ],
)
def test_head_over_64_kib_is_answered_431(port: Listening, head: str) -> None:
    client, text = port.connect(), head.encode()
    for begin, end in ((0, 40), (40, 65_000)):
        client.send(text[begin:end])
        port.until(partial(port.has_received, text[:end]))
    client.send(text[65_000:])  # in one piece, as what nobody reads would reset the connection
    answer = client.read_response()
    assert (answer.status, orjson.loads(answer.body)["code"]) == (431, "head_too_large")
    assert client.is_closed()


def test_trailers_are_not_headers(port: Listening, digit: Pixels) -> None:
    client, body = port.connect(), infer_body(digit)
    lines = f"POST {INFER} HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", ID_LINE, "", ""
    head = "\r\n".join(lines).encode()
    trailers = b"0\r\nContent-Encoding: br\r\nX-Request-ID: other\r\n\r\n"
    client.send(head + b"%x\r\n%b\r\n" % (len(body), body) + trailers)
    answer = client.read_response()
    assert (answer.status, answer.headers["X-Request-ID"]) == (200, "mine")


def test_pipelined_requests_do_not_delay_another_connection(
    port: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, count = port.connect(), 30
    other = port.connect()
    port.until(lambda: len(port.state.connections) >= 2)
    whole = request("/predict", b"")
    order: list[int] = []
    for index, connection in enumerate(port.connections[-2:]):
        monkeypatch.setattr(connection, "answered", partial(order.append, index))

    def receive() -> None:
        port.connections[-2].data_received(whole * count)
        port.connections[-1].data_received(whole)

    port.call(receive)
    assert [client.read_response().status for _ in range(count)] == [415] * count
    assert other.read_response().status == 415
    assert order.index(1) < 3


def test_hang_up_amid_a_body_is_counted_as_499(port: Listening, digit: Pixels) -> None:
    labels = {"route": INFER.replace("digits", "{name}"), "method": "POST", "status": "499"}
    before = port.application.metric("dropserve_requests_total", **labels)
    client = port.connect()
    client.send(request(INFER, infer_body(digit))[:-9])
    port.until(lambda: port.connections[-1]._arriving is not None)
    connection = port.connections[-1]
    client.close()
    port.until(lambda: connection not in port.state.connections and not port.state.tasks)
    assert port.application.metric("dropserve_requests_total", **labels) == before + 1


def test_pipelined_requests_are_answered_in_order(
    held_port: Listening, held: BlockingPredictor, digit: Pixels
) -> None:
    client = held_port.connect()
    sent = [request(INFER, infer_body(digit, id=str(number))) for number in range(3)]
    client.send(b"".join(sent))
    held.wait_until_running()
    held.released.set()
    answers = [orjson.loads(client.read_response().body)["id"] for _ in sent]
    assert answers == ["0", "1", "2"]
    assert held_port.paths == ["fast"] * 3


def test_request_with_the_remembered_head_is_not_parsed(port: Listening, digit: Pixels) -> None:
    client = port.connect()
    one, other = infer_body(digit), infer_body(digit[::-1])
    bodies = [body.ljust(2_000) for body in (one, other, infer_body(digit[:-1]), b"{", one)]
    answers = []
    for body in bodies:
        client.send(request(INFER, body))
        answers.append(client.read_response())
    assert [answer.status for answer in answers] == [200, 200, 400, 400, 200]
    assert answers[0].body == answers[-1].body != answers[1].body
    assert answers[0].headers["X-Request-ID"] != answers[-1].headers["X-Request-ID"]
    assert port.connections[-1].parsed == 1
    for line, name in ((ID_LINE, "mine"), ("X-Request-ID: yours", "yours")):
        client.send(request(INFER, one.ljust(2_000), line))
        assert client.read_response().headers["X-Request-ID"] == name
    assert port.connections[-1].parsed == 3
    assert set(port.paths) == {"fast"}


def test_first_of_several_request_ids_is_used(port: Listening, digit: Pixels) -> None:
    client = port.connect()
    for _ in range(2):
        client.send(request(INFER, infer_body(digit), ID_LINE, "X-Request-ID: another"))
        assert client.read_response().headers.get_all("X-Request-ID") == ["mine"]


def test_idle_connection_keeps_no_long_head(port: Listening, digit: Pixels) -> None:
    client = port.connect()
    for line, is_kept in ((f"Long: {'x' * 5_000}", False), ("Long: x", True)):
        client.send(request(INFER, infer_body(digit), line))
        assert client.read_response().status == 200
        kept = port.call(partial(vars, port.connections[-1]))
        assert (kept["_answered"], kept["_request_headers"]) == (None, [])
        assert (kept["_remembered"] is not None) == is_kept


def test_request_with_the_remembered_head_waits_for_the_one_in_flight(
    held_port: Listening, held: BlockingPredictor, digit: Pixels
) -> None:
    client = held_port.connect()
    client.send(request(INFER, b"{".ljust(2_000)))
    assert client.read_response().status == 400
    for body in (infer_body(digit), b"{", infer_body(digit)):  # the second needs no network
        whole = request(INFER, body.ljust(2_000))
        held_port.call(held_port.connections[-1].data_received, whole)
    held.wait_until_running()
    held.released.set()
    assert [client.read_response().status for _ in range(3)] == [200, 400, 200]


@pytest.mark.parametrize("seed", range(20))
def test_requests_cut_at_random_get_their_own_responses(
    port: Listening, digit: Pixels, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    bodies = [infer_body(np.roll(digit, shift), id="x").ljust(2_000) for shift in range(3)]
    whole = [request(url, body, ID_LINE) for url in (INFER, MIXED) for body in bodies]
    chunks = [f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n" for body in bodies]
    head = request(INFER, b"", ID_LINE).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    whole += [b"\r\n" + whole[0], *(head + each for each in chunks)]
    client = port.connect()
    for each in whole:
        client.send(each)
    expected = [client.read_response().body for _ in whole]
    assert len(set(expected)) == 2 * len(bodies)
    order = rng.choice(len(whole), size=30, p=rng.dirichlet(np.full(len(whole), 0.3)))
    ends = np.cumsum([len(whole[index]) for index in order])
    cuts = {*ends.tolist(), *rng.integers(ends[-1], size=rng.integers(9)).tolist()} - {0}
    text = b"".join(whole[index] for index in order)
    for begin, end in pairwise([0, *sorted(cuts)]):
        port.call(port.connections[-1].data_received, text[begin:end])
    assert [client.read_response().body for _ in order] == [expected[index] for index in order]


def test_keep_alive_timeout_spares_a_connection_with_a_request_in_flight(
    held_port: Listening, held: BlockingPredictor, digit: Pixels
) -> None:
    client = held_port.connect()
    client.send(request(INFER, b"{") + request(INFER, infer_body(digit)))
    assert client.read_response().status == 400
    held.wait_until_running()
    held_port.connections[-1].timeout_keep_alive = 0
    held_port.call(held_port.connections[-1]._deadline.check)
    held.released.set()
    assert client.read_response().status == 200


def test_hang_up_while_waiting_leaves_no_request_in_flight(
    held_port: Listening, held: BlockingPredictor, digit: Pixels
) -> None:
    client = held_port.connect()
    client.send(request(INFER, infer_body(digit)))
    held.wait_until_running()
    client.close()
    held_port.until(lambda: not held_port.state.connections)
    held.released.set()
    held_port.until(lambda: not held_port.state.tasks)
    assert held_port.application.metric("dropserve_requests_in_hand") == 1  # this one
    assert held_port.application.post(INFER, infer_body(digit)).status_code == 200


def test_reset_connection_is_no_error_in_the_log(
    held_port: Listening,
    held: BlockingPredictor,
    digit: Pixels,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = held_port.connect()
    client.send(request("/occlusion", encode(digit), "Content-Type: image/png"))
    held.wait_until_running()
    assert held_port.paths[-1] == "asgi"
    client.reset()
    held_port.until(lambda: not held_port.state.connections)
    held.released.set()
    held_port.until(lambda: not held_port.state.tasks)
    assert [each.message for each in caplog.records if each.levelno >= logging.ERROR] == []


def test_request_cancelled_after_the_grace_is_answered_503(
    held_port: Listening, held: BlockingPredictor, digit: Pixels
) -> None:
    client = held_port.connect()
    client.send(request(INFER, infer_body(digit)))
    held.wait_until_running()
    held_port.call(lambda: [task.cancel() for task in held_port.state.tasks])
    answer = client.read_response()
    held.released.set()
    assert (answer.status, orjson.loads(answer.body)["code"]) == (503, "not_ready")


def test_request_that_is_arriving_at_shutdown_is_answered(port: Listening, digit: Pixels) -> None:
    client, whole = port.connect(), request(INFER, infer_body(digit))
    client.send(whole[:-9])
    port.until(lambda: port.connections[-1]._arriving is not None)
    port.call(port.connections[-1].shutdown)
    client.send(whole[-9:])
    answer = client.read_response()
    assert (answer.status, answer.headers["Connection"]) == (200, "close")
    assert client.is_closed()


def test_keep_alive_timeout_closes_an_idle_connection_only(port: Listening, digit: Pixels) -> None:
    client, whole = port.connect(), request(INFER, infer_body(digit))
    client.send(whole)
    assert client.read_response().status == 200
    connection = port.connections[-1]
    connection.timeout_keep_alive = 0
    client.send(whole[:20])
    port.until(
        lambda: connection._needs_head_deadline is False and not connection._is_between_requests
    )
    port.call(connection._deadline.check)
    client.send(whole[20:])
    assert client.read_response().status == 200  # then the keep-alive timeout, 0 seconds, begins
    assert client.is_closed()


@pytest.mark.parametrize(
    "url", ["/v2/models/d%69gits/infer", INFER + "#part", "/v2/models/digits/infer?samples=2"]
)
def test_encoded_path_takes_the_asgi_path(port: Listening, digit: Pixels, url: str) -> None:
    client = port.connect()
    client.send(request(url, infer_body(digit), JSON_LINE))
    assert client.read_response().status == 200
    assert port.paths == ["asgi"]


def test_error_in_the_request_handler_closes_the_connection(
    port: Listening, digit: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("broken")

    client = port.connect()
    port.until(lambda: len(port.state.connections) > 0)
    monkeypatch.setattr(RequestMiddleware, "_response", fail)
    client.send(request(INFER, infer_body(digit)))
    assert client.is_closed()


@pytest.fixture
def predict_route(port: Listening) -> FastPathRoute:
    (route,) = [
        route
        for route in port.application.app.routes
        if isinstance(route, FastPathRoute) and route.path == "/predict"
    ]
    return route


def test_fast_path_endpoint_may_await_anything(
    port: Listening, predict_route: FastPathRoute, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def endpoint(_request: Request) -> Response:
        await asyncio.sleep(0)
        async with asyncio.timeout(TIMEOUT_SECONDS), asyncio.TaskGroup() as group:
            task = group.create_task(asyncio.to_thread(lambda: "done"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        return Response(task.result())

    monkeypatch.setattr(predict_route, "fast_endpoint", endpoint)
    client = port.connect()
    for _ in range(2):
        client.send(request("/predict", b""))
        assert client.read_response().body == b"done"
    assert port.paths == ["fast"] * 2


def test_fast_path_endpoint_that_needs_a_task_at_once_is_answered_500(
    port: Listening, predict_route: FastPathRoute, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def endpoint(_request: Request) -> Response:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            return Response()

    monkeypatch.setattr(predict_route, "fast_endpoint", endpoint)
    client = port.connect()
    for _ in range(2):  # the connection stays open
        client.send(request("/predict", b""))
        assert client.read_response().status == 500


def test_request_that_is_cancelled_at_once_is_answered_503(
    held_port: Listening, held: BlockingPredictor, digit: Pixels
) -> None:
    client = held_port.connect()
    held_port.until(lambda: bool(held_port.connections))

    def receive_and_cancel() -> None:
        held_port.connections[-1].data_received(request(INFER, infer_body(digit)))
        for task in held_port.state.tasks:
            task.cancel()

    held_port.call(receive_and_cancel)
    response = client.read_response()
    held.released.set()
    assert (response.status, orjson.loads(response.body)["code"]) == (503, "not_ready")
    assert held_port.application.metric("dropserve_requests_in_hand") == 1  # this one


@pytest.mark.parametrize("waits", [False, True])
def test_response_that_cannot_be_sent_closes_the_connection(
    port: Listening, predict_route: FastPathRoute, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    async def endpoint(_request: Request) -> Response:
        if waits:
            await asyncio.sleep(0)
        return StreamingResponse(iter([b"a stream"]))  # has no body to send in one write

    monkeypatch.setattr(predict_route, "fast_endpoint", endpoint)
    client = port.connect()
    client.send(request("/predict", b""))
    assert client.is_closed()


def test_service_without_the_fast_path_gives_the_same_bytes(
    models_folder: Path, port: Listening, digit: Pixels
) -> None:
    with (
        serving_models(models_folder, fast_path=False) as service,
        listening(service, HttpProtocol) as plain_port,
    ):
        fast, plain = port.connect(), plain_port.connect()
        for case in cases(digit):
            responses = []
            for client in (fast, plain):
                client.send(request(case.url, case.body, *case.lines, ID_LINE))
                answer = client.read_response()
                responses.append((answer.status, answer.body))
            assert responses[0] == responses[1]
