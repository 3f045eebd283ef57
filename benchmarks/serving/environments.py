"""A virtual environment for each server, made from its requirements file. Knows no server."""

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
REQUIREMENTS = ROOT / "benchmarks" / "peers"
ENVIRONMENTS = ROOT / ".venv-bench"
_STAMP = "made"
_PROJECT = "ours"
"""The environment of the project itself, whose dependencies stand in its pyproject.toml."""


class EnvironmentFailedError(Exception):
    """An environment cannot be made; the message is the last line of the output of pip."""


def environment(name: str, package_index: str, log: Callable[[str], None]) -> Path:
    """Return the Python of an environment; make it if its requirements are newer than it.

    The project's own dependencies are requirements of its own environment.

    package_index: another package index beside the default one; empty for none.

    Raises:
        EnvironmentFailedError: the environment cannot be made.
    """
    requirements = REQUIREMENTS / f"{name}.requirements.txt"
    folder = ENVIRONMENTS / name
    python = folder / "bin" / "python"
    stamp = folder / _STAMP
    sources = [requirements, *([ROOT / "pyproject.toml"] if name == _PROJECT else [])]
    if stamp.exists() and stamp.stat().st_mtime >= max(file.stat().st_mtime for file in sources):
        return python
    log(f"installing {requirements.name} into {folder.relative_to(ROOT)}")
    _run(sys.executable, "-m", "venv", str(folder))
    index = ["--extra-index-url", package_index] if package_index else []
    _run(
        *(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *(*index, "--requirement", str(requirements)),
    )
    stamp.touch()
    return python


def versions(python: Path, packages: tuple[str, ...]) -> str:
    """List the versions of some packages in an environment: `numpy 2.1.0, onnxruntime 1.20.0`."""
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
