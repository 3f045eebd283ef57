"""Names the machine that a benchmark ran on, and lets a benchmark leave nothing running there."""

import os
import platform
import signal
from pathlib import Path


def end_like_ctrl_c() -> None:
    """From now on let SIGTERM end this program as Ctrl-C does: with all that it has started."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def describe_machine() -> str:
    """Return the processor's name and the number of cores."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = text.partition("model name")[2].partition("\n")[0].strip("\t :")
    return f"{model or platform.machine()}, {os.cpu_count()} cores"
