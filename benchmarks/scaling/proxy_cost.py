"""Measures the processor time that a proxy in front of the service takes for a request."""

import resource
from pathlib import Path

from benchmarks.reliability.proxies import balancer
from benchmarks.serving.load import LoadGenerator, Target

PROXIES = ("haproxy", "nginx")
_CONNECTIONS = 32


def proxy_seconds(
    name: str, target: Target, load: LoadGenerator, port: int, folder: Path, seconds: int
) -> float:
    """Return the processor time of a proxy for each request that it forwards to the service.

    The proxy, in its shipped form of one process, stands before the target on a port of its own.
    """
    folder.mkdir()
    with balancer(name, folder, port, [("127.0.0.1", target.port)]):
        result = load.closed_loop(Target(port, target.path, target.content), _CONNECTIONS, seconds)
        before = _ended_children_seconds()  # wrk has ended, the proxy has not
    return (_ended_children_seconds() - before) / (result.rate * seconds)


def _ended_children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
