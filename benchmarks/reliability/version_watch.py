"""Clients that note which version answers each request, and compare what it should answer."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from benchmarks.reliability.checked_clients import requests_of_random_images
from benchmarks.reliability.clients import Client, ClientStats
from benchmarks.reliability.wire import Address, Response
from service.registry.canary_and_shadow_traffic_split import routes_to_canary

_IDS = 8
"""Request ids for each image."""


@dataclass(frozen=True)
class Message:
    """A request, with what decides about its answer."""

    content: bytes
    request_id: str
    image: int


@dataclass(frozen=True)
class Answer:
    """Which version answered a request, and when."""

    message: Message
    sent_at: float
    """Seconds of `time.monotonic`."""
    done_at: float
    version: str


@dataclass(frozen=True)
class Serving:
    """Which versions serve, since a command that began and ended at known times."""

    stable: str
    canary: str | None
    share: float
    sent_at: float
    done_at: float

    def version_for(self, message: Message) -> str:
        """Return which version answers a request."""
        if self.canary is not None and routes_to_canary(message.request_id, self.share):
            return self.canary
        return self.stable


@dataclass
class VersionStats(ClientStats):
    """Counts, and every answer."""

    answers: list[Answer] = field(default_factory=list)
    wrong: int = 0
    """Answers that are not those of the version that they name."""


class VersionClient(Client):
    """One client in a closed loop; it compares each answer with that of the version it names."""

    _stats: VersionStats

    def __init__(
        self,
        address: Address,
        messages: Sequence[Message],
        right: Mapping[tuple[int, str], object],
        stats: VersionStats,
        every: float,
    ) -> None:
        """Prepare the client; it connects when it runs.

        right: the right outputs, by image and version.
        every: seconds from one request to the next.
        """
        super().__init__(address, [each.content for each in messages], stats, every=every)
        self._by_content = {each.content: each for each in messages}
        self._right = right

    async def _exchange(self, message: bytes) -> tuple[str, Response | None]:
        sent_at = time.monotonic()
        outcome, response = await super()._exchange(message)
        if response is not None and response.status == 200:
            sent = self._by_content[message]
            version, outputs = version_and_outputs(response)
            self._stats.wrong += self._right.get((sent.image, version)) != outputs
            self._stats.answers.append(Answer(sent, sent_at, time.monotonic(), version))
        return outcome, response


def version_and_outputs(response: Response) -> tuple[str, object]:
    """Return the version that a response names, and its numbers and labels."""
    content = orjson.loads(response.body)
    return content["model_version"], content["outputs"]


def messages_with_ids(images: int) -> list[Message]:
    """Write requests of several images, each with several request ids."""
    plain = requests_of_random_images(images)
    found = []
    for number in range(images * _IDS):
        request_id = f"request-{number}"
        header = f"\r\nX-Request-ID: {request_id}\r\n\r\n".encode()
        image = number % images
        content = plain[image].replace(b"\r\n\r\n", header, 1)
        found.append(Message(content, request_id, image))
    return found


def stale_answers(answers: Sequence[Answer], history: Sequence[Serving]) -> list[Answer]:
    """Return the answers of versions that none of the states during the request allows.

    history: in order; a state begins when its command is sent, and ends when the next is answered.
    """
    found, first = [], 0
    for answer in sorted(answers, key=lambda each: each.sent_at):
        while first + 1 < len(history) and history[first + 1].done_at <= answer.sent_at:
            first += 1
        allowed = set()
        for state in history[first:]:
            if state.sent_at > answer.done_at:
                break
            allowed.add(state.version_for(answer.message))
        if answer.version not in allowed:
            found.append(answer)
    return found
