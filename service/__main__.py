"""The command line `python -m service`: reads the settings and serves."""

import sys

from model.cli_and_env_settings import load_or_exit
from service.run_server import serve
from service.settings import ServiceSettings


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal ends the process; return the exit status."""
    return serve(load_or_exit(ServiceSettings, arguments))


if __name__ == "__main__":
    sys.exit(main())
