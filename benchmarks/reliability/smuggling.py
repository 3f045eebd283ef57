"""Requests hidden in others: is one executed, by the service or through a proxy before it?

    python -m benchmarks.reliability.smuggling [--quick] [--record] [--only direct,nginx,haproxy]

More than 100 framings, each for three routes (one that is parsed apart for speed, one that is not,
one that is none), each in one write, in two and byte by byte; to the service itself, behind nginx
and behind HAProxy. The hidden request is executed if its X-Request-ID is in an answer or in the
service's log. Beside it, what each control route answers to a client from elsewhere, and where h11,
a strict parser, refuses what the service takes. Needs root or nginx and HAProxy for two thirds.
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
from benchmarks.reliability.report import Bar, Report
from benchmarks.reliability.services import Service, control_listener
from benchmarks.reliability.wire import Address, Answer, answers, ask, request, talk

_PATHS = ("/v2/models/digits/infer", "/predict", "/nope")
_AT_ONCE = 24
_SILENCE_SECONDS = 0.5
_PAUSE_SECONDS = 0.1
"""Between the head and the body: they arrive in reads of their own."""

_CONTROL_ROUTES = (
    CONTROL_ROUTE,
    "/v2/repository/models/digits/load",
    "/models/digits/pin?version=1",
    "/models/digits/follow",
    "/models/digits/canary?version=1",
    "/models/digits/promote",
    "/models/digits/rollback",
)
_DISGUISES: dict[str, tuple[str, ...]] = {
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
    """One framing, sent in one way."""

    framing: Framing
    path: str
    way: str
    request_id: str
    """Of the inner request."""
    answers: list[Answer]
    was_closed: bool


def measure(options: Options) -> Report:
    """Try every framing on every target, then every control route."""
    targets = [each for each in ("direct", "nginx", "haproxy") if options.wants(each)]
    rows, bars, notes = [], [], []
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
            options.say(f"framings, {target}")
            trials = _try_all(address, target, quick=options.quick)
            executed = [each for each in _executed(trials, service) if _is_fault(each, target)]
            _mend(service)
            changed = _changes(open_address)
            _mend(service)
            names = {each.framing.name for each in trials}
            faulty = sorted({each.framing.name for each in executed})
            rows.append(
                (target, f"{len(names)}", f"{len(trials)}", f"{len(executed)}", f"{len(changed)}")
            )
            bars.append(Bar(f"{target}: executed", f"{len(executed)}", "0", not executed))
            bars.append(Bar(f"{target}: changes by strangers", f"{len(changed)}", "0", not changed))
            notes += [f"Executed, {target}: {'; '.join(faulty)}."] if faulty else []
            notes += [f"Changed a model, {target}: {'; '.join(changed)}."] if changed else []
            if target == "direct":
                notes.append(_compared(trials))
    return Report(
        title="Requests hidden in others",
        setting=f"{options}. Every framing for {len(_PATHS)} routes, in one write, in two, and "
        "byte by byte; the hidden request unloads the model.",
        columns=("to", "framings", "sent", "executed", "control routes open"),
        rows=rows,
        bars=bars,
        notes=notes,
    )


def _addresses(
    stack: ExitStack, options: Options, target: str, index: int, service: Service
) -> tuple[Address, Address]:
    """Return where to send framings, and where nobody but the service refuses control routes."""
    if target == "direct":
        return service.address, service.address
    install(target, options.say)
    folder = options.folder(target)
    return stack.enter_context(proxy(target, folder, options.port + 2 + 2 * index, service.address))


def _try_all(address: Address, target: str, *, quick: bool) -> list[Trial]:
    numbers, lock = count(), threading.Lock()

    def one(path: str, index: int, way: str) -> Trial:
        with lock:
            request_id = f"inner-{target}-{next(numbers)}"
        framing = framings(path, inner_request(request_id))[index]
        pause = _PAUSE_SECONDS if way == "two writes" else 0.0
        data, closed = talk(address, framing.writes[way], silence=_SILENCE_SECONDS, pause=pause)
        return Trial(framing, path, way, request_id, answers(data), closed)

    paths = (_PATHS[0], _PATHS[-1]) if quick else _PATHS
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        work = [
            pool.submit(one, path, index, way)
            for path in paths
            for index, framing in enumerate(framings(path, inner_request("some-inner")))
            for way in framing.writes
        ]
        return [each.result() for each in work]


def _executed(trials: Sequence[Trial], service: Service) -> list[Trial]:
    """Return those whose inner request was taken for one: answered, or in the service's log."""
    logged = {str(each.get("request_id")) for each in service.logged("request")}
    return [
        each
        for each in trials
        if each.request_id in logged
        or any(answer.request_id == each.request_id for answer in each.answers)
    ]


def _is_fault(trial: Trial, target: str) -> bool:
    """Through a proxy none may be executed: one that is pipelined there gets the proxy's 403."""
    return target != "direct" or not trial.framing.is_pipelined


def _changes(address: Address) -> list[str]:
    """Try each control route in each disguise; return those that were not refused."""
    found = []
    for route in _CONTROL_ROUTES:
        for name, headers in _DISGUISES.items():
            answer = ask(address, request("POST", route, b"", *headers))
            if answer is not None and answer.status not in _REFUSED:
                found.append(f"{route} ({name}): {answer.status}")
    return found


def _mend(service: Service) -> None:
    """Load the model again where something has unloaded it."""
    if not service.is_ready():
        message = request("POST", "/v2/repository/models/digits/load", b"")
        ask(control_listener(service.address[1])[1], message, timeout=60)
        service.wait_until_ready()


def _compared(trials: Sequence[Trial]) -> str:
    """Say which framings h11 refuses and the service takes."""
    taken = set()
    for trial in trials:
        if trial.path != _PATHS[-1] or trial.way != "one write" or not trial.answers:
            continue
        status = trial.answers[0].status  # of a route that is none: 404 says that it was parsed
        if status in {404, 405} and not h11_accepts(trial.framing.head + trial.framing.body):
            taken.add(trial.framing.name)
    listed = "; ".join(sorted(taken)) or "none"
    return f"Refused by h11 and parsed by the service: {listed}."


def h11_accepts(data: bytes) -> bool:
    """Tell whether h11 parses all of the first request in `data`."""
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
