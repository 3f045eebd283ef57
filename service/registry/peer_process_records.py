"""Records, in a shared folder, of what each serving process has applied, and whether it lives.

A peer is a process that serves with the same rollouts: another replica of the service, or a worker
of one. Each writes its record again every few seconds (its heartbeat). A peer on this host lives as
long as its process; one on another host as long as its record goes on changing, by this process's
clock: the clocks of hosts need not agree. Knows no rollout.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from model.bundle.bounded_reading import read_file
from service.registry import atomic_files
from service.registry.process_identity import ProcessIdentity, this_hostname

HEARTBEAT_SECONDS = 2.0
SILENCE_SECONDS = 10.0
"""How long the record of a peer on another host stays the same until it counts as gone."""
FORGET_SECONDS = 60.0
"""How long it stays the same until its files are removed."""
_MOST_SECONDS_OF_A_LOOK = 5.0
"""At most so much silence is added by one look: this process itself may have been suspended."""
_PREFIX, _SUFFIX = "peer-", ".json"
_MAX_BYTES = 2**20


class PeerRecord(BaseModel):
    """The content of a record."""

    hostname: str = ""
    generation: int = -1
    """Of the rollouts that the process has applied last."""
    missing: Mapping[str, Sequence[int]] = Field(default_factory=dict)
    """Versions that these rollouts name and that it could not load, by model."""
    heartbeat: int = 0
    """Increased each time that the record is written."""


@dataclass(frozen=True)
class Peer:
    """A peer, as its record was last seen."""

    identity: ProcessIdentity
    record: PeerRecord
    silent_seconds: float
    """For how long the record has not changed."""
    looked_at: float
    """When it was last looked at, seconds of the observer's clock."""

    def __str__(self) -> str:
        """Name the peer for people."""
        return f"process {self.identity.pid} on {self.record.hostname or 'an unknown host'}"


class Peers:
    """The records in a folder, as one of the processes sees them."""

    def __init__(
        self, folder: Path, me: ProcessIdentity, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Read and write nothing yet; clock: seconds, which may begin anywhere."""
        self._folder, self._me, self._clock = folder, me, clock
        self._lock = threading.Lock()
        self._record = PeerRecord(hostname=this_hostname())
        self._is_announced = False
        self._seen: dict[ProcessIdentity, Peer] = {}

    def announce(self, generation: int, missing: Mapping[str, Sequence[int]]) -> None:
        """Record what this process has applied, unless the record says so already.

        Raises:
            OSError: the folder cannot be written.
        """
        changes = {"generation": generation, "missing": missing}
        with self._lock:
            wanted = self._record.model_copy(update=changes)
            if not self._is_announced or wanted != self._record:
                self._write(wanted)

    def beat(self) -> None:
        """Write the record again, if there is one, so that others see that this process lives.

        Raises:
            OSError: the folder cannot be written.
        """
        with self._lock:
            if self._is_announced:
                self._write(self._record)

    def leave(self) -> None:
        """Remove the record of this process, so that no other waits for it."""
        with self._lock:
            self._is_announced = False
            with suppress(OSError):
                self._path(self._me).unlink(missing_ok=True)

    def look(self) -> Sequence[Peer]:
        """Read every record; return the peers that live.

        Raises:
            OSError: the folder cannot be read.
        """
        now = self._clock()
        with self._lock:
            self._seen = {each: self._look_at(each, now) for each in self._others()}
            return [each for each in self._seen.values() if self._is_live(each)]

    def remove_gone(self) -> None:
        """Remove the files of peers that will not come back."""
        for peer in self._seen.values():
            if self._is_here(peer.identity):
                is_gone = peer.identity.has_ended()
            else:
                is_gone = peer.silent_seconds >= FORGET_SECONDS
            if is_gone:
                _remove_files(self._folder, peer.identity)

    def _write(self, record: PeerRecord) -> None:
        record = record.model_copy(update={"heartbeat": self._record.heartbeat + 1})
        self._folder.mkdir(parents=True, exist_ok=True)
        atomic_files.write(self._path(self._me), record.model_dump_json(), is_lasting=False)
        self._record, self._is_announced = record, True

    def _others(self) -> Iterator[ProcessIdentity]:
        return (each for each in _recorded(self._folder) if each != self._me)

    def _look_at(self, identity: ProcessIdentity, now: float) -> Peer:
        record, before = self._read(identity), self._seen.get(identity)
        if before is None or (record and record.heartbeat != before.record.heartbeat):
            return Peer(identity, record or PeerRecord(), 0.0, now)
        silence = min(now - before.looked_at, _MOST_SECONDS_OF_A_LOOK)
        return replace(before, silent_seconds=before.silent_seconds + silence, looked_at=now)

    def _read(self, identity: ProcessIdentity) -> PeerRecord | None:
        """Return a record; None if it cannot be read, or has just been removed."""
        with suppress(OSError, ValidationError):
            return PeerRecord.model_validate_json(read_file(self._path(identity), _MAX_BYTES))
        return None

    def _is_live(self, peer: Peer) -> bool:
        if self._is_here(peer.identity):
            return not peer.identity.has_ended()
        return peer.silent_seconds < SILENCE_SECONDS

    def _is_here(self, identity: ProcessIdentity) -> bool:
        return identity.host == self._me.host

    def _path(self, identity: ProcessIdentity) -> Path:
        return self._folder / f"{_PREFIX}{identity}{_SUFFIX}"


def remove_ended(folder: Path, me: ProcessIdentity) -> None:
    """Remove the files of processes of this host that have ended; those of other hosts stay."""
    for identity in _recorded(folder):
        if identity.host == me.host and identity.has_ended():
            _remove_files(folder, identity)


def _recorded(folder: Path) -> Iterator[ProcessIdentity]:
    """Yield every process that has a record."""
    for file in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        identity = ProcessIdentity.parse(file.name[len(_PREFIX) : -len(_SUFFIX)])
        if identity is not None:
            yield identity


def _remove_files(folder: Path, identity: ProcessIdentity) -> None:
    atomic_files.remove_drafts(folder, identity)
    with suppress(OSError):
        (folder / f"{_PREFIX}{identity}{_SUFFIX}").unlink(missing_ok=True)
