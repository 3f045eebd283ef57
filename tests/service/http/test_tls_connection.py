"""Tests of TLS on a real port, for honest clients and for others."""

import logging
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given
from hypothesis import strategies as st

from service.http.lifespan_state import HTTP_CONTEXT
from service.http.tls_connection import TlsConnection, _RecordCounter
from tests.certificates import Authority
from tests.pictures import Pixels, encode
from tests.service.listening import Listening, listening
from tests.service.serving import TIMEOUT_SECONDS, serving_models

HANDSHAKE_BYTES = 2**17
LIVE_REQUEST = b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n"
PNG = {"Content-Type": "image/png"}
AUTHORITY, CLIENTS = Authority(), Authority()
TRUSTING = AUTHORITY.client_context()


@contextmanager
def tls_port(models_folder: Path, folder: Path, **settings: Any) -> Iterator[Listening]:
    pair = AUTHORITY.issue(folder)
    files = {"tls_certificate": pair.certificate, "tls_key": pair.key}
    with (
        serving_models(models_folder, **files, **settings) as service,
        listening(service) as found,
    ):
        yield found


@pytest.fixture(scope="module")
def port(models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listening]:
    with tls_port(models_folder, tmp_path_factory.mktemp("tls")) as found:
        yield found


def failures(port: Listening) -> dict[str, float]:
    """Return the failed handshakes by reason."""
    text = port.application.get("/metrics").text
    name = 'dropserve_tls_handshake_failures_total{reason="'
    lines = [line.removeprefix(name) for line in text.splitlines() if line.startswith(name)]
    return {line.partition('"')[0]: float(line.rpartition(" ")[2]) for line in lines}


def hello() -> bytes:
    """Return the first message of a client."""
    outgoing = ssl.MemoryBIO()
    client = TRUSTING.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def key_updates(log: Path, count: int) -> list[bytes]:
    """Return records that each replace the client's key (RFC 8446, 4.6.3), by its logged secret."""
    lines = [line.split() for line in log.read_text().splitlines()]
    secret = next(bytes.fromhex(line[2]) for line in lines if line[0] == "CLIENT_TRAFFIC_SECRET_0")
    records = []
    for _ in range(count):
        cipher = AESGCM(_expand(secret, b"key", 32))
        content = b"\x18\x00\x00\x01\x00\x16"
        head = b"\x17\x03\x03" + (len(content) + 16).to_bytes(2, "big")
        records.append(head + cipher.encrypt(_expand(secret, b"iv", 12), content, head))
        secret = _expand(secret, b"traffic upd", 48)
    return records


