"""Brings the servers up, lets each answer in turn, round after round, and keeps what was seen.

Knows what a server is asked and how it is loaded; how to write it down is `report`'s.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from benchmarks.serving.environments import EnvironmentFailedError, versions
from benchmarks.serving.load import Load, LoadFailedError, Stretch, Target
from benchmarks.serving.open_loop import Arrivals
from benchmarks.serving.payloads import Answer, Floats
from benchmarks.serving.peers import Ask, Kind, Peer, Stage
from benchmarks.serving.servers import Server, ServerFailedError
from benchmarks.serving.setup import Setup
from model.bundle.store import GOLDEN_FILE, Bundle
from model.dropout.sampling import FixedSamples
from model.inference.predictor import Predictor, open_tested

_TOLERANCE = 1e-3
"""Of a probability. ONNX Runtime of another version rounds otherwise (about 1e-6)."""

_START_SECONDS = 180.0
_POLL_SECONDS = 0.02
_ANSWER_SECONDS = 30.0
_WARM_UP_SECONDS = 1
_MOST_SECONDS = 30
_OVERLOADED = 0.9
"""Of what was offered; who answers less is not asked for more."""

Say = Callable[[str], None]


class NoAnswerError(Exception):
    """A request had no answer of status 200; the message says what came."""


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int
    seconds: int
    """Of each stretch of load."""
    connections: tuple[int, ...]
    rates: tuple[float, ...]
    """Of the open loop, rising, requests a second; none: no open loop."""
    kinds: tuple[Kind, ...]


@dataclass
class Subject:
    """A server that is up and answers rightly, and what was seen of it."""

    peer: Peer
    versions: str
    start_seconds: float
    server: Server
    targets: dict[Kind, Target]
    processes: int = 0
    memory: list[float] = field(default_factory=list)
    stretches: dict[tuple[Kind, int], list[Stretch]] = field(default_factory=dict)
    arrivals: dict[float, list[Arrivals]] = field(default_factory=dict)

    @property
    def open_kind(self) -> Kind:
        """The kind of request that the open loop sends: the first."""
        return next(iter(self.targets))


@dataclass(frozen=True)
class Comparison:
    """What was seen of all, and why the others are missing."""

    subjects: Sequence[Subject]
    missing: dict[str, str]
    """Title or title and kind → reason."""


class Expected:
    """What a bundle says of the image that every server is asked about."""

    def __init__(self, bundle: Bundle) -> None:
        self._predictor: Predictor = open_tested(bundle)
        self.image = image_of(bundle)
        self._prediction = self._predictor.predict(self.image[None])

    def probabilities(self, samples: int | None) -> NDArray[np.float64]:
        """Return what is right; of `samples` with dropout alive, None for without."""
        if samples is None:
            return np.asarray(self._prediction.probabilities[0])
        how = FixedSamples(0, samples)
        return np.asarray(self._predictor.uncertainty(self._prediction, how).mean_probabilities[0])

    def fault(self, peer: Peer, ask: Ask, found: Sequence[float]) -> str:
        """Say what is wrong with an answer; nothing if it is right."""
        right = self.probabilities(ask.samples)
        if len(found) != len(right) or not abs(sum(found) - 1) < _TOLERANCE:
            return f"its answer is no distribution over {len(right)} classes"
        off = float(np.abs(right - np.array(found)).max())
        return (
            f"its probabilities are off by {off:.2g}" if peer.trained and off > _TOLERANCE else ""
        )


def image_of(bundle: Bundle) -> Floats:
    """Return the first of a bundle's golden images, in the 256 levels that a PNG holds."""
    with np.load(bundle.path / GOLDEN_FILE) as golden:
        image = golden["images"][0]
    return np.asarray(np.round(255 * image) / 255, np.float32)


def compare(
    peers: Sequence[tuple[Peer, Bundle]], plan: Plan, setup: Setup, folder: Path, say: Say
) -> Comparison:
    """Measure every server that can be brought up.

    folder: an empty one.
    """
    return _Run(plan, setup, folder, say).compared(peers)


