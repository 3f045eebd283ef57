"""A request that is hidden in the body of another is never executed, however its end is said."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.reliability.framings import CONTROL_ROUTE, Framing, framings, inner_request
from benchmarks.reliability.smuggling import h11_accepts
from benchmarks.reliability.wire import Answer, answers, talk
from tests.service.process import ServiceProcess, service_process

ROUTES = ("/v2/models/digits/infer", "/predict", "/nope")
HIDDEN = "hidden"
EVERY = framings("/nope", inner_request(HIDDEN))
MAY_SKIP = {"an empty line before", "LF before"}
"""RFC 9112 lets a server skip empty lines before a request; h11 does not."""
STRICT = [
    each.name
    for each in EVERY
    if each.name not in MAY_SKIP and not h11_accepts(each.head + each.body)
]
AT_ONCE = 64
PAUSE_SECONDS = 0.05
SILENCE_SECONDS = 0.3
PIECE_BYTES = 61


@dataclass(frozen=True)
class Attempt:
    """One framing, sent in one way to one route."""

    path: str
    way: str
    answers: list[Answer]
    executed: bool
    was_closed: bool


Attempts = dict[str, list[Attempt]]
"""By the framing's name."""


@pytest.fixture(scope="module")
def service(models_folder: Path) -> Iterator[ServiceProcess]:
    with service_process(models_folder) as process:
        yield process


@pytest.fixture(scope="module")
def attempts(service: ServiceProcess) -> Attempts:
    """Send all of them, many at once: most of the time is waiting for what must not come."""

    def attempt(framing: Framing, path: str, way: str) -> Attempt:
        message = framing.head + framing.body
        size = max(PIECE_BYTES, len(message) // 20)
        pieces = [message[i : i + size] for i in range(0, len(message), size)]
        writes = {**framing.writes, "pieces": pieces}
        pause = PAUSE_SECONDS if way == "two writes" else 0.0
        address = ("127.0.0.1", service.port)
        data, was_closed = talk(address, writes[way], silence=SILENCE_SECONDS, pause=pause)
        found = answers(data)
        executed = any(each.request_id == HIDDEN for each in found)
        return Attempt(path, way, found, executed, was_closed)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        work = [
            (framing.name, pool.submit(attempt, framing, path, way))
            for path in ROUTES
            for framing in framings(path, inner_request(HIDDEN))
            for way in ("one write", "two writes", "pieces")
        ]
        found: Attempts = {each.name: [] for each in EVERY}
        for name, each in work:
            found[name].append(each.result())
        return found


@pytest.mark.parametrize("name", [each.name for each in EVERY if not each.is_pipelined])
def test_the_hidden_request_is_not_executed(attempts: Attempts, name: str) -> None:
    assert [(each.path, each.way) for each in attempts[name] if each.executed] == []


def test_a_request_that_is_pipelined_is_answered_for_itself(attempts: Attempts) -> None:
    """Or else the tests above could not see one that is executed."""
    assert any(each.executed for each in attempts["pipelined behind GET"])
    assert any(each.executed for each in attempts["pipelined behind POST"])


@pytest.mark.parametrize("name", STRICT)
def test_what_h11_refuses_is_refused_and_the_connection_closed(
    attempts: Attempts, name: str
) -> None:
    for attempt in attempts[name]:
        if (attempt.path, attempt.way) == ("/nope", "one write"):
            assert attempt.was_closed
            statuses = {each.status for each in attempt.answers}
            assert statuses.isdisjoint({200, 404, 405})


@pytest.mark.parametrize("headers", [{}, {"Origin": "http://x"}, {"X-Forwarded-For": "127.0.0.1"}])
@pytest.mark.parametrize("route", [CONTROL_ROUTE, "/models/digits/pin?version=1"])
def test_the_public_port_changes_no_model(
    service: ServiceProcess, headers: dict[str, str], route: str
) -> None:
    with service.client() as client:
        assert client.post(route, headers=headers).status_code == 403