def _expand(secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label (RFC 8446, 7.1)."""
    info = length.to_bytes(2, "big") + bytes([len(label) + 6]) + b"tls13 " + label + b"\x00"
    return HKDFExpand(SHA384(), length, info).derive(secret)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_https_answers_the_bytes_of_http(
    port: Listening, digit: Pixels, version: ssl.TLSVersion
) -> None:
    expected = port.application.post("/predict", encode(digit), headers=PNG).content
    context = AUTHORITY.client_context()
    context.maximum_version = version
    with httpx.Client(base_url=f"https://localhost:{port.port}", verify=context) as client:
        answers = [client.post("/predict", content=encode(digit), headers=PNG) for _ in range(3)]
    assert [each.content for each in answers] == [expected] * 3
    assert port.paths[-1] == "fast"


def test_port_takes_http_1_1_by_alpn_and_resumes_sessions(port: Listening) -> None:
    context = AUTHORITY.client_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    address = ("127.0.0.1", port.port)
    session = None
    resumed = []
    for _ in range(2):
        with context.wrap_socket(
            socket.create_connection(address, TIMEOUT_SECONDS),
            server_hostname="localhost",
            session=session,
        ) as connection:
            connection.sendall(LIVE_REQUEST)
            assert connection.recv(2**14).startswith(b"HTTP/1.1 200")
            assert connection.selected_alpn_protocol() == "http/1.1"
            session = connection.session
            resumed.append(connection.session_reused)
    assert resumed == [False, True]


def test_request_in_records_of_one_byte_is_read_and_many_records_take_turns(
    port: Listening,
) -> None:
    client = port.connect(TRUSTING)
    for each in LIVE_REQUEST * 20:
        client.send(bytes([each]))
    assert [client.read_response().status for _ in range(20)] == [200] * 20


def test_long_body_arrives_whole(port: Listening) -> None:
    client = port.connect(TRUSTING)
    length = 2**22
    head = "POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: "
    client.send(f"{head}{length}\r\n\r\n".encode() + bytes(length) + LIVE_REQUEST)
    assert (client.read_response().status, client.read_response().status) == (400, 200)


def test_last_response_ends_with_close_notify(port: Listening) -> None:
    client = port.connect(TRUSTING)
    client.send(LIVE_REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert client.read_response().status == 200
    assert client.is_closed()  # an end without close_notify would raise SSLEOFError


def test_client_that_ends_its_side_is_answered(port: Listening) -> None:
    client = port.connect(TRUSTING)
    client.send(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n")
    with suppress(ssl.SSLError):  # the answer comes where it expects close_notify
        tls = client._connection
        assert isinstance(tls, ssl.SSLSocket)
        tls.unwrap()
    port.until(port.connections[-1].transport.is_closing)


def test_plain_request_is_told_of_https_and_counted(port: Listening) -> None:
    client = port.connect()
    client.send(LIVE_REQUEST)
    response = client.read_response()
    assert (response.status, response.headers["Connection"]) == (400, "close")
    error = orjson.loads(response.body)
    assert error["code"] == "https_required"
    assert "https://" in error["error"]
    assert response.headers["X-Request-ID"]
    assert response.headers["X-Frame-Options"] == "DENY"
    assert client.is_closed()
    assert failures(port)["plain_http"] == 1
    labels = {"route": "unmatched", "method": "any", "status": "400"}
    assert port.application.metric("dropserve_requests_total", **labels) == 1


@pytest.mark.parametrize("sent", [b"\xff" * 99, b"\x16\x03\x01\xff\xff" + b"\x00" * 300])
def test_garbage_is_closed_at_once_without_a_line_in_the_log(
    port: Listening, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    before = failures(port).get("protocol", 0)
    client = port.connect()
    client.send(sent)
    with suppress(ConnectionResetError):
        client._received.read()  # an alert at most
    assert failures(port)["protocol"] == before + 1
    assert [each for each in caplog.records if each.levelno > logging.DEBUG] == []


def test_tls_on_a_plain_port_is_refused_at_once(models_folder: Path) -> None:
    with serving_models(models_folder) as service, listening(service) as plain:
        client = plain.connect()
        client.send(hello())
        assert client.read_response().status == 400
        assert client.is_closed()


def test_unfinished_handshake_is_closed_after_the_time_of_a_head(
    models_folder: Path, tmp_path: Path
) -> None:
    with tls_port(models_folder, tmp_path, head_timeout_seconds=0.1) as port:
        silent, slow = port.connect(), port.connect()
        slow.send(hello()[:50])
        assert silent.is_closed()
        assert slow.is_closed()
        port.until(lambda: not port.state.connections)
        assert failures(port) == {"incomplete": 1}


def test_unfinished_handshakes_count_as_connections_and_make_room(
    models_folder: Path, tmp_path: Path
) -> None:
    with tls_port(models_folder, tmp_path, max_connections=4) as port:
        for _ in range(20):
            port.connect().send(hello()[:50])
        good = port.connect(TRUSTING)
        good.send(LIVE_REQUEST)
        assert good.read_response().status == 200
        assert len(port.state.connections) <= 4
        assert port.application.state[HTTP_CONTEXT].clients.connections <= 4


def test_few_handshakes_of_one_client_begin_in_one_iteration_of_the_event_loop(
    models_folder: Path, tmp_path: Path
) -> None:
    with tls_port(models_folder, tmp_path) as port:
        many = [port.connect() for _ in range(50)]
        port.until(lambda: len(port.state.connections) >= 50)
        transports = [connection.transport for connection in port.connections]
        first = hello()
        begun: list[bool] = []

        def receive() -> None:
            for transport in transports:
                assert isinstance(transport, TlsConnection)
                transport.data_received(first)
                begun.append(not transport._undecrypted)

        port.call(receive)
        assert 0 < sum(begun) <= 8
        for client in many:
            assert client._received.read(3) == b"\x16\x03\x03"  # each gets a handshake record


def test_handshakes_whose_first_bytes_came_earlier_take_turns_as_well(
    models_folder: Path, tmp_path: Path
) -> None:
    """Or a client could begin many, and then end all their first messages at once."""
    with tls_port(models_folder, tmp_path) as port:
        for _ in range(30):
            port.connect().send(hello()[:1])

        def begun() -> list[Any]:
            transports: list[Any] = [connection.transport for connection in port.connections]
            return [each for each in transports if each is not None and each._has_begun]

        port.until(lambda: len(begun()) == 30)
        transports = begun()
        rest = hello()[1:]

        def receive() -> int:
            for transport in transports:
                transport.data_received(rest)
            return sum(not transport._undecrypted for transport in transports)

        assert 0 < port.call(receive) <= 8


def test_memory_of_unfinished_handshakes_counts_against_the_share_of_their_client(
    models_folder: Path, tmp_path: Path
) -> None:
    """Nine bytes have OpenSSL reserve 128 KiB for the message that they announce."""
    announced = b"\x16\x03\x01\x00\x04\x01" + (2**17).to_bytes(3, "big")
    with tls_port(models_folder, tmp_path, max_buffered_bytes=8 * HANDSHAKE_BYTES) as port:
        for _ in range(20):
            port.connect().send(announced)
        port.until(lambda: len(port.connections) == 20 and len(port.state.connections) == 6)
        clients = port.application.state[HTTP_CONTEXT].clients
        assert clients.buffered_bytes == 6 * HANDSHAKE_BYTES
        for client in port.clients:
            client.close()
        port.until(lambda: clients.buffered_bytes == 0)


def test_finished_handshake_holds_nothing_of_the_share(port: Listening) -> None:
    client = port.connect(TRUSTING)
    client.send(LIVE_REQUEST)
    assert client.read_response().status == 200
    assert port.connections[-1]._buffered_bytes == 0


def test_client_that_changes_its_keys_again_and_again_takes_turns(
    models_folder: Path, tmp_path: Path
) -> None:
    """Each new key costs as much as a short request, and holds nothing for the application."""
    log = tmp_path / "secrets"
    context = AUTHORITY.client_context()
    context.keylog_filename = str(log)
    with tls_port(models_folder, tmp_path) as port:
        client = port.connect(context)
        transport: Any = port.connections[-1].transport
        sent = b"".join(key_updates(log, 100))

        def receive() -> int:
            transport.data_received(sent)
            return len(transport._undecrypted)

        assert port.call(receive) == len(sent) * 92 // 100, "eight are read, the rest waits"
        port.until(lambda: not transport._undecrypted)
        client.close()


def test_undecrypted_bytes_count_against_the_share_of_their_client(
    models_folder: Path, tmp_path: Path
) -> None:
    limit = 2 * HANDSHAKE_BYTES  # of which one client may have three quarters
    with tls_port(models_folder, tmp_path, max_buffered_bytes=limit) as port:
        client = port.connect(TRUSTING)
        port.until(lambda: len(port.state.connections) == 1)
        tls = client._connection
        assert isinstance(tls, ssl.SSLSocket)
        blocked = threading.Event()
        # The loop is held up, so that many short records arrive in one read.
        holding = port.application.portal.start_task_soon(blocked.wait, TIMEOUT_SECONDS)
        with suppress(OSError):
            for _ in range(10_000):  # of 23 bytes each
                client.send(b"G")
        blocked.set()
        holding.result()
        port.until(lambda: not port.state.connections)


def test_client_certificate_is_needed_where_a_client_ca_is_named(
    models_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "clients").mkdir()
    ca = CLIENTS.write(tmp_path / "clients")
    pairs = {
        "own": CLIENTS.issue(tmp_path / "clients", name="own"),
        "foreign": AUTHORITY.issue(tmp_path / "clients", name="foreign"),
        "late": CLIENTS.issue(tmp_path / "clients", name="late", days=-1),
    }
    with tls_port(models_folder, tmp_path, tls_client_ca=ca) as port:
        url = f"https://localhost:{port.port}/health/live"
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            for pair in (None, pairs["foreign"], pairs["late"]):
                context = AUTHORITY.client_context(pair)
                context.maximum_version = version
                with pytest.raises(httpx.TransportError):
                    httpx.get(url, verify=context)
            context = AUTHORITY.client_context(pairs["own"])
            context.maximum_version = version
            assert httpx.get(url, verify=context).status_code == 200
        assert failures(port) == {"client_certificate": 6}


def test_no_request_is_lost_while_the_certificate_is_replaced(
    models_folder: Path, tmp_path: Path, digit: Pixels
) -> None:
    with tls_port(models_folder, tmp_path) as port:
        certificate = port.application.state[HTTP_CONTEXT].certificate
        first, stop = certificate.context, threading.Event()
        statuses: list[int] = []

        def has_answered(count: int) -> bool:
            return len(statuses) >= count

        def send(keep: bool) -> None:
            url = f"https://localhost:{port.port}/predict"
            limits = httpx.Limits(max_keepalive_connections=None if keep else 0)
            with httpx.Client(verify=TRUSTING, limits=limits, timeout=TIMEOUT_SECONDS) as client:
                while not stop.is_set():
                    answer = client.post(url, content=encode(digit), headers=PNG)
                    statuses.append(answer.status_code)

        threads = [threading.Thread(target=send, args=(keep,)) for keep in (True, False)]
        for thread in threads:
            thread.start()
        contexts = {first}
        for _ in range(5):
            AUTHORITY.issue(tmp_path)
            for _ in range(2):
                port.call(certificate.refresh)
            contexts.add(certificate.context)
            port.until(partial(has_answered, len(statuses) + 5))
        stop.set()
        for thread in threads:
            thread.join()
        assert len(contexts) == 6
        assert set(statuses) == {200}


def test_client_that_does_not_read_is_not_read(port: Listening) -> None:
    """Within TLS, too, what a client sends may call for answers: they would pile up unread."""
    port.connect(TRUSTING)
    connection = port.connections[-1]
    transport = connection.transport
    assert isinstance(transport, TlsConnection)

    def pause_and_resume() -> list[bool]:
        tcp: Any = transport._tcp
        found = []
        for change in (transport.pause_writing, transport.resume_writing):
            change()
            found.append(tcp.is_reading())
        return found

    assert port.call(pause_and_resume) == [False, True]


@given(st.lists(st.integers(0, 9)), st.lists(st.integers(1, 12)), st.integers(1, 8))
def test_records_are_counted_however_they_are_cut(
    lengths: list[int], cuts: list[int], limit: int
) -> None:
    records = [b"\x17\x03\x03" + each.to_bytes(2, "big") + bytes(each) for each in lengths]
    ends = [sum(map(len, records[: number + 1])) for number in range(len(records))]
    stream, counter, position = b"".join(records), _RecordCounter(), 0
    for cut in [*cuts, len(stream)]:
        end = min(position + cut, len(stream))
        while position < end:
            size, number = counter.count(stream[position:end], limit)
            complete = [each for each in ends if position < each <= position + size]
            assert (number, size > 0) == (len(complete), True)
            assert number <= limit
            position += size
    assert position == len(stream)


def test_client_that_breaks_the_session_and_reads_nothing_is_closed_in_time(
    models_folder: Path, tmp_path: Path
) -> None:
    with tls_port(models_folder, tmp_path, write_timeout_seconds=0.1) as port:
        client = port.connect(TRUSTING)
        connection = port.connections[-1]
        transport: Any = connection.transport

        def fill() -> None:
            transport._tcp.set_write_buffer_limits(high=2**30)
            transport.write(bytes(2**24))
            connection._deadline.clear()  # as while a response is awaited

        port.call(fill)
        os.write(client._connection.fileno(), b"\xff" * 99)
        port.until(lambda: not port.state.connections)
