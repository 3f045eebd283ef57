"""Runs a Ray cluster of several nodes on this machine, and one Serve application on it.

    python benchmarks/reliability/ray_cluster_process.py CONFIG.yaml NODES

It runs in an environment with Ray (`make .venv-ray`), until SIGTERM. SIGUSR1 adds a node. The nodes
have the addresses 127.0.0.2, 127.0.0.3 and so on, and one processor each, as far as Ray knows.
"""

import signal
import subprocess
import sys
from pathlib import Path
from queue import SimpleQueue

from ray.cluster_utils import Cluster

_FIRST_NODE = 2
_NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


def main(config: str, nodes: int) -> None:
    """Start the nodes and the application; add nodes when told to."""
    signals: SimpleQueue[int] = SimpleQueue()
    for awaited in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(awaited, lambda number, _frame: signals.put(number))
    head = {"include_dashboard": False, "node_ip_address": f"127.0.0.{_FIRST_NODE}", **_NODE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for number in range(1, nodes):
        _add(cluster, number)
    serve = Path(sys.executable).with_name("serve")
    command = [serve, "run", config, "--address", cluster.address]
    with subprocess.Popen(command) as application:  # noqa: S603
        while signals.get() == signal.SIGUSR1:
            _add(cluster, nodes)
            nodes += 1
        application.terminate()
    cluster.shutdown()


def _add(cluster: Cluster, number: int) -> None:
    cluster.add_node(node_ip_address=f"127.0.0.{_FIRST_NODE + number}", **_NODE)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
