"""Send 100,000 true labels to a service that is killed meanwhile: is every acknowledged one kept?

    python -m benchmarks.reliability.feedback [--quick] [--record]

A service of two workers answers requests of 64 images, and 16 clients send the true labels of each
answer, 8 of them one by one and the others in a list, while 2 other clients ask for predictions.
All of its processes are killed (SIGKILL) 6 times (`--quick`: 5,000 labels, 3 kills), and another
service goes on with the same file. At the end every label that was acknowledged has to be in the
file, and the counts have to be those of the labels.
"""

import asyncio
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from benchmarks.processor_time import processor_seconds
from benchmarks.reliability.clients import Client, ClientStats, load_while
from benchmarks.reliability.program import Options, run
from benchmarks.reliability.report import Criterion, Report
from benchmarks.reliability.requests import predict
from benchmarks.reliability.services import Service
from benchmarks.reliability.wire import Address, request
from benchmarks.serving.servers import ServerFailedError

_LABELS, _QUICK_LABELS = 100_000, 5_000
_KILLS, _QUICK_KILLS = 6, 3
_CLIENTS, _OTHER_CLIENTS = 16, 2
_IMAGES, _SIDE = 64, 8
_SINGLE = 8
"""Of the labels of an answer so many are sent one by one, and the others in one list."""
_LEAST_RATE = 500
_PATIENCE_SECONDS = 60.0
_MAX_BYTES = 2**26
_LOG_BYTES = 16 * 2**20
"""The write-ahead log beside the file may have as many."""
_FLAGS = ("--workers", "2", "--log-level", "warning", "--feedback-max-bytes", f"{_MAX_BYTES}")
_JSON = "Content-Type: application/json"
_QUESTION = request(
    "POST",
    "/uncertainty?samples=16",
    orjson.dumps({"instances": [[[0.5] * _SIDE] * _SIDE] * _IMAGES}),
    _JSON,
)

Key = tuple[str, int]
"""The id of a request, and the number of an image in it."""


@dataclass
class Labelling:
    """What all clients together have had acknowledged."""

    wanted: int
    acknowledged: dict[Key, str] = field(default_factory=dict)
    forgotten: int = 0
    """Answers that a killed process had not written yet."""

    processor_seconds: float = 0.0
    """Of all services, their starts included."""

    @property
    def is_done(self) -> bool:
        """Whether all wanted labels are acknowledged."""
        return len(self.acknowledged) >= self.wanted


class _LabellingClient(Client):
    """Asks about many images, then sends the true label of each."""

    def __init__(self, address: Address, stats: ClientStats, labelling: Labelling) -> None:
        super().__init__(address, [_QUESTION], stats)
        self._labelling = labelling

    async def _send_one(self) -> None:
        _, answer = await self._exchange(_QUESTION)
        if answer is None or answer.status != 200:
            return
        parts = [range(number, number + 1) for number in range(_SINGLE)]
        for numbers in (*parts, range(_SINGLE, _IMAGES)):
            if self._labelling.is_done or not await self._send(answer.request_id, numbers):
                return

    async def _send(self, request_id: str, numbers: Sequence[int]) -> bool:
        """Send labels of one answer; return whether that is remembered."""
        labels = {number: str(number % 10) for number in numbers}
        content = [
            {"request_id": request_id, "image": number, "label": label}
            for number, label in labels.items()
        ]
        message = request("POST", "/feedback", orjson.dumps(content), _JSON)
        _, response = await self._exchange(message)
        if response is None:  # it was killed, and who knows whether it has the labels
            return False
        for result in orjson.loads(response.body).get("results", ()):
            if result["outcome"] == "refused":
                self._labelling.forgotten += 1
                return False
            number = result["image"]
            self._labelling.acknowledged[request_id, number] = labels[number]
        return response.status == 200