class _Run:
    """One comparison under way."""

    def __init__(self, plan: Plan, setup: Setup, folder: Path, say: Say) -> None:
        self._plan, self._setup, self._folder, self._say = plan, setup, folder, say
        self._missing: dict[str, str] = {}

    def compared(self, peers: Sequence[tuple[Peer, Bundle]]) -> Comparison:
        """Bring all up, measure round after round, end all."""
        stages = self._stages(peers)
        load = Load(self._setup.load_cores, _new(self._folder / "load"))
        with ExitStack() as stack:
            with self._setup.turn():
                subjects = self._brought_up(stages, stack)
            for number in range(self._plan.rounds if subjects else 0):
                # Each round begins with another, so that none always follows the same neighbour.
                first = number % len(subjects)
                with self._setup.turn():
                    for subject in (*subjects[first:], *subjects[:first]):
                        if subject.peer.title not in self._missing:
                            title = subject.peer.title
                            self._say(f"round {number + 1} of {self._plan.rounds}: {title}")
                            self._measure(subject, load, number)
                self._keep(subjects)
        measured = [each for each in subjects if each.peer.title not in self._missing]
        return Comparison(measured, self._missing)

    def _stages(self, peers: Sequence[tuple[Peer, Bundle]]) -> list[tuple[Peer, Stage]]:
        stages = []
        for port, (peer, bundle) in enumerate(peers, start=self._setup.first_port):
            try:
                python = self._setup.python(peer.environment, self._say)
            except EnvironmentFailedError as error:
                self._leave_out(peer.title, f"it cannot be installed ({error})")
                continue
            stages.append((peer, Stage(python, bundle, _new(self._folder / peer.name), port)))
        return stages

    def _brought_up(self, stages: Sequence[tuple[Peer, Stage]], stack: ExitStack) -> list[Subject]:
        subjects = []
        for peer, stage in stages:
            self._say(f"{peer.title}: starting")
            try:
                with ExitStack() as started:
                    command = peer.command(stage)
                    cores = self._setup.server_cores
                    server = started.enter_context(Server(command, cores, stage.folder))
                    subject = self._checked(peer, stage, server)
                    stack.push(started.pop_all())  # it is up: ended with the others
            except (ServerFailedError, AssertionError, OSError) as error:
                self._leave_out(peer.title, str(error))
                continue
            subject.server.hold()
            subjects.append(subject)
            self._say(f"{peer.title}: up after {subject.start_seconds:.1f} s")
        return subjects

    def _seconds(self, target: Target, connections: int) -> int:
        """Return how long to load a server: long enough for a slow one to answer all twice."""
        started = time.monotonic()
        ask_once(target)
        twice = 2 * connections * (time.monotonic() - started)
        return max(self._plan.seconds, min(math.ceil(twice), _MOST_SECONDS))

    def _keep(self, subjects: Sequence[Subject]) -> None:
        """Write down everything seen so far, in case the run does not reach its end."""
        seen = {
            each.peer.name: {
                "versions": each.versions,
                "start_seconds": each.start_seconds,
                "memory": each.memory,
                "stretches": {
                    f"{kind}, {connections}": [asdict(one) for one in stretches]
                    for (kind, connections), stretches in each.stretches.items()
                },
                "arrivals": {
                    f"{rate:g}": [asdict(one) for one in arrivals]
                    for rate, arrivals in each.arrivals.items()
                },
            }
            for each in subjects
        }
        text = orjson.dumps({"seen": seen, "missing": self._missing}, option=orjson.OPT_INDENT_2)
        (self._folder / "seen.json").write_bytes(text)

    def _leave_out(self, title: str, reason: str) -> None:
        self._missing[title] = reason
        self._say(f"{title}: left out, {reason}")

    def _checked(self, peer: Peer, stage: Stage, server: Server) -> Subject:
        """Wait for its first answer; keep the kinds of request that it answers rightly."""
        expected = Expected(stage.bundle)
        targets: dict[Kind, Target] = {}
        seconds = 0.0
        for ask in peer.asks:
            if ask.kind not in self._plan.kinds:
                continue
            path = ask.path.format(name=stage.bundle.manifest.name)
            target = Target(stage.port, path, ask.write(expected.image))
            try:
                answer = first_answer(server, target) if not seconds else ask_once(target)
                seconds = seconds or time.monotonic() - server.started
                fault = expected.fault(peer, ask, ask.read(answer))
            except NoAnswerError as error:
                fault = str(error)
            except (ValueError, KeyError, TypeError, IndexError) as error:
                fault = f"its answer cannot be read ({error!r})"
            if fault:
                self._leave_out(f"{peer.title}, {ask.kind}", fault)
            else:
                targets[ask.kind] = target
        if not targets:
            raise ServerFailedError("it answers none of these requests rightly")
        return Subject(peer, versions(stage.python, peer.packages), seconds, server, targets)

    def _measure(self, subject: Subject, load: Load, number: int) -> None:
        """Let one server answer, all the others being held."""
        subject.server.let_go()
        try:
            for kind, target in subject.targets.items():
                load.closed(target, self._plan.connections[0], _WARM_UP_SECONDS)
                for connections in self._plan.connections:
                    subject.server.wait_until_idle()
                    seconds = self._seconds(target, connections)
                    seen = load.closed(target, connections, seconds)
                    subject.stretches.setdefault((kind, connections), []).append(seen)
            for rate in self._plan.rates:
                known = subject.arrivals.get(rate)
                if known is None and number:
                    break  # more than it could answer in the first round
                target = subject.targets[subject.open_kind]
                subject.server.wait_until_idle()
                seen_of_rate = load.open(target, rate, self._plan.seconds, seed=number)
                subject.arrivals.setdefault(rate, []).append(seen_of_rate)
                if number == 0 and seen_of_rate.answered < _OVERLOADED:
                    break
            subject.memory.append(subject.server.proportional_memory())
            subject.processes = len(subject.server.processes())
            subject.server.require_running()
        except (LoadFailedError, ServerFailedError, NoAnswerError) as error:
            self._leave_out(subject.peer.title, f"in round {number + 1}: {error}")
        finally:
            subject.server.hold()


def first_answer(server: Server, target: Target) -> Answer:
    """Ask until it answers with 200; return that.

    Raises:
        ServerFailedError: it has ended, or does not answer in time.
    """
    deadline = time.monotonic() + _START_SECONDS
    reason = "nothing"
    while time.monotonic() < deadline:
        server.require_running()
        try:
            return ask_once(target)
        except NoAnswerError as error:
            reason = str(error)
        time.sleep(_POLL_SECONDS)
    raise ServerFailedError(
        f"not ready after {_START_SECONDS:.0f} s ({reason}): {server.last_words()}"
    )


def ask_once(target: Target) -> Answer:
    """Send one request; return its answer of status 200.

    Raises:
        NoAnswerError: there is none.
    """
    connection = HTTPConnection("127.0.0.1", target.port, timeout=_ANSWER_SECONDS)
    try:
        connection.request("POST", target.path, target.content.body, dict(target.content.headers))
        response = connection.getresponse()
        body = response.read()
    except (OSError, HTTPException) as error:
        raise NoAnswerError(f"{target.path}: {error!r}") from None
    finally:
        connection.close()
    if response.status != 200:
        raise NoAnswerError(f"{target.path}: {response.status} {body[:200]!r}")
    return Answer({name.lower(): value for name, value in response.getheaders()}, body)


def _new(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
