"""`python -m service.check`: examines what `python -m service` would do with the same settings.

The exit status is 2 if something has to be mended, 1 if something should be looked at, else 0.
"""

import asyncio
import os
import sys

from model.cli_and_env_settings import load, misspelled_variables
from model.command_exit_status import run_command
from service.check.check_run import check
from service.check.check_settings import CheckSettings
from service.check.findings import exit_status, to_json, to_lines, warning
from service.observability.log_format import silence_log


def main(arguments: list[str] | None = None) -> int:
    """Write the findings to stdout, and return the exit status; None: the process's arguments."""
    return run_command(lambda: _check(arguments), "Interrupted; nothing was changed.")


def _check(arguments: list[str] | None) -> int:
    settings = load(CheckSettings, arguments)
    silence_log()
    findings = [
        warning("environment", f"{mistyped} is not a setting; did you mean {meant}?")
        for mistyped, meant in misspelled_variables(CheckSettings, os.environ)
    ]
    findings += asyncio.run(check(settings))
    sys.stdout.write(to_json(findings) if settings.format == "json" else to_lines(findings))
    return exit_status(findings)


if __name__ == "__main__":
    sys.exit(main())
