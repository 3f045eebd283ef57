"""`python -m training.evaluate BUNDLE`: parse, then measure a bundle and write a report."""

import logging
import sys

from model.errors import DropserveError
from model.settings import USAGE_STATUS, load_or_exit
from training.config import EvaluationConfig

_INTERRUPTED_STATUS = 130  # 128 + SIGINT, as shells have it


def main(arguments: list[str]) -> int:
    """Measure one bundle; return the exit status."""
    config = load_or_exit(EvaluationConfig, arguments)
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("training").setLevel(logging.INFO)
    try:
        from training.assessment import assess

        assess(config)
    except DropserveError as error:
        sys.stderr.write(f"{error}\n")
        return USAGE_STATUS
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted; no report was written.\n")
        return _INTERRUPTED_STATUS
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
