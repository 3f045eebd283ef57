"""Draining: what connections, health checks and signals do from SIGTERM to the shutdown."""

import asyncio
import math
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send
from structlog.testing import capture_logs

from service.http import graceful_shutdown
from service.http.drain_state import DRAINING_REASON, DrainState
from service.http.graceful_shutdown import GracefulServer, ServerConfig
from service.http.lifespan_state import HTTP_CONTEXT
from service.worker_supervisor import WorkerSupervisor
from tests.pictures import Pixels, encode
from tests.service.listening import Client, Listening, listening
from tests.service.serving import Application, metric

GRACE_SECONDS, DRAIN_SECONDS = 20, 5.0


@pytest.fixture
def port(service: Application) -> Iterator[Listening]:
    """The shared application, which drains during the test if the test says so."""
    with listening(service) as found:
        yield found
        drain_state(service).is_draining = False


def drain_state(service: Application) -> DrainState:
    drain: DrainState = service.state[HTTP_CONTEXT].drain
    return drain


def predict(digit: Pixels, query: str = "") -> bytes:
    body = encode(digit)
    head = f"POST /predict{query} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def is_last(client: Client) -> bool:
    """Read a good response; return whether it closes the connection."""
    response = client.read_response()
    assert response.status == 200
    return response.headers["Connection"] == "close"


@pytest.mark.parametrize("query", ["", "?model=digits"], ids=["fast path", "ASGI"])
def test_kept_alive_connection_is_closed_behind_its_next_response(
    port: Listening, digit: Pixels, query: str
) -> None:
    client, whole = port.connect(), predict(digit, query)
    client.send(whole)
    assert not is_last(client)
    drain_state(port.application).begin()
    client.send(whole)  # the connection has stayed open
    assert is_last(client)
    assert client.is_closed()


def test_remembered_request_is_closed_behind_too(port: Listening, digit: Pixels) -> None:
    client, whole = port.connect(), predict(digit)
    for _ in range(2):
        client.send(whole)
        assert not is_last(client)
    assert port.connections[-1]._remembered is not None
    drain_state(port.application).begin()
    client.send(whole)
    assert is_last(client)


@pytest.mark.parametrize("query", ["", "?model=digits"], ids=["fast path", "ASGI"])
def test_pipelined_requests_are_all_answered_and_the_last_one_closes(
    port: Listening, digit: Pixels, query: str
) -> None:
    drain_state(port.application).begin()
    client = port.connect()
    client.send(predict(digit, query) * 3)
    assert [is_last(client) for _ in range(3)] == [False, False, True]
    assert client.is_closed()


def test_request_that_has_begun_behind_another_is_answered(port: Listening, digit: Pixels) -> None:
    drain_state(port.application).begin()
    client, whole = port.connect(), predict(digit)
    client.send(whole + whole[:30])
    assert not is_last(client)
    client.send(whole[30:])
    assert is_last(client)


def test_control_listener_keeps_its_connections(port: Listening, digit: Pixels) -> None:
    drain_state(port.application).begin()
    client = port.connect()
    port.until(lambda: len(port.connections) > 0)
    port.connections[-1].is_control = True
    for _ in range(2):
        client.send(predict(digit).replace(b"Host: x", b"Host: localhost:8001"))
        assert not is_last(client)


def test_service_that_drains_is_live_and_not_ready(service: Application, port: Listening) -> None:
    assert service.get("/health/ready").status_code == 200
    drain_state(service).begin()
    plain, v2 = service.get("/health/ready"), service.get("/v2/health/ready")
    assert (plain.status_code, plain.json()) == (
        503,
        {"error": DRAINING_REASON, "code": "not_ready"},
    )
    assert (v2.status_code, v2.json()["ready"]) == (503, False)
    assert service.get("/health/live").status_code == 200
    assert service.get("/v2/health/live").status_code == 200
    assert service.get("/v2/models/digits/ready").status_code == 200


class StartedServer(GracefulServer):
    """A server that has started, without sockets; the times of its watchdogs are recorded."""

    def __init__(self, delay: float) -> None:
        config = ServerConfig("", timeout_graceful_shutdown=GRACE_SECONDS)
        config.drain_delay_seconds = delay
        super().__init__(config)
        self.started = True
        self.reports: list[str] = []
        self.drain = DrainState(lambda: self.reports.append("draining"))
        context = SimpleNamespace(drain=self.drain)
        self.lifespan: Any = SimpleNamespace(state={HTTP_CONTEXT: context})

    def signal(self, number: signal.Signals) -> None:
        self.handle_exit(number, None)

    def tick(self) -> bool:
        """Return whether the shutdown begins."""
        return asyncio.run(self.on_tick(1))


