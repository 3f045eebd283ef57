"""Runs the service's image as a cluster runs it: as the manifests say, as an arbitrary user.

The network is one without a way out, as the NetworkPolicy makes it: the port can be reached, and
the container reaches nobody.
"""

import json
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from tests.containers.compose_stack import READY_SECONDS, run_engine
from tests.kubernetes.rendering import Manifest, container, pod_spec

USER = "12345:0"
"""A user that the image does not know, of the root group, as OpenShift chooses one."""


@dataclass(frozen=True)
class ClusterContainer:
    """A running container."""

    engine: str
    name: str
    url: str

    def python(self, source: str) -> Any:
        """Run `source` in the container and return the JSON that it prints."""
        return json.loads(self.run("exec", self.name, "python", "-c", source))

    def run(self, *arguments: str) -> str:
        """Run a command of the engine; return its standard output."""
        done = run_engine(self.engine, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def state(self) -> Any:
        return json.loads(self.run("inspect", "--format", "{{json .State}}", self.name))

    def log(self) -> str:
        done = run_engine(self.engine, "logs", self.name)
        return done.stdout + done.stderr

    def terminate(self) -> "subprocess.Popen[str]":
        """Send SIGTERM; return a process that ends with the container, and prints its status."""
        self.run("kill", "--signal", "TERM", self.name)
        return subprocess.Popen([self.engine, "wait", self.name], stdout=subprocess.PIPE, text=True)

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.url}/health/ready", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError(self.log())


@contextmanager
def closed_network(engine: str) -> Iterator[str]:
    """Make a network that nothing leads out of; yield its name."""
    name = f"dropserve-test-{uuid.uuid4().hex[:8]}"
    assert run_engine(engine, "network", "create", "--internal", name).returncode == 0
    try:
        yield name
    finally:
        run_engine(engine, "network", "rm", "--force", name)


@contextmanager
def cluster_container(
    image: tuple[str, str],
    workload: Manifest,
    mounts: Mapping[str, str],
    variables: Mapping[str, str],
    **replaced: str,
) -> Iterator[ClusterContainer]:
    """Run the container of a workload's manifest, and remove it afterwards.

    mounts: folders of this machine by the volumes that they take the place of.
    replaced: values of the placeholders in the arguments.
    """
    engine, reference = image
    described = container(workload)
    name = f"dropserve-test-{uuid.uuid4().hex[:8]}"
    arguments = list(described["args"])
    for placeholder, value in replaced.items():
        arguments = [each.replace(f"{{{{.{placeholder}}}}}", value) for each in arguments]
    limits = described["resources"]["limits"]
    with closed_network(engine) as network, TemporaryDirectory(ignore_cleanup_errors=True) as empty:
        options = [
            *("--name", name, "--network", network, "--user", USER, "--read-only"),
            *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
            *("--memory", limits["memory"].replace("i", "").lower()),
            *("--memory-swap", limits["memory"].replace("i", "").lower()),
            *("--cpus", limits["cpu"], "--pids-limit", "256"),
            *_volumes(workload, mounts, Path(empty)),
            *(f"--env={key}={variables[key]}" for key in variables),
        ]
        done = run_engine(engine, "run", "--detach", *options, reference, *arguments)
        try:
            assert done.returncode == 0, done.stderr
            template = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
            address = run_engine(engine, "inspect", "--format", template, name).stdout.strip()
            port = described["ports"][0]["containerPort"]
            running = ClusterContainer(engine, name, f"http://{address}:{port}")
            running.wait_until_ready()
            yield running
        finally:
            run_engine(engine, "rm", "--force", name)


def _volumes(workload: Manifest, mounts: Mapping[str, str], empty: Path) -> Iterator[str]:
    """Yield options for the workload's volumes: an emptyDir belongs to root, and all may write."""
    kinds = {each["name"]: each for each in pod_spec(workload)["volumes"]}
    for mount in container(workload)["volumeMounts"]:
        if "emptyDir" in kinds[mount["name"]]:
            folder = empty / mount["name"]
            folder.mkdir()
            folder.chmod(0o777)
            yield f"--volume={folder}:{mount['mountPath']}"
    for path, source in mounts.items():
        yield f"--volume={source}:{path}:ro"
