"""Builds, starts, uses and removes the containers. Run with `make compose-test`.

COMPOSE names a command to use instead of `docker compose`; PACKAGE_INDEX is passed to the builds.
"""

import errno
import io
import json
import math
import os
import shlex
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

pytestmark = pytest.mark.compose

ROOT = Path(__file__).parents[1]
ENGINES = ("docker", "podman")
BUILD_SECONDS = 2400.0
COMMAND_SECONDS = 300.0
READY_SECONDS = 60.0
GRACE_SECONDS = 20.0  # the service's own default, shorter than the stop_grace_period
USER = 10_001


class Stack:
    """The compose project, with a unique name and port."""

    def __init__(self) -> None:
        self.project = f"dropserve-test-{uuid.uuid4().hex[:8]}"
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._compose = shlex.split(os.environ.get("COMPOSE") or "docker compose")

    def compose(self, *arguments: str, seconds: float = COMMAND_SECONDS) -> str:
        """Run one compose command; return its standard output, or fail with its whole output."""
        done = self._run(*arguments, seconds=seconds)
        assert done.returncode == 0, f"{shlex.join(arguments)}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def logs(self, service: str) -> str:
        """Return what a service wrote to standard output and standard error."""
        done = self._run("logs", service, seconds=COMMAND_SECONDS)
        return done.stdout + done.stderr

    def python(self, source: str) -> Any:
        """Run `source` inside the running service and return the JSON that it prints."""
        return json.loads(self.compose("exec", "-T", "service", "python", "-c", source))

    def inspect(self, service: str, template: str) -> Any:
        """Inspect the container of a service with a Go template that prints JSON."""
        return json.loads(
            self._engine("inspect", "--format", template, self._container(service)).stdout
        )

    def wait_until_ended(self, service: str) -> None:
        """Wait for a service's container to end by itself."""
        self._engine("wait", self._container(service))

    def wait_until_ready(self) -> None:
        """Wait until the service is ready; fail with its log after READY_SECONDS."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if self._ready():
                return
            time.sleep(0.2)
        pytest.fail(
            f"Not ready in {READY_SECONDS:g} s.\n{self.logs('trainer')}\n{self.logs('service')}"
        )

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health/ready").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def _run(self, *arguments: str, seconds: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._compose, "-p", self.project, *arguments],
            cwd=ROOT,
            env={**os.environ, "DROPSERVE_PORT": str(self.port)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    def _container(self, service: str) -> str:
        labels = {"project": self.project, "service": service}
        filters = [f"--filter=label=com.docker.compose.{key}={labels[key]}" for key in labels]
        return self._engine("ps", "--all", "--quiet", *filters).stdout.strip()

    def _engine(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the container engine that has our containers."""
        for engine in filter(shutil.which, ENGINES):
            done = subprocess.run(
                [engine, *arguments],
                capture_output=True,
                text=True,
                timeout=COMMAND_SECONDS,
                check=False,
            )
            if done.returncode == 0 and done.stdout.strip():
                return done
        raise AssertionError(f"Neither of {ENGINES} could {shlex.join(arguments)}.")


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    stack = Stack()
    try:
        stack.compose("build", seconds=BUILD_SECONDS)
        stack.compose("up", "-d", seconds=BUILD_SECONDS)
        stack.wait_until_ready()
        yield stack
    finally:
        stack.compose("down", "--volumes", "--rmi", "local")


def test_predict_classifies_real_digits(stack: Stack) -> None:
    images, labels = _digits(50)

    response = httpx.post(f"{stack.url}/predict", files=_form(images))

    assert response.status_code == httpx.codes.OK, response.text
    assert (response.json()["model"], response.json()["version"]) == ("digits", "1")
    predicted = [each["label"] for each in response.json()["predictions"]]
    correct = sum(a == b for a, b in zip(predicted, labels, strict=True))
    assert correct >= 0.95 * len(labels)


def test_uncertainty_returns_finite_statistics(stack: Stack) -> None:
    images, _ = _digits(10)

    response = httpx.post(f"{stack.url}/uncertainty", files=_form(images))

    assert response.status_code == httpx.codes.OK, response.text
    assert len(response.json()["predictions"]) == len(images)
    for each in response.json()["predictions"]:
        by_class = [
            *each["probabilities"].values(),
            *each["probability_std"].values(),
            *each["standard_error"].values(),
        ]
        assert len(by_class) == 3 * 10
        assert all(math.isfinite(value) for value in by_class)
        assert math.isclose(sum(each["probabilities"].values()), 1, abs_tol=1e-5)
        assert 0 <= each["expected_entropy"] <= each["predictive_entropy"] <= math.log(10)
        assert 0 <= each["mutual_information"] <= each["predictive_entropy"]
        assert 0 <= each["variation_ratio"] <= 1


