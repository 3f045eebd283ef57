"""The files below deploy/, and what stands in them."""

import re
from pathlib import Path

from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
NGINX = (DEPLOY / "nginx" / "dropserve.conf").read_text()
HAPROXY = (DEPLOY / "haproxy" / "haproxy.cfg").read_text()
UNIT_FILE = DEPLOY / "systemd" / "dropserve@.service"
UNIT = UNIT_FILE.read_text()
PAGE = (ROOT / "docs" / "deployment.md").read_text()


def number(text: str, name: str) -> int:
    """Return the number behind a directive, in its own unit; it must be there once."""
    found = re.findall(rf"^\s*{re.escape(name)}[ =](\d+)", text, re.MULTILINE)
    assert len(found) == 1, f"{name}: {found}"
    return int(found[0])


def unit_values(name: str) -> list[str]:
    """Return what a setting of the unit is set to, each time that it is."""
    return re.findall(rf"^{re.escape(name)}=(.*)$", UNIT, re.MULTILINE)


def unit_for(folder: Path, python: str) -> Path:
    """Copy the unit and its drop-in, with another interpreter; return the copy."""
    copy = folder / UNIT_FILE.name
    old = "/opt/dropserve/current/venv/bin/python"
    assert old in UNIT
    copy.write_text(UNIT.replace(old, python))
    drop_in = folder / f"{UNIT_FILE.name}.d"
    drop_in.mkdir()
    (drop_in / "credentials.conf").write_text((DEPLOY / "systemd" / "credentials.conf").read_text())
    return copy
