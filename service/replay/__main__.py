"""`python -m service.replay FOLDER --model NAME --version V`: logged images, another version.

The exit status is 1 if the version answered the log itself and its answers have other bytes now.
"""

import asyncio
import sys

import orjson
import structlog

from model.cli_and_env_settings import USAGE_EXIT_STATUS, load_or_exit
from model.errors import DropserveError
from service.replay.replay_run import run
from service.replay.replay_settings import ReplaySettings
from service.replay.report_table import render

_CRITICAL = 50


def main(arguments: list[str] | None = None) -> int:
    """Replay the log, print the report, and return the exit status."""
    settings = load_or_exit(ReplaySettings, arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(_CRITICAL))
    try:
        replay = asyncio.run(run(settings))
    except DropserveError as error:
        sys.stderr.write(f"{error}\n")
        return USAGE_EXIT_STATUS
    sys.stdout.write(render(replay))
    if settings.report is not None:
        content = orjson.dumps(replay.to_json(), option=orjson.OPT_INDENT_2) + b"\n"
        try:
            settings.report.write_bytes(content)
        except OSError as error:
            sys.stderr.write(
                f"{settings.report} cannot be written ({error.strerror}); name another --report.\n"
            )
            return USAGE_EXIT_STATUS
    return 1 if replay.changed_bytes else 0


if __name__ == "__main__":
    sys.exit(main())
