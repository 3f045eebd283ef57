"""The command line `python -m service.keys ACTION FILE`."""

import sys

from service.keys.key_command import main

if __name__ == "__main__":
    sys.exit(main())
