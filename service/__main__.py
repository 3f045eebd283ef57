"""The command line `python -m service`: reads the settings and serves."""

import sys

from model.cli_and_env_settings import load_or_exit
from service.run_server import serve
from service.settings import ServiceSettings

if __name__ == "__main__":
    sys.exit(serve(load_or_exit(ServiceSettings, sys.argv[1:])))
