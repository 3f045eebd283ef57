"""`python -m service.check`: examines what `python -m service` would do with the same settings.

The exit status is 2 if something has to be mended, 1 if something should be looked at, else 0.
"""

import asyncio
import os
import signal
import sys

import structlog

from model.cli_and_env_settings import USAGE_EXIT_STATUS, load, misspelled_variables
from model.errors import SettingsError
from service.check.check_run import check
from service.check.check_settings import CheckSettings
from service.check.findings import exit_status, to_json, to_lines, warning

_CRITICAL = 50
_INTERRUPTED_EXIT_STATUS = 128 + signal.SIGINT


def main(arguments: list[str] | None = None) -> int:
    """Write the findings to stdout, and return the exit status; None: the process's arguments."""
    try:
        settings = load(CheckSettings, arguments)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return USAGE_EXIT_STATUS
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(_CRITICAL))
    findings = [
        warning("environment", f"{mistyped} is not a setting; did you mean {meant}?")
        for mistyped, meant in misspelled_variables(CheckSettings, os.environ)
    ]
    try:
        findings += asyncio.run(check(settings))
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted; nothing was changed.\n")
        return _INTERRUPTED_EXIT_STATUS
    sys.stdout.write(to_json(findings) if settings.format == "json" else to_lines(findings))
    return exit_status(findings)


if __name__ == "__main__":
    sys.exit(main())