def measure(options: Options) -> Report:
    """Send the labels, kill the service meanwhile, and compare the file with what was sent."""
    labelling = Labelling(_QUICK_LABELS if options.quick else _LABELS)
    kills = _QUICK_KILLS if options.quick else _KILLS
    file, stats, other = options.folder("feedback") / "feedback.db", ClientStats(), ClientStats()
    served, largest = 0.0, 0
    for number in range(kills):
        target = labelling.wanted * (number + 1) // kills
        options.log(f"labels up to {target:,}, then the kill {number + 1}")
        served += asyncio.run(_label_until_killed(options, file, target, labelling, (stats, other)))
        largest = max(largest, sum(each.stat().st_size for each in file.parent.iterdir()))
    lost, wrong_counts, tables = _compare(file, labelling)
    rate = len(labelling.acknowledged) / served
    return Report(
        title="A service that takes true labels is killed",
        setting=f"{kills} kills, {_CLIENTS} clients that label, {_OTHER_CLIENTS} others, two "
        f"workers; {options}.",
        columns=(
            "labels",
            "labels/s",
            "answers/s of others",
            "p50, p99 of a request",
            "processor time of all",
            "file",
        ),
        rows=[
            (
                f"{len(labelling.acknowledged):,}",
                f"{rate:,.0f}",
                f"{other.good / served:,.0f}",
                f"{stats.percentile(0.5):.0f} ms, {stats.percentile(0.99):.0f} ms",
                f"{labelling.processor_seconds:.0f} s of {served:.0f} s",
                f"{largest / 1e6:.1f} MB",
            )
        ],
        criteria=[
            Criterion("labels a second", f"{rate:,.0f}", f"{_LEAST_RATE}", rate >= _LEAST_RATE),
            _none("acknowledged labels that are lost or other ones", lost),
            _none("counts that are not those of the labels", wrong_counts),
            Criterion(
                "bytes of the file and its log",
                f"{largest:,}",
                f"{_MAX_BYTES + _LOG_BYTES:,}",
                largest <= _MAX_BYTES + _LOG_BYTES,
            ),
        ],
        notes=[f"{labelling.forgotten} labels were of answers that a kill had lost. {tables}"],
    )


async def _label_until_killed(
    options: Options,
    file: Path,
    target: int,
    labelling: Labelling,
    stats: Sequence[ClientStats],
) -> float:
    """Kill the service when so many labels are acknowledged; return how long it served, seconds."""
    flags = (*_FLAGS, "--feedback", str(file))

    def start() -> Service:
        place = options.folder(f"service-{target}")
        return Service(place, options.models_folder, options.port, *flags).__enter__()

    service = await asyncio.to_thread(start)
    started = time.monotonic()

    async def kill() -> None:
        await wait_for_labels(labelling, target)
        processes = [service.pid, *service.workers()]
        labelling.processor_seconds += sum(processor_seconds(each) for each in processes)
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    asking = [Client(service.address, [predict()], stats[1]) for _ in range(_OTHER_CLIENTS)]
    sending = [_LabellingClient(service.address, stats[0], labelling) for _ in range(_CLIENTS)]
    seconds = 0.0

    async def measure_until_killed() -> None:
        nonlocal seconds
        await kill()
        seconds = time.monotonic() - started

    try:
        await load_while([*asking, *sending], measure_until_killed)
    finally:
        await asyncio.to_thread(service.__exit__)
    return seconds


async def wait_for_labels(
    labelling: Labelling, target: int, patience: float = _PATIENCE_SECONDS
) -> None:
    """Wait until so many labels are acknowledged.

    Raises:
        ServerFailedError: none was for `patience` seconds.
    """
    known, since = 0, time.monotonic()
    while (count := len(labelling.acknowledged)) < target:
        if count > known:
            known, since = count, time.monotonic()
        if time.monotonic() - since >= patience:
            raise ServerFailedError(
                f"it has acknowledged no label for {patience:g} seconds, after {count:,} of "
                f"{target:,}; {labelling.forgotten:,} were refused; read its log"
            )
        await asyncio.sleep(0.01)


def _compare(file: Path, labelling: Labelling) -> tuple[int, int, str]:
    """Return how many labels are lost, how many counts are wrong, and what the file holds."""
    with closing(sqlite3.connect(file)) as connection:
        rows = connection.execute(
            "SELECT request_id, image, truth, class_names FROM labels "
            "JOIN answers ON answers.id = labels.answer "
            "JOIN versions ON versions.id = labels.version"
        )
        found = {
            (request_id, image): orjson.loads(names)[truth]
            for request_id, image, truth, names in rows
        }
        labels, answers = (
            connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608
            for table in ("labels", "answers")
        )
        counted = connection.execute("SELECT sum(labels) FROM counts").fetchone()[0]
    lost = sum(found.get(key) != label for key, label in labelling.acknowledged.items())
    return lost, abs(counted - labels), f"The file has {labels:,} labels and {answers:,} answers."


def _none(name: str, count: int) -> Criterion:
    return Criterion(name, f"{count}", "0", count == 0)


if __name__ == "__main__":
    sys.exit(run("feedback", __doc__, measure, sys.argv[1:], first_port=8810))