def test_models_are_controlled_from_inside_the_container_only(stack: Stack) -> None:
    outputs = stack.python(
        "import json, subprocess, sys; print(json.dumps([subprocess.run([sys.executable, '-m', "
        "'service.control', action, 'digits'], capture_output=True, text=True).stdout "
        "for action in ('unload', 'load', 'follow')]))"
    )
    outside = httpx.post(f"{stack.url}/v2/repository/models/digits/unload")

    assert outputs == [
        "digits: unloaded\n",
        "digits: loaded\n",
        "digits: stable version 1 (the newest)\n",
    ]
    assert outside.status_code == httpx.codes.FORBIDDEN


def test_service_has_no_torch_and_no_compiler(stack: Stack) -> None:
    modules = stack.python(
        "import importlib.util as i, json; print(json.dumps([name for name in "
        "('onnxruntime', 'torch', 'lightning', 'sklearn', 'training') if i.find_spec(name)]))"
    )
    commands = stack.python(
        "import json, shutil; print(json.dumps([name for name in "
        "('python', 'cc', 'gcc', 'g++', 'clang', 'ld', 'make') if shutil.which(name)]))"
    )

    assert modules == ["onnxruntime"]
    assert commands == ["python"]


def test_service_runs_without_privileges(stack: Stack) -> None:
    status = stack.python(
        "import json, pathlib; print(json.dumps(dict(line.split(':\\t', 1) for line in "
        "pathlib.Path('/proc/1/status').read_text().splitlines())))"
    )

    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(USER)}
    assert {name: int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")} == {
        "CapPrm": 0,
        "CapEff": 0,
        "CapBnd": 0,
    }
    assert int(status["NoNewPrivs"]) == 1


def test_service_can_write_only_to_tmp(stack: Stack) -> None:
    refusals = stack.python(
        "import json, pathlib\n"
        "refusals = {}\n"
        "for folder in ('/app', '/venv', '/models', '/tmp'):\n"
        "    try:\n"
        "        pathlib.Path(folder, 'written').touch()\n"
        "        refusals[folder] = None\n"
        "    except OSError as error:\n"
        "        refusals[folder] = error.errno\n"
        "print(json.dumps(refusals))"
    )

    read_only = errno.EROFS  # not EACCES, which only the file's owner would cause
    assert refusals == {"/app": read_only, "/venv": read_only, "/models": read_only, "/tmp": None}


def test_resource_limits_are_set(stack: Stack) -> None:
    limits = stack.inspect(
        "service",
        '{"memory": {{.HostConfig.Memory}}, "pids": {{.HostConfig.PidsLimit}}, '
        '"nano_cpus": {{.HostConfig.NanoCpus}}}',
    )

    assert limits == {"memory": 2 * 2**30, "pids": 256, "nano_cpus": 10**9}


def test_health_check_passes(stack: Stack) -> None:
    kind, *command = stack.inspect("service", "{{json .Config.Healthcheck.Test}}")

    assert kind == "CMD"
    stack.compose("exec", "-T", "service", *command)


def test_telemetry_of_onnx_runtime_is_off(stack: Stack) -> None:
    # ONNX Runtime writes an identity of the machine when its telemetry is on.
    traces = stack.python(
        "import json, pathlib; print(json.dumps([str(path) for path in "
        "pathlib.Path('/tmp').rglob('*') if path.name in ('deviceid', '.ses')]))"
    )

    assert traces == []


def test_second_up_trains_nothing(stack: Stack) -> None:
    skipped = stack.logs("trainer").count("is there already")

    stack.compose("up", "-d")
    stack.wait_until_ended("trainer")
    stack.wait_until_ready()

    assert stack.logs("trainer").count("is there already") > skipped
    assert stack.inspect("trainer", "{{.State.ExitCode}}") == 0
    assert stack.python("import json, os; print(json.dumps(os.listdir('/models/digits')))") == ["1"]
    served = httpx.get(f"{stack.url}/models").json()["models"]
    assert [(each["name"], each["version"]) for each in served] == [("digits", "1")]


def test_sigterm_ends_the_service_in_time(stack: Stack) -> None:
    started = time.monotonic()

    stack.compose("stop", "service")

    seconds = time.monotonic() - started
    try:
        assert stack.inspect("service", "{{json .State.Status}}") == "exited"
        assert stack.inspect("service", "{{.State.ExitCode}}") == 0  # 137 when it had to be killed
        assert seconds < GRACE_SECONDS
    finally:
        stack.compose("start", "service")
        stack.wait_until_ready()


def _digits(count: int) -> tuple[list[bytes], list[str]]:
    data = load_digits()
    rows = np.linspace(0, len(data.target) - 1, count).round().astype(int)
    grey = np.round(data.images[rows] * 255 / 16).astype(np.uint8)
    return [_png(image) for image in grey], [str(label) for label in data.target[rows]]


def _png(image: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _form(images: list[bytes]) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("file", (f"{row}.png", image, "image/png")) for row, image in enumerate(images)]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
