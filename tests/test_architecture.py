"""The arrows of docs/architecture.md: training -> model <- service, and torch where it belongs."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

TORCH = {"torch", "torchmetrics", "lightning", "onnxscript"}
TORCH_IN_MODEL = {
    "training/network/activations.py",
    "training/network/classifier.py",
    "training/export/to_onnx.py",
    "training/export/quantize.py",
}
NOT_WITH_THE_SERVICE = TORCH | {"onnx", "sklearn", "matplotlib", "scipy", "pooch", "training"}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imported(file: Path) -> Iterator[str]:
    """Yield the full name of every module that a file imports anywhere, also within functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: say imports in full"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def packages(file: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(file)}


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("service", NOT_WITH_THE_SERVICE),
        ("training", {"service"}),
        ("model", {"service", "training", "fastapi", "starlette", "uvicorn", "lightning"}),
    ],
)
def test_packages_do_not_import_what_they_must_not_know(package: str, forbidden: set[str]) -> None:
    files = sources(package)
    assert files
    assert {file: packages(file) & forbidden for file in files if packages(file) & forbidden} == {}


def test_torch_and_onnx_stand_only_in_training_and_four_files_of_model() -> None:
    files = [*sources("model"), *sources("service")]
    found = {str(file.relative_to(ROOT)) for file in files if packages(file) & (TORCH | {"onnx"})}
    assert found == TORCH_IN_MODEL


def test_the_service_uses_none_of_the_files_that_import_torch() -> None:
    """Follow its imports through model/."""
    torch_modules = {name.removesuffix(".py").replace("/", ".") for name in TORCH_IN_MODEL}
    known = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in sources("model")
    }
    reached: set[str] = set()
    waiting = {name for file in sources("service") for name in imported(file)} & set(known)
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting |= set(imported(known[name])) & set(known) - reached
    assert "model.inference.predictor" in reached
    assert reached & torch_modules == set()


def test_importing_the_service_loads_no_training_library() -> None:
    code = "import sys, service.app, service.server; print(*(n.split('.')[0] for n in sys.modules))"
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "onnxruntime" in loaded
    assert loaded & (NOT_WITH_THE_SERVICE | {"pandas", "tensorboard"}) == set()


def test_importing_the_service_starts_nothing() -> None:
    """No file opened but modules, no thread, no signal handler, no environment read at import."""
    code = """
import builtins, signal, sys, threading
import numpy, onnxruntime, PIL.Image, fastapi, pydantic_settings, prometheus_client, uvicorn, model
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
before = signal.getsignal(signal.SIGTERM), threading.active_count()
import service.app, service.server
assert (signal.getsignal(signal.SIGTERM), threading.active_count()) == before
print(*[name for name in opened if not name.endswith((".py", ".pyc", ".so"))], sep="\\n")
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert [name for name in done.stdout.split() if str(ROOT) in name] == []
