"""Replicas that share a folder and nothing else, as on hosts of their own.

Each runs in new namespaces of the kernel (`ip netns`, `unshare`), as in a container: it has another
network, is process 1 there, and sees no process of another replica. That takes root.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from benchmarks.reliability.program import Options
from benchmarks.reliability.services import Service
from benchmarks.reliability.wire import Address

ISOLATION = (
    "each replica in a network namespace of its own (ip netns, joined by a veth pair), and in "
    "namespaces of processes and of the host's name (unshare), where it is process 1"
)


class IsolationError(Exception):
    """The namespaces cannot be made; the message says why in one sentence."""


class IsolatedHost:
    """One host, as far as processes, networks and names go; a context manager."""

    def __init__(self, name: str, number: int) -> None:
        """Make nothing yet; number: 1..250, of the network 10.213.NUMBER.0/30."""
        self._name, self._outside = name, f"ds-veth-{number}"
        self._network = f"10.213.{number}"
        self.address = f"{self._network}.2"

    @property
    def wrapper(self) -> Sequence[str]:
        """The command that runs another one, appended to it, on this host."""
        unshare = ("unshare", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc")
        script = f'hostname {self._name} && exec "$@"'
        return ("ip", "netns", "exec", self._name, *unshare, "sh", "-c", script, "sh")

    def __enter__(self) -> Self:
        self.__exit__()  # what an earlier run may have left
        inside = ("-n", self._name)
        for arguments in (
            ("netns", "add", self._name),
            ("link", "add", self._outside, "type", "veth", "peer", "eth0", "netns", self._name),
            ("addr", "add", f"{self._network}.1/30", "dev", self._outside),
            ("link", "set", self._outside, "up"),
            (*inside, "addr", "add", f"{self.address}/30", "dev", "eth0"),
            (*inside, "link", "set", "eth0", "up"),
            (*inside, "link", "set", "lo", "up"),
        ):
            done = _ip(*arguments)
            if done.returncode:
                self.__exit__()
                raise IsolationError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
        return self

    def __exit__(self, *_: object) -> None:
        _ip("netns", "delete", self._name)
        _ip("link", "delete", self._outside)


class IsolatedReplicas:
    """Running replicas of the same settings, each on a host of its own; a context manager."""

    def __init__(self, options: Options, models_folder: Path, count: int, *flags: str) -> None:
        """Prepare the replicas; they start with the context.

        flags: as `python -m service` takes them.
        """
        self._options, self._models_folder, self._flags = options, models_folder, flags
        self._hosts = [
            IsolatedHost(f"dropserve-{options.port}-{number}", number)
            for number in range(1, count + 1)
        ]
        self.addresses: Sequence[Address] = [(each.address, options.port) for each in self._hosts]
        self._services: list[Service] = []
        self._stack = ExitStack()
        self._starts = 0

    def __enter__(self) -> Self:
        if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
            raise IsolationError("this needs root, ip (Debian's iproute2) and unshare")
        with ExitStack() as stack:
            for host in self._hosts:
                stack.enter_context(host)
            stack.callback(self._end)
            self._services += [self._start(host) for host in self._hosts]
            for service in self._services:
                service.wait_until_ready()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def kill(self, index: int) -> None:
        """Kill a replica (SIGKILL) with all that it has started."""
        service = self._services[index]
        with suppress(ProcessLookupError):
            os.kill(service.pid, signal.SIGKILL)
        service.server.end()

    def start_again(self, index: int) -> None:
        """Start a replica that was killed, and wait until it is ready."""
        self._services[index] = self._start(self._hosts[index])
        self._services[index].wait_until_ready()

    def _start(self, host: IsolatedHost) -> Service:
        self._starts += 1
        flags = ("--host", "0.0.0.0", *self._flags)  # noqa: S104
        service = Service(
            self._options.folder(f"start-{self._starts}"),
            self._models_folder,
            self._options.port,
            *flags,
            wrapper=host.wrapper,
        )
        service.address = (host.address, self._options.port)
        return service

    def _end(self) -> None:
        for index in range(len(self._services)):
            self.kill(index)  # SIGTERM would not pass `unshare`


def _ip(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = ["ip", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
