"""Names the machine that a benchmark ran on."""

import os
import platform
from pathlib import Path


def describe_machine() -> str:
    """Return the processor's name and the number of cores."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = text.partition("model name")[2].partition("\n")[0].strip("\t :")
    return f"{model or platform.machine()}, {os.cpu_count()} cores"
