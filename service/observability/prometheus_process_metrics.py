"""The standard process metrics of every worker, read from /proc when they are asked for.

Any worker can answer a scrape, so the one that does reads those of all. Knows no metric of its own.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from prometheus_client import ProcessCollector
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_GAUGE_FILES = "gauge_live*_*.db"
"""What prometheus_client names the files that a worker has while it runs."""


class WorkerProcesses(Collector):
    """`process_…` of each worker, by the label `pid`; nothing where there is no /proc."""

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        """Collect nothing yet; pids: returns the process ids of the workers that run now."""
        self._pids = pids

    def collect(self) -> Iterator[Metric]:
        """Yield each process metric with one sample for each worker."""
        merged: dict[str, Metric] = {}
        for pid in sorted(self._pids()):
            for found in ProcessCollector(pid=partial(int, pid), registry=None).collect():
                empty = Metric(found.name, found.documentation, found.type)
                family = merged.setdefault(found.name, empty)
                for sample in found.samples:
                    family.add_sample(sample.name, {"pid": str(pid)}, sample.value)
        yield from merged.values()

    def describe(self) -> list[Metric]:
        """Describe nothing: the registry would otherwise collect to find the names."""
        return []


def this_process() -> set[int]:
    """Return the process id of a service that has one process."""
    return {os.getpid()}


def workers_of(folder: Path) -> set[int]:
    """Return the process ids of the workers whose metric files are in a folder."""
    return {int(file.stem.rpartition("_")[2]) for file in folder.glob(_GAUGE_FILES)}
