"""Attacks with connections: silent, slow or greedy clients, ambiguous heads and upgrades."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
import pytest

from service.http import http_protocol as protocol
from tests.pictures import Pixels, encode
from tests.service.listening import Client, Listening, listening
from tests.service.serving import (
    TIMEOUT_SECONDS,
    BlockingPredictor,
    real_predictor,
    serving_models,
    serving_stub,
)

LIVE_REQUEST = b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n"
UNFINISHED_POST = (
    b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: 10\r\n\r\n"
)
INNER_REQUEST = b"GET /health/ready HTTP/1.1\r\nHost: a\r\nX-Request-ID: inner\r\n\r\n"


@contextmanager
def open_port(models_folder: Path, **settings: Any) -> Iterator[Listening]:
    with serving_models(models_folder, **settings) as service, listening(service) as found:
        yield found


@pytest.fixture(scope="module")
def port(models_folder: Path) -> Iterator[Listening]:
    with open_port(models_folder) as found:
        yield found


def status_and_code(client: Client) -> tuple[int, str]:
    response = client.read_response()
    return response.status, orjson.loads(response.body)["code"]


def post(body: bytes, *lines: bytes, path: bytes = b"/predict") -> bytes:
    head = [b"POST %b HTTP/1.1" % path, b"Host: a", b"Content-Type: image/png", *lines, b"", b""]
    return b"\r\n".join(head) + body


def test_requests_whose_body_is_missing_do_not_count_as_in_flight(
    models_folder: Path, digit: Pixels
) -> None:
    with open_port(models_folder, max_concurrent_requests=2) as port:
        for _ in range(20):
            port.connect().send(UNFINISHED_POST)
        port.until(lambda: len(port.state.tasks) >= 20 or not port.paths)
        picture = encode(digit)
        good = port.connect()
        good.send(post(picture, b"Content-Length: %d" % len(picture)))
        assert good.read_response().status == 200


def test_body_timeout_applies_to_a_pipelined_request(
    models_folder: Path,
) -> None:
    """What waited behind a response is parsed later than what is read, and has the same limits."""
    with open_port(models_folder, body_timeout_seconds=0.2) as port:
        client = port.connect()
        client.send(LIVE_REQUEST + UNFINISHED_POST)
        assert client.read_response().status == 200
        assert status_and_code(client) == (408, "body_timeout")


def test_unfinished_head_is_answered_408_and_silent_connection_is_closed(
    models_folder: Path,
) -> None:
    with open_port(models_folder, head_timeout_seconds=0.05) as port:
        slow, silent = port.connect(), port.connect()
        slow.send(b"GET /health/live HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        assert status_and_code(slow) == (408, "head_timeout")
        assert slow.is_closed()
        assert silent.is_closed()


def test_client_that_never_reads_is_closed_after_the_write_timeout(models_folder: Path) -> None:
    with open_port(models_folder, write_timeout_seconds=0.05) as port:
        greedy = port.connect()
        greedy._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        port.until(lambda: bool(port.connections))
        # The responses are too long for the kernel's buffers, which the service does not count.
        greedy.send(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 200)
        port.until(lambda: not port.state.connections)


def test_pipelining_client_is_not_read_beyond_the_request_in_flight(
    models_folder: Path, digit: Pixels
) -> None:
    blocking = BlockingPredictor(real_predictor(models_folder))
    picture = encode(digit)
    with serving_stub(models_folder, blocking) as service, listening(service) as port:
        greedy = socket.create_connection(("127.0.0.1", port.port), TIMEOUT_SECONDS)
        greedy.sendall(post(picture, b"Content-Length: %d" % len(picture)))
        blocking.wait_until_running()
        greedy.setblocking(False)
        sent = 0
        try:
            while sent < 2**26:
                sent += greedy.send(LIVE_REQUEST * 2**14)
        except BlockingIOError:
            pass  # the kernel's buffers and the service's are full
        assert sent < 2**26
        connection = port.connections[-1]
        assert len(connection._unparsed) <= 2**18
        blocking.released.set()
        greedy.close()


def test_buffered_bodies_are_limited_together(models_folder: Path) -> None:
    with open_port(models_folder, max_buffered_bytes=400_000) as port:
        filling = [port.connect() for _ in range(4)]
        for client in filling:
            client.send(post(bytes(99_999), b"Content-Length: 100000"))
        refused = [client for client in filling if _is_answered(client)]
        assert 0 < len(refused) < 4
        assert status_and_code(refused[0]) == (503, "overloaded")


_ENDLESS = 2**27


def _bytes_taken(client: Client, piece: bytes) -> int:
    """Send until the server ends the connection; return how many bytes could be sent."""
    sent = 0
    with suppress(OSError):
        while sent < _ENDLESS:
            client.send(piece)
            sent += len(piece)
    return sent


def _is_answered(client: Client) -> bool:
    client._connection.settimeout(0.5)
    try:
        return bool(client._connection.recv(1, socket.MSG_PEEK))
    except TimeoutError:
        return False
    finally:
        client._connection.settimeout(TIMEOUT_SECONDS)


def test_connection_is_closed_soon_after_a_refusal_and_little_more_is_read(
    models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "_LINGER_BYTES", 100_000)
    with open_port(models_folder, max_body_bytes=1_000) as port:
        greedy = port.connect()
        greedy.send(post(b"", b"Content-Length: 9000000000"))
        assert status_and_code(greedy) == (413, "body_too_large")
        assert _bytes_taken(greedy, bytes(10_000)) < _ENDLESS


def test_slow_client_is_closed_soon_after_a_refusal(
    models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "_LINGER_SECONDS", 0.05)
    with open_port(models_folder, body_timeout_seconds=0.05) as port:
        slow = port.connect()
        slow.send(UNFINISHED_POST)
        assert status_and_code(slow) == (408, "body_timeout")
        port.until(lambda: not port.state.connections)


def test_client_that_ends_its_side_within_a_body_and_reads_nothing_is_closed_in_time(
    models_folder: Path,
) -> None:
    with open_port(models_folder, write_timeout_seconds=0.1) as port:
        client = port.connect()
        client.send(UNFINISHED_POST)
        port.until(lambda: any(each._is_in_body for each in port.connections))

        def fill() -> None:
            transport = port.connections[-1].transport
            transport.set_write_buffer_limits(high=2**30)
            transport.write(bytes(2**24))

        port.call(fill)
        client._connection.shutdown(socket.SHUT_WR)
        port.until(lambda: not port.state.connections)


def test_idle_connection_is_closed_to_make_room_for_a_new_one(models_folder: Path) -> None:
    with open_port(models_folder, max_connections=4) as port:
        for _ in range(20):
            port.connect()
        good = port.connect()
        good.send(LIVE_REQUEST)
        assert good.read_response().status == 200
        assert len(port.state.connections) <= 4


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket", b"anything"])
@pytest.mark.parametrize("in_pieces", [False, True])
def test_bytes_after_an_upgrade_head_are_its_body(
    port: Listening, upgrade: bytes, in_pieces: bool
) -> None:
    lines = b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: " + upgrade, b"HTTP2-Settings: AA"
    head = post(b"", *lines, b"Content-Length: %d" % len(INNER_REQUEST))
    client = port.connect()
    client.send(head if in_pieces else head + INNER_REQUEST)
    if in_pieces:
        port.until(lambda: bool(port.connections[-1]._is_in_body))
        client.send(INNER_REQUEST)
    assert status_and_code(client) == (400, "image_unreadable")
    client.send(LIVE_REQUEST)
    response = client.read_response()
    assert (response.status, response.headers["X-Request-ID"] == "inner") == (200, False)


def test_request_of_http_1_0_stays_one_where_it_asks_for_an_upgrade(port: Listening) -> None:
    client = port.connect()
    lines = b"Connection: upgrade", b"Upgrade: a", b"Transfer-Encoding: chunked"
    client.send(post(b"0\r\n\r\n", *lines).replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert status_and_code(client) == (400, "invalid_http")
    assert client.is_closed()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET / HTTP/1.1\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n", 400),
        ("GET / HTTP/2.0\r\nHost: a\r\n", 505),
        ("GET /\r\n", 505),
        ("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n", 501),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n", 501),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n", 501),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n", 400),
    ],
)
def test_ambiguous_head_is_refused_and_the_connection_closed(
    port: Listening, head: str, status: int
) -> None:
    client = port.connect()
    client.send(head.encode() + b"\r\n" + INNER_REQUEST)
    response = client.read_response()
    assert response.status == status
    assert "error" in orjson.loads(response.body)
    assert client.is_closed()


def test_garbage_after_a_request_does_not_replace_its_response(
    models_folder: Path, digit: Pixels
) -> None:
    blocking = BlockingPredictor(real_predictor(models_folder))
    picture = encode(digit)
    with serving_stub(models_folder, blocking) as service, listening(service) as port:
        client = port.connect()
        client.send(post(picture, b"Content-Length: %d" % len(picture)) + b"\0garbage\r\n\r\n")
        blocking.wait_until_running()
        blocking.released.set()
        assert client.read_response().status == 200
        assert status_and_code(client) == (400, "invalid_http")


def test_half_closed_client_is_answered(models_folder: Path, digit: Pixels) -> None:
    blocking = BlockingPredictor(real_predictor(models_folder))
    picture = encode(digit)
    with serving_stub(models_folder, blocking) as service, listening(service) as port:
        client = port.connect()
        client.send(post(picture, b"Content-Length: %d" % len(picture)))
        blocking.wait_until_running()
        client._connection.shutdown(socket.SHUT_WR)
        port.until(lambda: port.connections[-1]._is_half_closed)
        blocking.released.set()
        response = client.read_response()
        assert (response.status, response.headers["Connection"]) == (200, "close")


def test_client_that_was_answered_503_is_not_read_for_a_while(
    models_folder: Path, digit: Pixels
) -> None:
    blocking = BlockingPredictor(real_predictor(models_folder))
    picture = encode(digit)
    whole = post(picture, b"Content-Length: %d" % len(picture))
    with (
        serving_stub(models_folder, blocking, max_concurrent_requests=1) as service,
        listening(service) as port,
    ):
        port.connect().send(whole)
        blocking.wait_until_running()
        greedy = port.connect()
        greedy.send(whole)
        assert status_and_code(greedy) == (503, "overloaded")
        assert port.call(lambda: port.connections[-1]._is_backing_off)
        blocking.released.set()
        greedy.send(whole)
        assert greedy.read_response().status == 200  # once it is read again


def test_head_response_is_that_of_get_without_the_body(port: Listening) -> None:
    for path in (b"/", b"/models", b"/health/live", b"/metrics", b"/v2", b"/openapi.json"):
        client = port.connect()
        client.send(b"HEAD %b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % path)
        head = client._received.read()
        assert head.startswith(b"HTTP/1.1 200 ")
        assert head.endswith(b"\r\n\r\n")


def test_client_begins_few_requests_in_one_iteration_of_the_event_loop(port: Listening) -> None:
    many = [port.connect() for _ in range(100)]
    port.until(lambda: len(port.state.connections) >= 100)
    order: list[bool] = []

    def receive() -> None:
        for connection in port.connections[-100:]:
            connection.data_received(LIVE_REQUEST)
        order.extend(connection._is_answering for connection in port.connections[-100:])
        evicted.extend(connection.evict_if_idle() for connection in port.connections[-100:])

    evicted: list[bool] = []
    port.call(receive)
    assert 0 < sum(order) < 100
    assert not any(evicted)  # those with a waiting request are not idle
    assert [client.read_response().status for client in many] == [200] * 100
