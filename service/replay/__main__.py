"""`python -m service.replay FOLDER --model NAME --version V`: logged images, another version.

The exit status is 1 if the version answered the log itself and its answers have other bytes now.
"""

import asyncio
import sys
from pathlib import Path

import orjson

from model.atomic_file_writing import write_whole
from model.cli_and_env_settings import load_or_exit
from model.command_exit_status import run_command
from service.observability.log_format import silence_log
from service.replay.replay_run import Replay, ReplayError, run
from service.replay.replay_settings import ReplaySettings
from service.replay.report_table import render


def main(arguments: list[str] | None = None) -> int:
    """Replay the log, print the report, and return the exit status."""
    settings = load_or_exit(ReplaySettings, arguments)
    silence_log()
    return run_command(lambda: _replay(settings), "Interrupted; no report was written.")


def _replay(settings: ReplaySettings) -> int:
    replay = asyncio.run(run(settings))
    sys.stdout.write(render(replay))
    if settings.report is not None:
        _write_report(replay, settings.report)
    return 1 if replay.changed_bytes else 0


def _write_report(replay: Replay, file: Path) -> None:
    content = orjson.dumps(replay.to_json(), option=orjson.OPT_INDENT_2) + b"\n"
    try:
        write_whole(file, content)
    except OSError as error:
        raise ReplayError(
            f"{file} cannot be written ({error.strerror}); name another --report."
        ) from None


if __name__ == "__main__":
    sys.exit(main())
