"""A Ray cluster with our Serve application, whose replicas and nodes can be killed.

The processes are found by their command lines, so nothing of Ray is imported here.
"""

import os
import secrets
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import yaml

from benchmarks.reliability.wire import Address, exchange, request
from benchmarks.serving.environments import ROOT
from benchmarks.serving.servers import Command, Server

CONFIG = ROOT / "deploy" / "ray" / "dropserve.yaml"
MIDDLEWARES = "service.ray_serve.proxy_middleware:middlewares"
_PROCESS = Path(__file__).with_name("ray_cluster_process.py")
_START_SECONDS = 300.0
_POLL_SECONDS = 0.1
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    # The only proxy shall send as much to the replica of the other node as to that of its own.
    "RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": MIDDLEWARES,
    "PYTHONPATH": str(ROOT),
}


class RayCluster:
    """A running cluster of several nodes; a context manager."""

    def __init__(
        self,
        python: Path,
        folder: Path,
        port: int,
        nodes: int,
        arguments: Mapping[str, Any],
        options: Mapping[str, Any],
        cores: str = "",
    ) -> None:
        """Start the cluster.

        python: of an environment with Ray.
        folder: gets its log and its configuration.
        arguments: settings of the service.
        options: of the deployment, instead of the `autoscaling_config` of the file.
        cores: as `taskset -c` takes them; empty for all.
        """
        self.address: Address = ("127.0.0.1", port)
        self._log = folder / "log.txt"
        config = folder / "serve.yaml"
        config.write_text(yaml.safe_dump(_config(port, arguments, options)))
        program = [str(python), str(_PROCESS), str(config), str(nodes)]
        # Ray's ports are open to other machines, whatever addresses its nodes have.
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.server = Server(Command(program, _ENVIRONMENT | token), cores, folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.end()

    def wait_until_ready(self, replicas: int) -> None:
        """Wait until so many replicas live and have got ready, and the proxy finds them.

        Raises:
            ServerFailedError: the cluster has ended.
            TimeoutError: it takes five minutes.
        """
        deadline = time.monotonic() + _START_SECONDS
        while not (self._ready_replicas() == replicas and self.is_ready()):
            self.server.require_running()
            if time.monotonic() > deadline:
                raise TimeoutError(f"the cluster is not ready: {self.server.log_tail()}")
            time.sleep(_POLL_SECONDS)

    def is_ready(self) -> bool:
        """Ask one replica, by the proxy."""
        response = exchange(self.address, request("GET", "/health/ready"), timeout=5)
        return response is not None and response.status == 200

    def replicas(self) -> list[int]:
        """Return the process ids of the replicas."""
        return self._processes(b"ray::ServeReplica:")

    def kill_replica(self) -> None:
        """Kill the newest replica (SIGKILL)."""
        _kill(self.replicas()[-1])

    def kill_node(self) -> None:
        """Kill every process of the newest node (SIGKILL), as if its host had lost its power."""
        raylet = self._processes(b"/raylet\0")[-1]
        for process in [raylet, *_descendants(raylet)]:
            _kill(process)

    def add_node(self) -> None:
        """Add a node; it is there some seconds later."""
        os.kill(self.server.pid, signal.SIGUSR1)

    def log(self) -> str:
        """Return what the cluster has written."""
        return self._log.read_text(errors="replace")

    def _ready_replicas(self) -> int:
        """Return how many living replicas have logged that they are ready."""
        ready = [line for line in self.log().splitlines() if '"event": "ready"' in line]
        return sum(any(f"pid={each}" in line for line in ready) for each in self.replicas())

    def _processes(self, part: bytes) -> list[int]:
        """Return the processes of the cluster that have this in their command, oldest first."""
        started = self.server.processes()
        found = [each for each in started if part in _command(each)]
        return sorted(found, key=lambda each: int(started[each]))


def _config(port: int, arguments: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """Return the configuration of `deploy/ray`, with these changes."""
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["proxy_location"] = "HeadOnly"  # the nodes share the ports of this machine
    config["http_options"]["port"] = port
    application = config["applications"][0]
    application["args"] |= arguments
    deployment = application["deployments"][0]
    deployment.pop("autoscaling_config")
    deployment |= options
    return config


def _command(process: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes()
    return b""


def _descendants(process: int) -> list[int]:
    found = []
    with suppress(OSError):
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                found += [child, *_descendants(child)]
    return found


def _kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
