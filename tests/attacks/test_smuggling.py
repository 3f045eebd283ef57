"""Attacks by request smuggling: a request hidden in the body of another is never executed."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.reliability.framings import CONTROL_ROUTE, Framing, framings, inner_request
from benchmarks.reliability.smuggling import h11_accepts
from benchmarks.reliability.wire import Response, parse_responses, send_raw
from tests.service.process import ServiceProcess, service_process

ROUTES = ("/v2/models/digits/infer", "/predict", "/nope")
HIDDEN_REQUEST_ID = "hidden"
FRAMINGS = framings("/nope", inner_request(HIDDEN_REQUEST_ID))
OPTIONAL_FRAMINGS = {"an empty line before", "LF before"}
"""RFC 9112 lets a server skip empty lines before a request; h11 does not."""
FRAMINGS_REFUSED_BY_H11 = [
    each.name
    for each in FRAMINGS
    if each.name not in OPTIONAL_FRAMINGS and not h11_accepts(each.head + each.body)
]
CONCURRENT_CONNECTIONS = 64
PAUSE_SECONDS = 0.05
SILENCE_SECONDS = 0.3
PIECE_BYTES = 61


@dataclass(frozen=True)
class Attempt:
    """One framing, sent to one route and split into writes in one way."""

    path: str
    split: str
    responses: list[Response]
    executed: bool
    was_closed: bool


Attempts = dict[str, list[Attempt]]
"""Attempts by the name of their framing."""


@pytest.fixture(scope="module")
def service(models_folder: Path) -> Iterator[ServiceProcess]:
    with service_process(models_folder) as process:
        yield process


@pytest.fixture(scope="module")
def attempts(service: ServiceProcess) -> Attempts:
    """Send every framing, many at once, since most of the time is waiting for no response."""

    def attempt(framing: Framing, path: str, split: str) -> Attempt:
        message = framing.head + framing.body
        size = max(PIECE_BYTES, len(message) // 20)
        pieces = [message[i : i + size] for i in range(0, len(message), size)]
        writes = {**framing.writes, "pieces": pieces}
        pause = PAUSE_SECONDS if split == "two writes" else 0.0
        address = ("127.0.0.1", service.port)
        data, was_closed = send_raw(address, writes[split], silence=SILENCE_SECONDS, pause=pause)
        found = parse_responses(data)
        executed = any(each.request_id == HIDDEN_REQUEST_ID for each in found)
        return Attempt(path, split, found, executed, was_closed)

    with ThreadPoolExecutor(CONCURRENT_CONNECTIONS) as pool:
        work = [
            (framing.name, pool.submit(attempt, framing, path, split))
            for path in ROUTES
            for framing in framings(path, inner_request(HIDDEN_REQUEST_ID))
            for split in ("one write", "two writes", "pieces")
        ]
        found: Attempts = {each.name: [] for each in FRAMINGS}
        for name, each in work:
            found[name].append(each.result())
        return found


@pytest.mark.parametrize("name", [each.name for each in FRAMINGS if not each.is_pipelined])
def test_request_hidden_in_a_body_is_not_executed(attempts: Attempts, name: str) -> None:
    assert [(each.path, each.split) for each in attempts[name] if each.executed] == []


def test_pipelined_request_is_executed(attempts: Attempts) -> None:
    """This shows that the tests above would notice an executed request."""
    assert any(each.executed for each in attempts["pipelined behind GET"])
    assert any(each.executed for each in attempts["pipelined behind POST"])


@pytest.mark.parametrize("name", FRAMINGS_REFUSED_BY_H11)
def test_head_that_h11_refuses_is_refused_and_the_connection_closed(
    attempts: Attempts, name: str
) -> None:
    for attempt in attempts[name]:
        if (attempt.path, attempt.split) == ("/nope", "one write"):
            assert attempt.was_closed
            statuses = {each.status for each in attempt.responses}
            assert statuses.isdisjoint({200, 404, 405})


@pytest.mark.parametrize("headers", [{}, {"Origin": "http://x"}, {"X-Forwarded-For": "127.0.0.1"}])
@pytest.mark.parametrize("route", [CONTROL_ROUTE, "/models/digits/pin?version=1"])
def test_public_port_refuses_control_requests(
    service: ServiceProcess, headers: dict[str, str], route: str
) -> None:
    with service.client() as client:
        assert client.post(route, headers=headers).status_code == 403
