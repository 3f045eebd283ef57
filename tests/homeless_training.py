"""Trains in a process that knows no home and no entry of its user, as in a container."""

import os
import subprocess
import sys
from pathlib import Path

_VARIABLES = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "MPLCONFIGDIR")
_UNKNOWN_USER = """
import pwd, runpy, sys

def unknown(number):
    raise KeyError(f"getpwuid(): uid not found: {number}")

pwd.getpwuid = unknown
sys.argv = ["training", *sys.argv[1:]]
runpy.run_module("training", run_name="__main__")
"""


def train(root: Path, temporary: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run `python -m training` without the variables of a user and of this project.

    Args:
        root: the folder of the project, in which it runs.
        temporary: an existing folder, the only one that it is told of.
        arguments: of the training.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _VARIABLES and not name.startswith(("XDG_", "DROPSERVE"))
    }
    return subprocess.run(
        [sys.executable, "-c", _UNKNOWN_USER, *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        env=kept | {"TMPDIR": str(temporary)},
    )
