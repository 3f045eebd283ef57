"""`python -m service.scoring.scoring_process_main`: a process of `python -m service.score`.

The first line on its standard input has the settings, each further one a batch. It replies to each
on its standard output, in order, and ends when its input does. While one batch is in the network,
the next one is read and decoded.
"""

import asyncio
import hashlib
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from model.bundle.store import MANIFEST_FILE, open_bundle
from model.errors import DropserveError
from service.observability.log_format import silence_log
from service.scoring.image_scorer import ImageScorer, ReadImages
from service.scoring.score_settings import ScoreSettings
from service.scoring.scoring_process_messages import ModelFacts, decode, decode_batch, encode


def main() -> int:
    """Reply to the messages on standard input until it ends; return the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the first process, which ends us
    silence_log()
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints is no reply
    with replies:
        asyncio.run(_run(sys.stdin.buffer, replies))
    return 0


async def _run(requests: BinaryIO, replies: BinaryIO) -> None:
    first = decode(requests.readline())
    try:
        scorer, facts = _load(first)
    except DropserveError as error:
        _send(replies, {"error": str(error)})
        return
    _send(replies, asdict(facts))
    batches: asyncio.Queue[ReadImages | Exception | None] = asyncio.Queue(1)
    scoring = asyncio.create_task(_score_all(scorer, batches, replies))
    while line := await asyncio.to_thread(requests.readline):
        try:
            batch: ReadImages | Exception = await scorer.read(decode_batch(line))
        except Exception as error:  # the first process tries each of its images alone
            batch = error
        await batches.put(batch)
    await batches.put(None)
    await scoring
    await scorer.close()


def _load(first: dict[str, Any]) -> tuple[ImageScorer, ModelFacts]:
    settings = ScoreSettings(**first["settings"])
    folder = Path(first["bundle"])
    bundle = open_bundle(folder)
    digest = hashlib.sha256((folder / MANIFEST_FILE).read_bytes()).hexdigest()
    scorer = ImageScorer(settings, bundle, first["processes"])
    return scorer, scorer.facts(digest)


async def _score_all(
    scorer: ImageScorer,
    batches: "asyncio.Queue[ReadImages | Exception | None]",
    replies: BinaryIO,
) -> None:
    while (batch := await batches.get()) is not None:
        try:
            if isinstance(batch, Exception):
                raise batch  # noqa: TRY301
            scored = await asyncio.to_thread(scorer.score, batch)
        except Exception as error:
            _send(replies, {"failure": f"{type(error).__name__}: {error}"})
            continue
        counts = {"errors": scored.errors, "abstentions": scored.abstentions}
        _send(replies, counts | {"bytes": len(scored.lines)}, scored.lines)


def _send(replies: BinaryIO, content: dict[str, Any], data: bytes = b"") -> None:
    message = memoryview(encode(content) + data)
    try:
        while message:
            message = message[replies.write(message) :]
    except BrokenPipeError:  # the first process has ended, and nobody waits for this one
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
