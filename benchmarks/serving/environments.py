"""An environment of its own for each server, from its file of requirements. Knows no server."""

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
REQUIREMENTS = ROOT / "benchmarks" / "peers"
ENVIRONMENTS = ROOT / ".venv-bench"
_MADE = "made"


class EnvironmentFailedError(Exception):
    """An environment cannot be made; the message is the last line of what pip wrote."""


def environment(name: str, package_index: str, say: Callable[[str], None]) -> Path:
    """Return the Python of an environment; make it where its requirements have changed since.

    package_index: another package index beside the default one.

    Raises:
        EnvironmentFailedError: it cannot be made.
    """
    requirements = REQUIREMENTS / f"{name}.requirements.txt"
    folder = ENVIRONMENTS / name
    python = folder / "bin" / "python"
    made = folder / _MADE
    if made.exists() and made.stat().st_mtime >= requirements.stat().st_mtime:
        return python
    say(f"installing {requirements.name} into {folder.relative_to(ROOT)}")
    _run(sys.executable, "-m", "venv", str(folder))
    index = ["--extra-index-url", package_index] if package_index else []
    _run(
        *(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *(*index, "--requirement", str(requirements)),
    )
    made.touch()
    return python


def versions(python: Path, packages: tuple[str, ...]) -> str:
    """Say which versions of some packages an environment has."""
    folders = [str(path) for path in python.parent.parent.glob("lib/python*/site-packages")]
    found = {each.name.lower(): each.version for each in distributions(path=folders)}
    return ", ".join(f"{name} {found[name]}" for name in packages if name in found)


def _run(*command: str) -> None:
    done = subprocess.run(  # noqa: S603
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or done.stdout.strip().splitlines() or ["?"]
        raise EnvironmentFailedError(lines[-1])
