"""The import rules of docs/architecture.md, read from the syntax trees of the source files.

Between packages: training -> model <- service. Between the rooms (sub-packages and top modules) of
one package: a room imports only rooms that stand before it in `ROOMS`. Between modules: no cycles.
Training libraries are imported only in training/.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

TRAINING_LIBRARIES = {
    "lightning",
    "matplotlib",
    "onnx",
    "onnxscript",
    "pooch",
    "scipy",
    "sklearn",
    "threadpoolctl",
    "torch",
    "torchmetrics",
    "torchvision",
}
WEB_LIBRARIES = {"fastapi", "httptools", "starlette", "uvicorn"}

FORBIDDEN = {
    "model": {"benchmarks", "service", "tests", "training"} | TRAINING_LIBRARIES | WEB_LIBRARIES,
    "service": {"benchmarks", "tests", "training"} | TRAINING_LIBRARIES,
    "training": {"benchmarks", "service", "tests"} | WEB_LIBRARIES,
}

ROOMS = {
    "model": (
        "errors",
        "shell_completion",
        "cli_and_env_settings",
        "command_exit_status",
        "private_folder",
        "npz_arrays",
        "atomic_file_writing",
        "container_resources",
        "images",
        "graphs",
        "uncertainty",
        "bundle",
        "dropout",
        "inference",
    ),
    "training": (
        "cache_folders",
        "command_setup",
        "data_options",
        "config",
        "evaluation_config",
        "data",
        "network",
        "distributed",
        "fitting",
        "evaluation",
        "export",
        "report",
        "selection",
        "adoption",
        "transfer",
        "fit_on_nonzero_rank",
        "adopt",
        "evaluate",
        "migrate_bundle",
        "select",
        "export_bundle",
        "pipeline",
        "__main__",
        "experiments",
    ),
    "service": (
        "errors",
        "file_change_fingerprint",
        "once_a_minute",
        "source_url",
        "label_studio_url",
        "edge",
        "tracing",
        "observability",
        "tls",
        "settings",
        "codecs",
        "keys",
        "http",
        "sandbox",
        "engine",
        "models_source",
        "registry",
        "traffic_log",
        "feedback",
        "label_studio",
        "shadow",
        "api",
        "scoring",
        "replay",
        "web",
        "app",
        "worker_supervisor",
        "run_server",
        "ray_serve",
        "check",
        "control",
        "score",
        "__main__",
    ),
}
"""The rooms of each package from the lowest to the highest."""


def module_name(file: Path) -> str:
    """Return the dotted name of a source file; a package's `__init__.py` is the package."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(package: str) -> dict[str, Path]:
    found = {module_name(file): file for file in sorted((ROOT / package).rglob("*.py"))}
    assert found
    return found


def imports(file: Path) -> Iterator[str]:
    """Yield the dotted name of everything that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write imports in full, not relative to the module"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def import_graph(package: str) -> dict[str, set[str]]:
    """Return which modules of its own package each module imports.

    Packages themselves are left out: another test requires that no `__init__.py` imports anything.
    """
    files = modules(package)
    targets = {name for name, file in files.items() if file.name != "__init__.py"}
    return {name: (set(imports(file)) & targets) - {name} for name, file in files.items()}


def room(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_package_does_not_import_what_it_must_not_know(package: str) -> None:
    found = {
        name: forbidden
        for name, file in modules(package).items()
        if (forbidden := {each.partition(".")[0] for each in imports(file)} & FORBIDDEN[package])
    }
    assert found == {}


@pytest.mark.parametrize("package", ROOMS)
def test_every_room_has_a_place_in_the_order(package: str) -> None:
    assert {room(name) for name in modules(package) if name != package} == set(ROOMS[package])


@pytest.mark.parametrize("package", ROOMS)
def test_room_imports_only_lower_rooms(package: str) -> None:
    height = {name: number for number, name in enumerate(ROOMS[package])}
    upward = {
        f"{source} -> {target}"
        for source, targets in import_graph(package).items()
        for target in targets
        if source != package
        and room(source) != room(target)
        and height[room(source)] <= height[room(target)]
    }
    assert upward == set()


@pytest.mark.parametrize("package", ROOMS)
def test_modules_do_not_import_each_other_in_a_cycle(package: str) -> None:
    try:
        TopologicalSorter(import_graph(package)).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


@pytest.mark.parametrize("package", [*ROOMS, "benchmarks"])
def test_init_file_describes_its_room_and_imports_nothing(package: str) -> None:
    for name, file in modules(package).items():
        if file.name == "__init__.py":
            docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
            assert docstring, f"{name} has no docstring"
            assert "TODO" not in docstring, f"{name}: {docstring}"
            assert list(imports(file)) == [], name


def test_importing_the_service_loads_no_training_library() -> None:
    code = (
        "import sys, service.app, service.run_server, service.scoring.image_scorer; "
        "print(*sys.modules)"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    names = done.stdout.split()
    loaded = {each.partition(".")[0] for each in names}
    assert "onnxruntime" in loaded
    assert loaded & (FORBIDDEN["service"] | {"pandas", "tensorboard"}) == set()
    # FastAPI imports OpenTelemetry's API, and nothing that records or sends.
    assert [each for each in names if each.startswith(("opentelemetry.sdk", "google"))] == []


def test_importing_the_service_has_no_side_effects() -> None:
    """An import opens only modules, starts no thread and sets no signal handler."""
    code = """
import signal, sys, threading
import numpy, onnxruntime, PIL.Image, fastapi, pydantic_settings, prometheus_client, uvicorn, model
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
before = signal.getsignal(signal.SIGTERM), threading.active_count()
import service.app, service.run_server
assert (signal.getsignal(signal.SIGTERM), threading.active_count()) == before
print(*[name for name in opened if not name.endswith((".py", ".pyc", ".so"))], sep="\\n")
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert [name for name in done.stdout.split() if str(ROOT) in name] == []
