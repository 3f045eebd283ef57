"""`python -m service.score PATH … --output FILE`: score many images at once, without a server.

One line for each image, as POST /uncertainty answers it, or the error of a broken file.
"""

import asyncio
import signal
import sys
from contextlib import suppress

from model.cli_and_env_settings import load_or_exit
from model.command_exit_status import run_command
from service.scoring.run_outcome import Outcome
from service.scoring.score_settings import ScoreSettings
from service.scoring.scoring_run import run


def main(arguments: list[str] | None = None) -> int:
    """Score the images, describe the run on stderr, and return the exit status."""
    settings = load_or_exit(ScoreSettings, arguments)
    return run_command(
        lambda: _score(settings),
        f"Interrupted; the same command goes on after what is in {settings.output}.",
    )


def _score(settings: ScoreSettings) -> int:
    try:
        outcome = asyncio.run(_run_until_signal(settings))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    for sentence in outcome.sentences(settings.output):
        sys.stderr.write(f"{sentence}\n")
    return 1 if outcome.has_only_errors or (settings.strict and outcome.errors) else 0


async def _run_until_signal(settings: ScoreSettings) -> Outcome:
    running = asyncio.ensure_future(run(settings))
    with suppress(NotImplementedError):
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    return await running


if __name__ == "__main__":
    sys.exit(main())
