"""The command line `python -m service.feedback ACTION FILE`."""

import sys

from service.feedback.feedback_command import main

if __name__ == "__main__":
    sys.exit(main())