@pytest.fixture
def watchdogs(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of each watchdog that is started; none of them acts."""
    seconds: list[float] = []
    monkeypatch.setattr(graceful_shutdown, "start_exit_watchdog", seconds.append)
    return seconds


def test_sigterm_drains_for_the_delay_and_reports_it_once(watchdogs: list[float]) -> None:
    server = StartedServer(DRAIN_SECONDS)
    server.signal(signal.SIGTERM)
    assert server.drain.is_draining
    with capture_logs() as log:
        assert [server.tick(), server.tick()] == [False, False]
    assert [(line["event"], line["seconds"]) for line in log] == [("draining", DRAIN_SECONDS)]
    assert server.reports == ["draining"]
    assert watchdogs == [DRAIN_SECONDS + GRACE_SECONDS]
    assert server._drain_until is not None
    server._drain_until -= DRAIN_SECONDS
    assert server.tick()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_draining(watchdogs: list[float], number: signal.Signals) -> None:
    server = StartedServer(DRAIN_SECONDS)
    server.signal(signal.SIGTERM)
    server.signal(number)
    assert server.tick()
    assert watchdogs == [DRAIN_SECONDS + GRACE_SECONDS, GRACE_SECONDS]
    assert not server.force_exit


def test_signal_that_comes_while_the_server_looks_at_the_time_is_not_lost(
    watchdogs: list[float],
) -> None:
    server = StartedServer(DRAIN_SECONDS)
    server.drain._report = lambda: server.signal(signal.SIGTERM)
    server.signal(signal.SIGTERM)
    assert server.tick()


@pytest.mark.parametrize(
    ("delay", "number"), [(DRAIN_SECONDS, signal.SIGINT), (0.0, signal.SIGTERM)]
)
def test_ctrl_c_and_no_delay_shut_down_at_once(
    watchdogs: list[float], delay: float, number: signal.Signals
) -> None:
    server = StartedServer(delay)
    server.signal(number)
    assert server.tick()
    assert server.drain.is_draining  # a check on an open connection fails
    assert watchdogs == [GRACE_SECONDS]


def test_sigterm_before_the_start_is_complete_does_not_wait(watchdogs: list[float]) -> None:
    server = StartedServer(DRAIN_SECONDS)
    server.started = False
    server.signal(signal.SIGTERM)
    assert server.tick()


def test_worker_drains_until_its_supervisor_tells_it_to_end(
    watchdogs: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graceful_shutdown, "parent_process", object)
    server = StartedServer(DRAIN_SECONDS)
    for _ in range(3):  # from an init system, and from the supervisor
        server.signal(signal.SIGTERM)
    assert not server.tick()
    server.end()
    assert server.tick()


def test_ctrl_c_after_the_supervisors_word_does_not_cut_requests(
    watchdogs: list[float],
) -> None:
    """A terminal interrupts workers as well, before or after their supervisor tells them to end."""
    server = StartedServer(0)
    server.end()
    server.signal(signal.SIGINT)
    assert (server.should_exit, server.force_exit) == (True, False)
    server.signal(signal.SIGINT)
    assert server.force_exit


@pytest.mark.parametrize("inside", ["report", "watchdog"])
def test_supervisors_word_inside_the_handler_of_ctrl_c_does_not_cut_requests(
    monkeypatch: pytest.MonkeyPatch, inside: str
) -> None:
    """Python runs the handler of one signal between two lines of another's."""
    server = StartedServer(0)
    words = [server.end] if inside == "watchdog" else []

    def watchdog(_seconds: float) -> None:
        if words:
            words.pop()()

    monkeypatch.setattr(graceful_shutdown, "start_exit_watchdog", watchdog)
    if inside == "report":
        server.lifespan.state[HTTP_CONTEXT].drain = SimpleNamespace(begin=server.end)
    server.signal(signal.SIGINT)
    assert (server.should_exit, server.force_exit) == (True, False)


def test_supervisor_adds_and_restarts_no_worker_while_the_others_drain() -> None:
    """A new worker would not drain, and would be ready again."""
    supervisor = WorkerSupervisor.__new__(WorkerSupervisor)  # whose start would take the signals
    supervisor._drain_until = math.inf
    supervisor.processes, supervisor.processes_num = [], 1
    supervisor.handle_hup()
    supervisor.handle_ttin()
    assert (supervisor.processes, supervisor.processes_num) == ([], 1)


def test_draining_is_in_the_metrics(service: Application) -> None:
    before = metric(service.get("/metrics").text, "dropserve_draining")
    drain_state(service).report()
    after = metric(service.get("/metrics").text, "dropserve_draining")
    assert (before, after) == (0, 1)


def test_application_that_a_signal_meets_while_it_starts_is_ended_in_order() -> None:
    ended: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        scope["state"][HTTP_CONTEXT] = SimpleNamespace(certificate=None)
        server.should_exit = True
        await send({"type": "lifespan.startup.complete"})
        ended.append((await receive())["type"])
        await send({"type": "lifespan.shutdown.complete"})

    server = GracefulServer(ServerConfig(app, lifespan="on", log_config=None))
    asyncio.run(server.serve([]))
    assert ended == ["lifespan.shutdown"]
