"""The command line `python -m service.control ACTION MODEL`."""

import sys

from service.control.rollout_client import main

if __name__ == "__main__":
    sys.exit(main())
