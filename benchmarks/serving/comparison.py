"""Starts the servers, loads one at a time in every round, and collects the measurements.

Knows the requests that a server accepts and how load is generated; `report` writes the tables.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cached_property
from http.client import HTTPConnection, HTTPException
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray
from PIL import Image

from benchmarks.serving.environments import EnvironmentFailedError, versions
from benchmarks.serving.load import ClosedLoopResult, LoadGenerator, LoadGeneratorError, Target
from benchmarks.serving.open_loop import OpenLoopResult
from benchmarks.serving.payloads import Floats, Response, photograph
from benchmarks.serving.peers import Endpoint, Kind, LaunchSpec, Peer
from benchmarks.serving.servers import Server, ServerFailedError
from benchmarks.serving.setup import Setup
from model.bundle.store import GOLDEN_FILE, Bundle
from model.dropout.sampling_methods import FixedSamples
from model.images.preprocessing import decode, fit_image, to_float
from model.inference.predictor import Predictor
from model.inference.predictor_loading import load_predictor

_TOLERANCE = 1e-3
"""Of a probability. Another version of ONNX Runtime rounds differently (about 1e-6)."""
_PHOTOGRAPH_TOLERANCE = 1e-2
"""The same of a photograph, which another version of Pillow reduces a little differently."""

_START_SECONDS = 180.0
_POLL_SECONDS = 0.02
_RESPONSE_TIMEOUT_SECONDS = 30.0
_WARM_UP_SECONDS = 1
_MAX_SECONDS = 30
_OVERLOADED = 0.9
"""Share of the offered requests; no higher rate is offered to a server that answers less."""

Log = Callable[[str], None]
T = TypeVar("T")


class NoResponseError(Exception):
    """A request got no response with status 200; the message describes what came instead."""


@dataclass(frozen=True)
class Plan:
    """Rounds, durations, connections, rates and kinds of request of a comparison."""

    rounds: int
    seconds: int
    """Duration of each measurement."""
    connections: tuple[int, ...]
    rates: tuple[float, ...]
    """Rates of the open loop, rising, requests per second; empty for no open loop."""
    kinds: tuple[Kind, ...]


@dataclass
class MeasuredServer:
    """A running server whose responses were checked, and its measurements."""

    peer: Peer
    versions: str
    start_seconds: float
    server: Server
    targets: dict[Kind, Target]
    processes: int = 0
    memory: list[float] = field(default_factory=list)
    """MB after each round, shared pages counted once (PSS)."""
    closed_loop: dict[tuple[Kind, int], list[ClosedLoopResult]] = field(default_factory=dict)
    open_loop: dict[float, list[OpenLoopResult]] = field(default_factory=dict)

    @property
    def open_kind(self) -> Kind:
        """The kind of request that the open loop sends: the first one."""
        return next(iter(self.targets))


@dataclass(frozen=True)
class Comparison:
    """The measured servers, and why others were left out."""

    servers: Sequence[MeasuredServer]
    left_out: dict[str, str]
    """Title, or title and kind of request → reason."""


class Expected:
    """The probabilities that a bundle gives for the images that are sent to every server."""

    def __init__(self, bundle: Bundle) -> None:
        self._predictor: Predictor = load_predictor(bundle)
        self._spec = bundle.manifest.input
        self.image = image_of(bundle)
        self._prediction = self._predictor.predict(self.image[None])

    def probabilities(self, samples: int | None) -> NDArray[np.float64]:
        """Return the expected probabilities, float64 [K].

        samples: MC dropout samples; None for the deterministic prediction.
        """
        if samples is None:
            return np.asarray(self._prediction.probabilities[0])
        uncertainty = self._predictor.uncertainty(self._prediction, FixedSamples(0, samples))
        return np.asarray(uncertainty.mean_probabilities[0])

    def mismatch(self, peer: Peer, endpoint: Endpoint, probabilities: Sequence[float]) -> str:
        """Describe what is wrong with the probabilities of a response; empty if nothing is."""
        is_photograph = endpoint.kind == "JPEG"
        expected = (
            self._of_photograph if is_photograph else self.probabilities(endpoint.samples)[None]
        )
        classes = expected.shape[1]
        if len(probabilities) != classes or not abs(sum(probabilities) - 1) < _TOLERANCE:
            return f"its response is no distribution over {classes} classes"
        error = float(np.abs(expected - np.array(probabilities)).max(axis=1).min())
        if peer.trained and error > (_PHOTOGRAPH_TOLERANCE if is_photograph else _TOLERANCE):
            return f"its probabilities are off by {error:.2g}"
        return ""

    @cached_property
    def _of_photograph(self) -> NDArray[np.float64]:
        """Of the photograph, float64 [2, K]: reduced as the bundle says, and as the peers do it.

        They change the aspect ratio, as is usual.
        """
        file = photograph(self._spec.channels)
        usual = self._spec.model_copy(update={"resize": "stretch"})
        images = np.stack([decode(file, self._spec), fit_image(Image.open(BytesIO(file)), usual)])
        return np.asarray(self._predictor.predict(to_float(images)).probabilities)


def image_of(bundle: Bundle) -> Floats:
    """Return the first golden image of a bundle, rounded to the 256 levels that a PNG holds."""
    with np.load(bundle.path / GOLDEN_FILE) as golden:
        image = golden["images"][0]
    return np.asarray(np.round(255 * image) / 255, np.float32)


def compare(
    peers: Sequence[tuple[Peer, Bundle]], plan: Plan, setup: Setup, folder: Path, log: Log
) -> Comparison:
    """Measure every server that can be started.

    folder: an empty folder for logs and intermediate results.
    """
    return _ComparisonRun(plan, setup, folder, log).run(peers)


class _ComparisonRun:
    """The state of one comparison while it runs."""

    def __init__(self, plan: Plan, setup: Setup, folder: Path, log: Log) -> None:
        self._plan, self._setup, self._folder, self._log = plan, setup, folder, log
        self._left_out: dict[str, str] = {}

    def run(self, peers: Sequence[tuple[Peer, Bundle]]) -> Comparison:
        """Start all servers, measure them round by round, stop them."""
        specs = self._launch_specs(peers)
        load = LoadGenerator(self._setup.load_cores, _make_folder(self._folder / "load"))
        with ExitStack() as stack:
            with self._setup.exclusive():
                servers = self._start_all(specs, stack)
            for number in range(self._plan.rounds if servers else 0):
                with self._setup.exclusive():
                    for measured in rotated(servers, number):
                        if measured.peer.title not in self._left_out:
                            title = measured.peer.title
                            self._log(f"round {number + 1} of {self._plan.rounds}: {title}")
                            self._measure(measured, load, number)
                self._save(servers)
        complete = [each for each in servers if each.peer.title not in self._left_out]
        return Comparison(complete, self._left_out)

    def _launch_specs(self, peers: Sequence[tuple[Peer, Bundle]]) -> list[tuple[Peer, LaunchSpec]]:
        specs = []
        for port, (peer, bundle) in enumerate(peers, start=self._setup.first_port):
            try:
                python = self._setup.python(peer.environment, self._log)
            except EnvironmentFailedError as error:
                self._leave_out(peer.title, f"it cannot be installed ({error})")
                continue
            specs.append(
                (peer, LaunchSpec(python, bundle, _make_folder(self._folder / peer.name), port))
            )
        return specs

    def _start_all(
        self, specs: Sequence[tuple[Peer, LaunchSpec]], stack: ExitStack
    ) -> list[MeasuredServer]:
        servers = []
        for peer, spec in specs:
            self._log(f"{peer.title}: starting")
            try:
                with ExitStack() as started:
                    command = peer.command(spec)
                    cores = self._setup.server_cores
                    server = started.enter_context(Server(command, cores, spec.folder))
                    measured = self._check(peer, spec, server)
                    # It has started, so it is stopped together with the others.
                    stack.push(started.pop_all())
            except (ServerFailedError, AssertionError, OSError) as error:
                self._leave_out(peer.title, str(error))
                continue
            measured.server.suspend()
            servers.append(measured)
            self._log(f"{peer.title}: up after {measured.start_seconds:.1f} s")
        return servers

    def _seconds(self, target: Target, connections: int) -> int:
        """Return how long to load a server: a slow one must be able to answer everybody twice."""
        started = time.monotonic()
        request_once(target)
        twice = 2 * connections * (time.monotonic() - started)
        return max(self._plan.seconds, min(math.ceil(twice), _MAX_SECONDS))

    def _save(self, servers: Sequence[MeasuredServer]) -> None:
        """Write all measurements so far to a file, in case the run does not reach its end."""
        measurements = {
            each.peer.name: {
                "versions": each.versions,
                "start_seconds": each.start_seconds,
                "memory": each.memory,
                "closed_loop": {
                    f"{kind}, {connections}": [asdict(one) for one in results]
                    for (kind, connections), results in each.closed_loop.items()
                },
                "open_loop": {
                    f"{rate:g}": [asdict(one) for one in results]
                    for rate, results in each.open_loop.items()
                },
            }
            for each in servers
        }
        text = orjson.dumps(
            {"servers": measurements, "left_out": self._left_out}, option=orjson.OPT_INDENT_2
        )
        (self._folder / "measurements.json").write_bytes(text)

    def _leave_out(self, title: str, reason: str) -> None:
        self._left_out[title] = reason
        self._log(f"{title}: left out, {reason}")

    def _check(self, peer: Peer, spec: LaunchSpec, server: Server) -> MeasuredServer:
        """Wait for the first response; keep the kinds of request that get right probabilities."""
        expected = Expected(spec.bundle)
        targets: dict[Kind, Target] = {}
        seconds = 0.0
        for endpoint in peer.endpoints:
            if endpoint.kind not in self._plan.kinds:
                continue
            path = endpoint.path.format(name=spec.bundle.manifest.name)
            target = Target(spec.port, path, endpoint.write(expected.image))
            try:
                response = first_response(server, target) if not seconds else request_once(target)
                seconds = seconds or time.monotonic() - server.started
                mismatch = expected.mismatch(peer, endpoint, endpoint.read(response))
            except NoResponseError as error:
                mismatch = str(error)
            except (ValueError, KeyError, TypeError, IndexError) as error:
                mismatch = f"its response cannot be read ({error!r})"
            if mismatch:
                self._leave_out(f"{peer.title}, {endpoint.kind}", mismatch)
            else:
                targets[endpoint.kind] = target
        if not targets:
            raise ServerFailedError("it answers none of these requests correctly")
        return MeasuredServer(peer, versions(spec.python, peer.packages), seconds, server, targets)

    def _measure(self, measured: MeasuredServer, load: LoadGenerator, number: int) -> None:
        """Load one server while all the others are suspended."""
        measured.server.resume()
        try:
            for kind, target in measured.targets.items():
                load.closed_loop(target, self._plan.connections[0], _WARM_UP_SECONDS)
                for connections in self._plan.connections:
                    measured.server.wait_until_idle()
                    seconds = self._seconds(target, connections)
                    result = load.closed_loop(target, connections, seconds)
                    measured.closed_loop.setdefault((kind, connections), []).append(result)
            for rate in self._plan.rates:
                earlier = measured.open_loop.get(rate)
                if earlier is None and number:
                    break  # more than it could answer in the first round
                target = measured.targets[measured.open_kind]
                measured.server.wait_until_idle()
                open_result = load.open_loop(target, rate, self._plan.seconds, seed=number)
                measured.open_loop.setdefault(rate, []).append(open_result)
                if number == 0 and open_result.answered < _OVERLOADED:
                    break
            measured.memory.append(measured.server.proportional_memory())
            measured.processes = len(measured.server.processes())
            measured.server.require_running()
        except (LoadGeneratorError, ServerFailedError, NoResponseError) as error:
            self._leave_out(measured.peer.title, f"in round {number + 1}: {error}")
        finally:
            measured.server.suspend()


def rotated(servers: Sequence[T], number: int) -> Sequence[T]:
    """Return the order of a round: another one goes first in each, and follows another one."""
    first = number % len(servers)
    return [*servers[first:], *servers[:first]]


def first_response(server: Server, target: Target) -> Response:
    """Send a request until its response has status 200; return that response.

    Raises:
        ServerFailedError: the server has ended, or does not answer in time.
    """
    deadline = time.monotonic() + _START_SECONDS
    reason = "no response"
    while time.monotonic() < deadline:
        server.require_running()
        try:
            return request_once(target)
        except NoResponseError as error:
            reason = str(error)
        time.sleep(_POLL_SECONDS)
    raise ServerFailedError(
        f"not ready after {_START_SECONDS:.0f} s ({reason}): {server.log_tail()}"
    )


def request_once(target: Target) -> Response:
    """Send one request; return its response with status 200.

    Raises:
        NoResponseError: there is none, or it has another status.
    """
    connection = HTTPConnection("127.0.0.1", target.port, timeout=_RESPONSE_TIMEOUT_SECONDS)
    try:
        connection.request("POST", target.path, target.content.body, dict(target.content.headers))
        response = connection.getresponse()
        body = response.read()
    except (OSError, HTTPException) as error:
        raise NoResponseError(f"{target.path}: {error!r}") from None
    finally:
        connection.close()
    if response.status != 200:
        raise NoResponseError(f"{target.path}: {response.status} {body[:200]!r}")
    return Response({name.lower(): value for name, value in response.getheaders()}, body)


def _make_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
