"""Hide requests inside others: does the service execute one, directly or behind a proxy?

    python -m benchmarks.reliability.smuggling [--quick] [--record] [--only direct,nginx,haproxy]

More than 100 framings, each for three routes (one of the fast path, one of the ASGI path, one that
does not exist), each in one write, in two and byte by byte; to the service itself, behind nginx and
behind HAProxy. The hidden request was executed if its X-Request-ID is in a response or in the
service's log. Also checked: the response of each control route to a remote client, and which
requests the service accepts that h11, a strict parser, refuses. The proxies need root, or nginx and
HAProxy installed.
"""

import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count

import h11

from benchmarks.reliability.framings import CONTROL_ROUTE, Framing, framings, inner_request
from benchmarks.reliability.program import Options, run
from benchmarks.reliability.proxies import ProxyMissingError, install, proxy
from benchmarks.reliability.report import Criterion, Report
from benchmarks.reliability.services import Service, control_listener
from benchmarks.reliability.wire import (
    Address,
    Response,
    exchange,
    parse_responses,
    request,
    send_raw,
)

_PATHS = ("/v2/models/digits/infer", "/predict", "/nope")
_THREADS = 24
_SILENCE_SECONDS = 0.5
_PAUSE_SECONDS = 0.1
"""Pause between the head and the body, so that they arrive in separate reads."""

_CONTROL_ROUTES = (
    CONTROL_ROUTE,
    "/v2/repository/models/digits/load",
    "/models/digits/pin?version=1",
    "/models/digits/follow",
    "/models/digits/canary?version=1",
    "/models/digits/promote",
    "/models/digits/rollback",
)
_FORGED_HEADERS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "Origin": ("Origin: http://evil.example",),
    "X-Forwarded-For": ("X-Forwarded-For: 127.0.0.1",),
    "Forwarded": ("Forwarded: for=127.0.0.1",),
    "X-Real-IP": ("X-Real-IP: ::1",),
    "Host of this machine": ("Host: localhost",),
}
_REFUSED = {400, 403, 404, 405, 421}


@dataclass(frozen=True)
class Trial:
    """One framing, sent in one of its ways, and the responses."""

    framing: Framing
    path: str
    way: str
    request_id: str
    """The id of the inner request."""
    responses: list[Response]
    was_closed: bool


def measure(options: Options) -> Report:
    """Send every framing to every target, then try every control route."""
    targets = [each for each in ("direct", "nginx", "haproxy") if options.includes(each)]
    rows, criteria, notes = [], [], []
    with ExitStack() as stack:
        service = stack.enter_context(
            Service(
                options.folder("service"),
                options.models_folder,
                options.port,
                *control_listener(options.port)[0],
                cores=options.service_cores,
            )
        )
        for index, target in enumerate(targets):
            try:
                address, open_address = _addresses(stack, options, target, index, service)
            except ProxyMissingError as error:
                notes.append(f"Left out, {target}: {error}")
                continue
            options.log(f"framings, {target}")
            trials = _try_all(address, target, quick=options.quick)
            executed = [each for each in _executed(trials, service) if _is_fault(each, target)]
            _restore(service)
            accepted = _accepted_changes(open_address)
            _restore(service)
            names = {each.framing.name for each in trials}
            faulty = sorted({each.framing.name for each in executed})
            rows.append(
                (target, f"{len(names)}", f"{len(trials)}", f"{len(executed)}", f"{len(accepted)}")
            )
            criteria.append(Criterion(f"{target}: executed", f"{len(executed)}", "0", not executed))
            criteria.append(
                Criterion(f"{target}: unauthorized changes", f"{len(accepted)}", "0", not accepted)
            )
            notes += [f"Executed, {target}: {'; '.join(faulty)}."] if faulty else []
            notes += [f"Changed a model, {target}: {'; '.join(accepted)}."] if accepted else []
            if target == "direct":
                notes.append(_compare_with_h11(trials))
    return Report(
        title="Request smuggling",
        setting=f"{options}. Every framing for {len(_PATHS)} routes, in one write, in two, and "
        "byte by byte; the hidden request unloads the model.",
        columns=("to", "framings", "sent", "executed", "control routes open"),
        rows=rows,
        criteria=criteria,
        notes=notes,
    )


