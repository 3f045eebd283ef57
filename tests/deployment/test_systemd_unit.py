"""Debian's systemd-analyze examines the unit."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deployment.deploy_files import PAGE, unit_for

pytestmark = pytest.mark.deployment


def analyze(folder: Path, *arguments: str) -> str:
    """Run systemd-analyze on the units of a folder; return all that it says."""
    try:
        done = subprocess.run(
            ["systemd-analyze", *arguments],
            env={**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:", "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.fail("There is no systemd-analyze; apt-get install --no-install-recommends systemd.")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_unit_and_its_drop_in_are_valid(tmp_path: Path) -> None:
    unit_for(tmp_path, sys.executable)
    assert analyze(tmp_path, "verify", "dropserve@8000.service") == ""


def test_exposure_of_the_unit_is_what_the_page_says(tmp_path: Path) -> None:
    unit = unit_for(tmp_path, sys.executable)
    said = analyze(tmp_path, "security", "--offline=true", str(unit))
    exposure = re.search(r"Overall exposure level for dropserve@.*service: ([\d.]+) OK", said)
    assert exposure is not None, said
    assert f"an exposure of {exposure[1]} of 10" in PAGE
