"""The compose project under test, and the images that are sent to it.

COMPOSE names a command to use instead of `docker compose`; PACKAGE_INDEX is passed to the builds.
"""

import io
import json
import os
import shlex
import shutil
import subprocess
import time
import uuid
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.conftest import ROOT
from tests.free_port import free_port

ENGINES = ("docker", "podman")
BUILD_SECONDS = 2400.0
COMMAND_SECONDS = 300.0
READY_SECONDS = 60.0


class Stack:
    """The compose project, with a unique name and port."""

    def __init__(self) -> None:
        self.project = f"dropserve-test-{uuid.uuid4().hex[:8]}"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._compose = shlex.split(os.environ.get("COMPOSE") or "docker compose")

    def compose(self, *arguments: str, seconds: float = COMMAND_SECONDS, **environment: str) -> str:
        """Run one compose command; return its standard output, or fail with its whole output."""
        done = self._run(*arguments, seconds=seconds, **environment)
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

    def _run(
        self, *arguments: str, seconds: float, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._compose, "-p", self.project, *arguments],
            cwd=ROOT,
            env={**os.environ, "DROPSERVE_PORT": str(self.port), **environment},
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

    def image(self, service: str) -> tuple[str, str]:
        """Return the container engine that has the image of a service, and the image's name."""
        for engine in filter(shutil.which, ENGINES):
            for name in (f"{self.project}_{service}", f"{self.project}-{service}"):
                if run_engine(engine, "image", "inspect", name).returncode == 0:
                    return engine, name
        raise AssertionError(f"Neither of {ENGINES} has the image of {service}.")

    def _engine(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the container engine that has our containers."""
        for engine in filter(shutil.which, ENGINES):
            done = run_engine(engine, *arguments)
            if done.returncode == 0 and done.stdout.strip():
                return done
        raise AssertionError(f"Neither of {ENGINES} could {shlex.join(arguments)}.")


def run_engine(engine: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of a container engine."""
    return subprocess.run(
        [engine, *arguments],
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )


def digits(count: int) -> tuple[list[bytes], list[str]]:
    data = load_digits()
    rows = np.linspace(0, len(data.target) - 1, count).round().astype(int)
    grey = np.round(data.images[rows] * 255 / 16).astype(np.uint8)
    return [png(image) for image in grey], [str(label) for label in data.target[rows]]


def png(image: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def form(images: list[bytes]) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("file", (f"{row}.png", image, "image/png")) for row, image in enumerate(images)]
