"""Clients that know the right answer to each of their requests, and may try once more."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from benchmarks.reliability.clients import REFUSED, Client, ClientStats
from benchmarks.reliability.wire import Address, Response, exchange, request

WRONG = "lost: a wrong answer"
_REPLICA_HEADER, _TRIES_HEADER = b"\r\nx-replica: ", b"\r\nx-tries: "
_SIDE = 8


@dataclass(frozen=True)
class Failure:
    """A request that got no right answer at its first try."""

    sent_at: float
    """Seconds of `time.monotonic`."""
    failed_at: float
    outcome: str
    replica: str
    """The one that the proxy names in its response; empty where there was none."""


@dataclass
class CheckedStats(ClientStats):
    """Counts, and what happened to the requests that failed at first."""

    failures: list[Failure] = field(default_factory=list)
    second_tries: Counter[str] = field(default_factory=Counter)
    """Number of second tries by outcome."""
    in_flight: int = 0
    """Requests that are sent and not answered yet."""
    proxy_tries: Counter[str] = field(default_factory=Counter)
    """Number of responses by the statuses of the proxy's tries, where there were several."""


class CheckedClient(Client):
    """One client in a closed loop; a response other than the known one counts as lost."""

    _stats: CheckedStats

    def __init__(
        self,
        address: Address,
        answers: Mapping[bytes, bytes],
        stats: CheckedStats,
        *,
        keep_alive: bool = True,
        every: float = 0.0,
        is_retrying: bool = False,
    ) -> None:
        """Prepare the client; it connects when it runs.

        answers: whole requests, each with the body of the right response.
        every: seconds from one request to the next; 0: at once.
        is_retrying: whether a failed request is sent once more.
        """
        super().__init__(address, list(answers), stats, keep_alive=keep_alive, every=every)
        self._answers, self._is_retrying = answers, is_retrying
        self._sent_at = 0.0

    async def _exchange(self, message: bytes) -> tuple[str, Response | None]:
        outcome, response = await self._try(message)
        if outcome in {"200", REFUSED}:
            return outcome, response
        replica = "" if response is None else _header(response, _REPLICA_HEADER)
        failure = Failure(self._sent_at, time.monotonic(), outcome, replica)
        self._stats.failures.append(failure)
        if self._is_retrying:
            outcome, response = await self._try(message)
            self._stats.second_tries[outcome] += 1
        return outcome, response

    async def _try(self, message: bytes) -> tuple[str, Response | None]:
        self._sent_at = time.monotonic()
        self._stats.in_flight += 1
        try:
            return await super()._exchange(message)
        finally:
            self._stats.in_flight -= 1

    def _outcome(self, message: bytes, response: Response) -> str:
        tries = _header(response, _TRIES_HEADER)
        if "," in tries:
            self._stats.proxy_tries[tries] += 1
        if response.status == 200 and response.body != self._answers[message]:
            return WRONG
        return super()._outcome(message, response)


def _header(response: Response, name: bytes) -> str:
    """Return the value of a header; empty if the response has none. name: in lower case."""
    begin = response.head.lower().find(name)
    if begin < 0:
        return ""
    return response.head[begin + len(name) :].partition(b"\r\n")[0].decode("latin-1").strip()


def requests_of_random_images(count: int, *headers: str) -> list[bytes]:
    """Write requests that differ in their image, so that a swapped answer is seen."""
    numbers = random.Random(5)  # noqa: S311
    found = []
    for _ in range(count):
        data = [round(numbers.random(), 3) for _ in range(_SIDE * _SIDE)]
        tensor = {"name": "images", "shape": [1, 1, _SIDE, _SIDE], "datatype": "FP32", "data": data}
        body = orjson.dumps({"inputs": [tensor]})
        json = "Content-Type: application/json"
        found.append(request("POST", "/v2/models/digits/infer", body, json, *headers))
    return found


async def right_answers(
    replicas: Sequence[Address], messages: Sequence[bytes]
) -> Mapping[bytes, bytes]:
    """Return each request with its right response's body: what an idle replica answers.

    Raises:
        RuntimeError: the replicas disagree.
    """
    found = {}
    for message in messages:
        responses = [await asyncio.to_thread(exchange, each, message) for each in replicas]
        bodies = {None if each is None else each.body for each in responses}
        body = bodies.pop()
        if bodies or body is None or responses[0] is None or responses[0].status != 200:
            raise RuntimeError(f"the replicas disagree: {responses}")
        found[message] = body
    if len(set(found.values())) < len(found):
        raise RuntimeError("the answers do not tell the requests apart")
    return found
