"""Connections that say nothing, too much or too slowly, and requests that hide others."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
import pytest

from service.http import protocol as http_protocol
from service.http.clients import Clients, Limits
from tests.pictures import Pixels, encode
from tests.service.listening import Client, Listening, listening
from tests.service.serving import (
    PATIENCE_SECONDS,
    HeldPredictor,
    real_predictor,
    serving_models,
    serving_stub,
)

LIVE = b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n"
HELD = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: 10\r\n\r\n"
INNER = b"GET /health/ready HTTP/1.1\r\nHost: a\r\nX-Request-ID: inner\r\n\r\n"


@contextmanager
def open_port(models_folder: Path, **settings: Any) -> Iterator[Listening]:
    with serving_models(models_folder, **settings) as service, listening(service) as found:
        yield found


@pytest.fixture(scope="module")
def port(models_folder: Path) -> Iterator[Listening]:
    with open_port(models_folder) as found:
        yield found


def code(client: Client) -> tuple[int, str]:
    answer = client.answer()
    return answer.status, orjson.loads(answer.body)["code"]


def post(body: bytes, *lines: bytes, path: bytes = b"/predict") -> bytes:
    head = [b"POST %b HTTP/1.1" % path, b"Host: a", b"Content-Type: image/png", *lines, b"", b""]
    return b"\r\n".join(head) + body


def test_requests_without_their_body_take_no_place(models_folder: Path, digit: Pixels) -> None:
    with open_port(models_folder, max_concurrent_requests=2) as port:
        for _ in range(20):
            port.connect().send(HELD)
        port.until(lambda: len(port.state.tasks) >= 20 or not port.roads)
        picture = encode(digit)
        good = port.connect()
        good.send(post(picture, b"Content-Length: %d" % len(picture)))
        assert good.answer().status == 200


def test_a_body_that_never_comes_is_given_up_in_time_behind_another_request_too(
    models_folder: Path,
) -> None:
    """What waited behind an answer is parsed later than what is read, and has the same limits."""
    with open_port(models_folder, body_timeout_seconds=0.2) as port:
        client = port.connect()
        client.send(LIVE + HELD)
        assert client.answer().status == 200
        assert code(client) == (408, "body_timeout")


def test_a_head_that_does_not_end_is_closed_in_time(models_folder: Path) -> None:
    with open_port(models_folder, head_timeout_seconds=0.05) as port:
        slow, silent = port.connect(), port.connect()
        slow.send(b"GET /health/live HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        assert code(slow) == (408, "head_timeout")
        assert slow.is_closed()
        assert silent.is_closed()


def test_a_client_that_never_reads_is_closed_in_time(models_folder: Path) -> None:
    with open_port(models_folder, write_timeout_seconds=0.05) as port:
        greedy = port.connect()
        greedy._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        port.until(lambda: bool(port.connections))
        # Answers so long that they do not fit into the kernel's buffers, where nobody counts them.
        greedy.send(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 200)
        port.until(lambda: not port.state.connections)


def test_a_pipelining_client_is_read_no_further_than_it_is_answered(
    models_folder: Path, digit: Pixels
) -> None:
    held = HeldPredictor(real_predictor(models_folder))
    picture = encode(digit)
    with serving_stub(models_folder, held) as service, listening(service) as port:
        greedy = socket.create_connection(("127.0.0.1", port.port), PATIENCE_SECONDS)
        greedy.sendall(post(picture, b"Content-Length: %d" % len(picture)))
        held.wait_until_running()
        greedy.setblocking(False)
        sent = 0
        try:
            while sent < 2**26:
                sent += greedy.send(LIVE * 2**14)
        except BlockingIOError:
            pass  # the kernel's buffers are full, and so is ours
        assert sent < 2**26
        connection = port.connections[-1]
        assert len(connection._received) <= 2**18
        held.permission.set()
        greedy.close()


def test_bodies_under_way_are_bounded_together(models_folder: Path) -> None:
    with open_port(models_folder, max_buffered_bytes=400_000) as port:
        filling = [port.connect() for _ in range(4)]
        for client in filling:
            client.send(post(bytes(99_999), b"Content-Length: 100000"))
        refused = [client for client in filling if _is_answered(client)]
        assert 0 < len(refused) < 4
        assert code(refused[0]) == (503, "overloaded")


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
        client._connection.settimeout(PATIENCE_SECONDS)


def test_after_a_refusal_little_is_read_and_the_connection_ends(
    models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "_LINGER_BYTES", 100_000)
    with open_port(models_folder, max_body_bytes=1_000) as port:
        greedy = port.connect()
        greedy.send(post(b"", b"Content-Length: 9000000000"))
        assert code(greedy) == (413, "body_too_large")
        assert _bytes_taken(greedy, bytes(10_000)) < _ENDLESS


def test_who_sends_a_byte_a_second_after_a_refusal_is_closed_in_time(
    models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "_LINGER_SECONDS", 0.05)
    with open_port(models_folder, body_timeout_seconds=0.05) as port:
        slow = port.connect()
        slow.send(HELD)
        assert code(slow) == (408, "body_timeout")
        port.until(lambda: not port.state.connections)


def test_an_idle_connection_makes_room_for_a_new_one(models_folder: Path) -> None:
    with open_port(models_folder, max_connections=4) as port:
        for _ in range(20):
            port.connect()
        good = port.connect()
        good.send(LIVE)
        assert good.answer().status == 200
        assert len(port.state.connections) <= 4


def test_one_address_leaves_a_quarter_to_the_others() -> None:
    class Busy:
        def evict(self) -> bool:
            return False

        def take_turn(self) -> None:
            raise AssertionError

    clients = Clients(Limits(connections=8, buffered_bytes=800, requests=8))
    taken = [clients.connect("10.0.0.1", Busy()) for _ in range(10)]
    assert [each is not None for each in taken] == [True] * 6 + [False] * 4
    greedy, other = taken[0], clients.connect("10.0.0.2", Busy())
    assert greedy
    assert other
    assert clients.buffer(greedy, 600)
    assert not clients.buffer(greedy, 1)
    assert clients.buffer(other, 100)
    for _ in range(6):
        assert clients.admits(greedy)
        clients.begin(greedy)
    assert not clients.admits(greedy)
    assert clients.admits(other)


def test_the_addresses_of_one_ipv6_network_are_one_client() -> None:
    class Idle:
        def evict(self) -> bool:
            return True

        def take_turn(self) -> None:
            raise AssertionError

    clients = Clients(Limits(8, 8, 8))
    hosts = ("2001:db8::1", "2001:db8::ffff:1", "2001:db8:0:1::1", "::ffff:10.0.0.1", "10.0.0.1")
    found = [clients.connect(host, Idle()) for host in hosts]
    assert found[0] is found[1] is not found[2]
    assert found[3] is found[4]


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"anything"])
@pytest.mark.parametrize("in_pieces", [False, True])
def test_what_follows_a_wish_for_an_upgrade_is_a_body(
    port: Listening, protocol: bytes, in_pieces: bool
) -> None:
    lines = b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: " + protocol, b"HTTP2-Settings: AA"
    head = post(b"", *lines, b"Content-Length: %d" % len(INNER))
    client = port.connect()
    client.send(head if in_pieces else head + INNER)
    if in_pieces:
        port.until(lambda: bool(port.connections[-1]._is_in_body))
        client.send(INNER)
    assert code(client) == (400, "image_unreadable")
    client.send(LIVE)
    answer = client.answer()
    assert (answer.status, answer.headers["X-Request-ID"] == "inner") == (200, False)


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
def test_a_head_that_leaves_a_doubt_ends_the_connection(
    port: Listening, head: str, status: int
) -> None:
    client = port.connect()
    client.send(head.encode() + b"\r\n" + INNER)
    answer = client.answer()
    assert answer.status == status
    assert "error" in orjson.loads(answer.body)
    assert client.is_closed()


def test_garbage_does_not_replace_the_answer_before_it(models_folder: Path, digit: Pixels) -> None:
    held = HeldPredictor(real_predictor(models_folder))
    picture = encode(digit)
    with serving_stub(models_folder, held) as service, listening(service) as port:
        client = port.connect()
        client.send(post(picture, b"Content-Length: %d" % len(picture)) + b"\0garbage\r\n\r\n")
        held.wait_until_running()
        held.permission.set()
        assert client.answer().status == 200
        assert code(client) == (400, "invalid_http")


def test_a_client_that_closes_its_sending_side_is_answered(
    models_folder: Path, digit: Pixels
) -> None:
    held = HeldPredictor(real_predictor(models_folder))
    picture = encode(digit)
    with serving_stub(models_folder, held) as service, listening(service) as port:
        client = port.connect()
        client.send(post(picture, b"Content-Length: %d" % len(picture)))
        held.wait_until_running()
        client._connection.shutdown(socket.SHUT_WR)
        port.until(lambda: port.connections[-1]._is_half_closed)
        held.permission.set()
        answer = client.answer()
        assert (answer.status, answer.headers["Connection"]) == (200, "close")


def test_a_client_that_is_refused_is_not_read_for_a_while(
    models_folder: Path, digit: Pixels
) -> None:
    held = HeldPredictor(real_predictor(models_folder))
    picture = encode(digit)
    whole = post(picture, b"Content-Length: %d" % len(picture))
    with (
        serving_stub(models_folder, held, max_concurrent_requests=1) as service,
        listening(service) as port,
    ):
        port.connect().send(whole)
        held.wait_until_running()
        greedy = port.connect()
        greedy.send(whole)
        assert code(greedy) == (503, "overloaded")
        assert port.call(lambda: port.connections[-1]._is_resting)
        held.permission.set()
        greedy.send(whole)
        assert greedy.answer().status == 200  # once it is read again


def test_head_is_answered_as_get_without_the_body(port: Listening) -> None:
    for path in (b"/", b"/models", b"/health/live", b"/metrics", b"/v2", b"/openapi.json"):
        client = port.connect()
        client.send(b"HEAD %b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % path)
        head = client._received.read()
        assert head.startswith(b"HTTP/1.1 200 ")
        assert head.endswith(b"\r\n\r\n")


def test_where_all_is_taken_who_has_less_than_an_equal_part_gets_something() -> None:
    clients = Clients(Limits(connections=8, buffered_bytes=800, requests=8))
    one, other, late = (clients.connect(f"10.0.0.{each}", _Idle()) for each in range(3))
    assert one
    assert other
    assert late
    for client in (one, other):
        for _ in range(4):
            assert clients.admits(client)
            clients.begin(client)
        assert clients.buffer(client, 400)
    assert not clients.admits(one)
    assert clients.admits(late)
    assert clients.buffer(late, 200)
    assert not clients.buffer(one, 1)


class _Idle:
    def evict(self) -> bool:
        return True

    def take_turn(self) -> None:
        raise AssertionError


def test_a_client_begins_few_requests_in_one_turn_of_the_event_loop(port: Listening) -> None:
    many = [port.connect() for _ in range(100)]
    port.until(lambda: len(port.state.connections) >= 100)
    order: list[bool] = []

    def receive() -> None:
        for connection in port.connections[-100:]:
            connection.data_received(LIVE)
        order.extend(connection._is_answering for connection in port.connections[-100:])
        evicted.extend(connection.evict() for connection in port.connections[-100:])

    evicted: list[bool] = []
    port.call(receive)
    assert 0 < sum(order) < 100
    assert not any(evicted)  # those that wait for their turn are not idle
    assert [client.answer().status for client in many] == [200] * 100


def test_where_all_connections_are_taken_the_client_with_most_makes_room() -> None:
    evicted: list[str] = []

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def evict(self) -> bool:
            evicted.append(self.name)
            return True

        def take_turn(self) -> None:
            raise AssertionError

    clients = Clients(Limits(connections=6, buffered_bytes=8, requests=8))
    for number in range(4):
        assert clients.connect("10.0.0.1", Named(f"greedy {number}"))
    for number in range(3):
        assert clients.connect("10.0.0.2", Named(f"good {number}"))
    assert evicted == ["greedy 0"]


def test_connections_that_wait_for_their_turn_have_it_in_the_order_of_their_coming() -> None:
    """Newer requests do not overtake those that wait, and no turn has more than its number."""
    begun: list[tuple[int, int]] = []
    turn = 0

    class Waiting(_Idle):
        def __init__(self, number: int) -> None:
            self.number = number

        def take_turn(self) -> None:
            begun.append((turn, self.number))

    async def come() -> None:
        nonlocal turn
        loop = asyncio.get_running_loop()
        client = clients.connect("10.0.0.1", _Idle())
        assert client
        for number in range(150):
            if client.takes_turn(loop):
                begun.append((turn, number))
            else:
                client.waiting.append(Waiting(number))
        while client.waiting:
            turn += 1
            await asyncio.sleep(0)
            assert not client.waiting or not client.takes_turn(loop)

    clients = Clients(Limits(connections=8, buffered_bytes=800, requests=8))
    asyncio.run(come())
    assert [number for _, number in begun] == list(range(150))
    turns = [each for each, _ in begun]
    assert max(turns.count(each) for each in turns) == 64


def test_a_health_check_waits_behind_no_other_request_of_its_client() -> None:
    async def come() -> list[bool]:
        loop = asyncio.get_running_loop()
        client = clients.connect("10.0.0.1", _Idle())
        assert client
        while client.takes_turn(loop):
            pass
        return [client.takes_turn(loop, is_urgent=True) for _ in range(100)]

    clients = Clients(Limits(connections=8, buffered_bytes=800, requests=8))
    taken = asyncio.run(come())
    assert taken[0]
    assert 0 < sum(taken) < 10
