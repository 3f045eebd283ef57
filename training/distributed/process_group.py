"""What a training process knows of the others: its rank, messages, and the process group.

The first process, rank 0, leads: it alone owns the run folder and the bundle. All others only help
to fit. Messages are JSON in the store in which the processes find each other. Knows no network and
no data set.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel
from torch import Tensor, distributed
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from training.data.shard import Shard

LOST_PROCESS_STATUS = 75
"""Exit status of a process that another one has left; EX_TEMPFAIL of sysexits.h."""

_PATIENCE = timedelta(days=7)
"""How long a process waits for another, which may have to download and decode its images first.

One that ends is noticed by its launcher, which ends the others."""

Message = TypeVar("Message", bound=BaseModel)


@dataclass(frozen=True)
class Processes:
    """This process among those of one training; by default it is the only one."""

    rank: int = 0
    """Counted over all machines, from 0."""
    count: int = 1
    """Processes on all machines together."""
    local_rank: int = 0
    """Counted on this machine, from 0."""
    local_count: int = 1
    """Processes on each machine."""
    store: Store | None = None
    """Where messages are left; None where there is only one process."""

    @property
    def shard(self) -> Shard:
        """The part of each batch that this process has."""
        return Shard(self.rank, self.count)

    @property
    def machine(self) -> int:
        """Number of this machine, from 0."""
        return self.rank // self.local_count

    @property
    def machines(self) -> int:
        """Number of machines."""
        return self.count // self.local_count

    def tell(self, topic: str, message: BaseModel) -> None:
        """Leave a message on `topic` for the others; it does nothing without others."""
        if self.store is not None:
            self.store.set(topic, message.model_dump_json())

    def hear(self, topic: str, kind: type[Message]) -> Message:
        """Wait for the message that another process leaves on `topic`, and return it."""
        assert self.store is not None
        return kind.model_validate_json(self.store.get(topic))

    def read_once(self, path: Path) -> bytes:
        """Return the content of a file that the first process alone reads and sends to the others.

        The process group has to be connected where there are others.
        """
        if self.count == 1:
            return path.read_bytes()
        content = torch.empty(0, dtype=torch.uint8)
        if self.rank == 0:
            content = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
        size = torch.tensor([len(content)])
        distributed.broadcast(size, src=0)
        content = content if self.rank == 0 else torch.empty(int(size), dtype=torch.uint8)
        distributed.broadcast(content, src=0)
        return content.numpy().tobytes()

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Connect the processes for collective operations, gloo on CPUs and NCCL on GPUs.

        Raises:
            SystemExit: another process has ended; its launcher says which and why.
        """
        if self.count == 1:
            yield
            return
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            distributed.init_process_group(
                backend, store=self.store, rank=self.rank, world_size=self.count, timeout=_PATIENCE
            )
            yield
        except RuntimeError as error:  # gloo's have no type of their own
            if isinstance(error, distributed.DistError) or "/gloo/" in str(error):
                raise SystemExit(LOST_PROCESS_STATUS) from error
            raise
        distributed.destroy_process_group()


ALONE = Processes()


def open_store(url: str, rank: int, count: int) -> Store:
    """Open the store in which `count` processes find each other; `url` as torch takes it."""
    store, _, _ = next(rendezvous(url, rank, count, timeout=_PATIENCE))
    assert isinstance(store, Store)
    return store


def mean_over_processes(x: Tensor) -> Tensor:
    """Return the mean over all connected processes of a tensor that each has, of the same shape."""
    if not distributed.is_initialized():
        return x
    total = x.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total / distributed.get_world_size()
