"""The files below deploy/monitoring/, and promtool."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
RULES = MONITORING / "rules"


def groups() -> list[dict[str, Any]]:
    """Return every group of rules, the recording ones first."""
    files = (RULES / "recording.yml", RULES / "alerts.yml")
    return [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]


def rules() -> list[dict[str, Any]]:
    """Return every rule, the recording ones first."""
    return [rule for group in groups() for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    """Return the alert rules by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def promtool(*arguments: str, standard_input: str | None = None) -> str:
    """Run promtool; fail with what it says where it finds anything, else return its output."""
    try:
        done = subprocess.run(
            ["promtool", *arguments],
            input=standard_input,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except FileNotFoundError:
        pytest.fail("There is no promtool; apt-get install --no-install-recommends prometheus.")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def metric_names(expression: str) -> set[str]:
    """Return the names of the metrics that a PromQL expression reads, recorded ones included."""
    without_strings = re.sub(r'"[^"]*"', "", expression)
    pattern = r"(?:[a-z_]+:)?(?:dropserve|process)_\w+(?::\w+)?|\bup\b"
    return set(re.findall(pattern, without_strings))