def _addresses(
    stack: ExitStack, options: Options, target: str, index: int, service: Service
) -> tuple[Address, Address]:
    """Return where to send framings, and where only the service refuses control routes."""
    if target == "direct":
        return service.address, service.address
    install(target, options.log)
    folder = options.folder(target)
    return stack.enter_context(proxy(target, folder, options.port + 2 + 2 * index, service.address))


def _try_all(address: Address, target: str, *, quick: bool) -> list[Trial]:
    numbers, lock = count(), threading.Lock()

    def send(path: str, index: int, way: str) -> Trial:
        with lock:
            request_id = f"inner-{target}-{next(numbers)}"
        framing = framings(path, inner_request(request_id))[index]
        pause = _PAUSE_SECONDS if way == "two writes" else 0.0
        data, closed = send_raw(address, framing.writes[way], silence=_SILENCE_SECONDS, pause=pause)
        return Trial(framing, path, way, request_id, parse_responses(data), closed)

    paths = (_PATHS[0], _PATHS[-1]) if quick else _PATHS
    with ThreadPoolExecutor(_THREADS) as pool:
        work = [
            pool.submit(send, path, index, way)
            for path in paths
            for index, framing in enumerate(framings(path, inner_request("some-inner")))
            for way in framing.writes
        ]
        return [each.result() for each in work]


def _executed(trials: Sequence[Trial], service: Service) -> list[Trial]:
    """Return the trials whose inner request was executed: answered, or in the service's log."""
    logged = {str(each.get("request_id")) for each in service.logged("request")}
    return [
        each
        for each in trials
        if each.request_id in logged
        or any(response.request_id == each.request_id for response in each.responses)
    ]


def _is_fault(trial: Trial, target: str) -> bool:
    """Whether execution is a fault: always behind a proxy, which refuses pipelined ones (403)."""
    return target != "direct" or not trial.framing.is_pipelined


def _accepted_changes(address: Address) -> list[str]:
    """Try each control route with each set of headers; return those that were not refused."""
    found = []
    for route in _CONTROL_ROUTES:
        for name, headers in _FORGED_HEADERS.items():
            response = exchange(address, request("POST", route, b"", *headers))
            if response is not None and response.status not in _REFUSED:
                found.append(f"{route} ({name}): {response.status}")
    return found


def _restore(service: Service) -> None:
    """Load the model again if something has unloaded it."""
    if not service.is_ready():
        message = request("POST", "/v2/repository/models/digits/load", b"")
        exchange(control_listener(service.address[1])[1], message, timeout=60)
        service.wait_until_ready()


def _compare_with_h11(trials: Sequence[Trial]) -> str:
    """Describe which framings h11 refuses and the service accepts."""
    accepted = set()
    for trial in trials:
        if trial.path != _PATHS[-1] or trial.way != "one write" or not trial.responses:
            continue
        status = trial.responses[
            0
        ].status  # of a route that does not exist: 404 means that it was parsed
        if status in {404, 405} and not h11_accepts(trial.framing.head + trial.framing.body):
            accepted.add(trial.framing.name)
    listed = "; ".join(sorted(accepted)) or "none"
    return f"Refused by h11 and parsed by the service: {listed}."


def h11_accepts(data: bytes) -> bool:
    """Return whether h11 parses all of the first request in `data`."""
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(data)
    try:
        while True:
            event = parser.next_event()
            if isinstance(event, h11.EndOfMessage) or event in (h11.NEED_DATA, h11.PAUSED):
                return True
    except h11.RemoteProtocolError:
        return False


if __name__ == "__main__":
    sys.exit(run("smuggling", __doc__, measure, sys.argv[1:], 8500))
