"""The rollouts of all models, in one file that every replica reads, on this host or on others.

A change reaches all of them through the file, and none is lost: writers exclude each other by a
lock, and where a file system grants that lock twice, a hard link decides who was first. Knows no
bundle.
"""

import errno
import fcntl
import hashlib
import os
import secrets
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog
from pydantic import BaseModel, Field, ValidationError

from model.bundle.bounded_reading import read_file
from service.errors import RolloutError
from service.once_a_minute import OnceAMinute
from service.registry import atomic_files
from service.registry.peer_process_records import Peer, Peers
from service.registry.process_identity import ProcessIdentity, this_process
from service.registry.rollout_spec import RolloutSpec

logger = structlog.stdlib.get_logger("service")

_FILE = "releases.json"
_LOCK = "releases.lock"
_KEPT_GENERATIONS = 16
"""How many of the last generations stay beside the file."""
_MAX_BYTES = 16 * 2**20
_LOCK_SECONDS = 5.0
_LOCK_RETRY_SECONDS = 0.02
_MOST_TRIES = 50
"""How often a change is tried while other writers are faster, though the lock excludes them."""
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})
_NO_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK})


class _RolloutFile(BaseModel):
    """The content of the file."""

    generation: int = 0
    models: dict[str, RolloutSpec] = Field(default_factory=dict)
    began: str = ""
    """At random, so that a file that begins anew follows no older one."""


@dataclass(frozen=True)
class _Stored:
    """A content of the file, as it was read or written."""

    text: bytes
    content: _RolloutFile

    @property
    def successor(self) -> str:
        """The name of the file that the next generation has, too, whoever writes it first."""
        digest = hashlib.sha256(self.text).hexdigest()[:16]
        return f"releases-{self.content.generation + 1}-after-{digest}.json"


_NOTHING = _Stored(b"", _RolloutFile())


class RolloutStore:
    """The rollouts of all models, in a folder that replicas share."""

    default_model: str | None = None
    """The model of requests that name none; the folder has a file of its own for it."""

    def __init__(
        self,
        folder: Path | None,
        me: ProcessIdentity | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read nothing yet.

        folder: where the file is; None: a temporary folder, created by the first change.
        me: the process whose store this is; None: this process.
        clock: tells how long peers on other hosts have been silent, and when the last warning was,
            seconds.
        """
        self._folder = folder
        self._peers = None if folder is None else Peers(folder, me or this_process(), clock)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._stored = _NOTHING
        self._has_read = folder is None
        self._problem: str | None = None
        self._stopping = threading.Event()
        self._has_warned_of_links = False
        self._warnings = OnceAMinute(clock)

    @property
    def generation(self) -> int:
        """The number of changes so far, as last read."""
        return self._stored.content.generation

    @property
    def models(self) -> Mapping[str, RolloutSpec]:
        """The rollouts by model, as last read; models without one follow their newest version."""
        return self._stored.content.models

    def get(self, name: str) -> RolloutSpec:
        """Return the rollout of a model, as last read."""
        return self.models.get(name, RolloutSpec())

    @property
    def unread_reason(self) -> str | None:
        """Why the file has never been read; None if it has. Until then no model may be active."""
        return None if self._has_read else self._problem or f"{_FILE} has not been read yet."

    @property
    def is_valid(self) -> bool:
        """Whether the file could be read the last time."""
        return self._problem is None

    def read(self) -> None:
        """Read the file again; if it cannot be read, log that and keep the last content."""
        if self._folder is None:
            return
        try:
            self._stored = self._read_newest(self._folder)
        except (OSError, ValidationError) as error:
            reason = (
                error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.strerror
            )
            problem = f"{_FILE} cannot be read ({reason}); mend or remove it."
            if problem != self._problem:
                logger.error("releases unreadable", folder=str(self._folder), reason=problem)  # noqa: TRY400
            self._problem = problem
            return
        self._problem = None
        self._has_read = True

    def require_changeable(self) -> None:
        """Do nothing: commands may change these rollouts."""

    def change(self, name: str, step: Callable[[RolloutSpec], RolloutSpec]) -> None:
        """Change the rollout of a model, under a lock that excludes other processes.

        step: is given the current rollout and returns the new one; it may be called again.

        Raises:
            RolloutError: `step` raises it, the folder cannot be written, or the lock is not free.
        """
        try:
            with self._locked() as folder:
                for _ in range(_MOST_TRIES):
                    self.read()
                    if self._problem is not None:
                        raise RolloutError(self._problem)
                    if self._try_change(folder, name, step):
                        return
        except OSError as error:
            raise RolloutError(
                f"The change cannot be kept ({error.strerror}); name a folder that can be written "
                "with --control-folder."
            ) from None
        raise RolloutError("Other replicas are changing rollouts, too; try again.")

    def mark_applied(self, generation: int, missing: Mapping[str, Sequence[int]]) -> None:
        """Record that this process has applied the rollouts of a generation.

        missing: the versions that they name and that this process could not load, by model.
        """
        if self._peers is not None:
            with self._warning_each_minute():
                self._peers.announce(generation, missing)

    def beat(self) -> None:
        """Record that this process lives, and forget those that do not."""
        if self._peers is not None:
            with self._warning_each_minute():
                self._peers.beat()
                self._peers.look()
                self._peers.remove_gone()

    @contextmanager
    def _warning_each_minute(self) -> Iterator[None]:
        """Log an error, one a minute: this process serves on, and no command waits for it."""
        try:
            yield
        except OSError as error:
            if self._warnings.may_log():
                logger.warning(
                    "peers do not see this process",
                    folder=str(self._folder),
                    reason=error.strerror,
                    hint="let it write into the control folder",
                )

    def lagging_peers(self) -> Sequence[Peer]:
        """Return the live peers that have not applied the rollouts that were last read here."""
        if self._peers is None:
            return ()
        live = self._peers.look()
        return [each for each in live if each.record.generation < self.generation]

    def peers_without_versions(self, name: str) -> Sequence[Peer]:
        """Return the live peers that could not load a version that a model's rollout names."""
        if self._peers is None:
            return ()
        return [each for each in self._peers.look() if each.record.missing.get(name)]

    def stop(self) -> None:
        """Stop waiting for the lock, now and later."""
        self._stopping.set()

    def close(self) -> None:
        """Remove the record of this process, so that no other waits for it."""
        self._stopping.set()
        if self._peers is not None:
            self._peers.leave()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _read_newest(self, folder: Path) -> _Stored:
        """Return what the file holds, or a later generation that its writer could not put there.

        Without a file what was read before stays: no change yet, or an operator has removed it.
        """
        try:
            newest = _read(folder / _FILE)
        except FileNotFoundError:
            newest = self._stored
        while newest is not _NOTHING:
            try:
                newest = _read(folder / newest.successor)
            except FileNotFoundError:
                break
        return newest

    def _try_change(
        self, folder: Path, name: str, step: Callable[[RolloutSpec], RolloutSpec]
    ) -> bool:
        """Change what was last read; return False if it is not the newest any more."""
        before = self._stored
        models = {**before.content.models, name: step(self.get(name))}
        if not (folder / _FILE).exists() and self._begin(folder):
            return False
        update = {"generation": before.content.generation + 1, "models": models}
        # Without defaults: a release of the service that does not know a field refuses it.
        text = before.content.model_copy(update=update).model_dump_json(
            indent=2, exclude_defaults=True
        )
        if not self._claim(folder / before.successor, text):
            return False
        try:
            atomic_files.write(folder / _FILE, text)
            _remove_old_generations(folder, before.content.generation + 1)
        except OSError:
            if not (folder / before.successor).exists():
                raise
            logger.exception("releases not replaced", folder=str(folder))  # yet the change is kept
        self._stored = _parse(text.encode())
        return True

    def _begin(self, folder: Path) -> bool:
        """Write the file where there is none, so that two first changes differ in their order.

        Return whether there is a new first content to be read.
        """
        is_first = self._stored is _NOTHING
        began = _RolloutFile(began=secrets.token_hex(8)).model_dump_json(exclude_defaults=True)
        text = began if is_first else self._stored.text.decode()
        try:
            return not atomic_files.create(folder / _FILE, text) or is_first
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        return False

    def _claim(self, successor: Path, text: str) -> bool:
        """Write the next generation; return False if another writer was first."""
        try:
            return atomic_files.create(successor, text)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if not self._has_warned_of_links:
                self._has_warned_of_links = True
                logger.warning(
                    "control folder without hard links",
                    folder=str(successor.parent),
                    hint="changes of several hosts rest on its locks alone",
                )
        return True

    @contextmanager
    def _locked(self) -> Iterator[Path]:
        """Hold the lock, and yield the folder, which is created if necessary."""
        if self._folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="dropserve-releases-")
            self._folder = Path(self._temporary.name)
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = _open_lock(self._folder / _LOCK)
        try:
            self._lock(descriptor)
            yield self._folder
        finally:
            os.close(descriptor)

    def _lock(self, descriptor: int) -> None:
        """Take the lock; raise RolloutError if that takes too long."""
        end = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end or self._stopping.wait(_LOCK_RETRY_SECONDS):
                    raise RolloutError(
                        f"Another process has held {_LOCK} for {_LOCK_SECONDS:g} seconds; try "
                        "again, or end that process."
                    ) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                raise RolloutError(
                    "The file system of the control folder has no locks; mount it with locks, as "
                    "NFS 4 has them, or name another folder with --control-folder."
                ) from None
            else:
                return


def _open_lock(file: Path) -> int:
    """Open the lock file; anything but a regular file is refused, as it could block."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(file, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{_LOCK} is no regular file")
    return descriptor


def _read(file: Path) -> _Stored:
    return _parse(read_file(file, _MAX_BYTES))


def _parse(text: bytes) -> _Stored:
    return _Stored(text, _RolloutFile.model_validate_json(text))


def _remove_old_generations(folder: Path, generation: int) -> None:
    """Remove all generations but those near the newest, which other writers may still name."""
    for file in folder.glob("releases-*-after-*.json"):
        number = file.name.split("-")[1]
        if not number.isdecimal() or abs(int(number) - generation) >= _KEPT_GENERATIONS:
            with suppress(OSError):
                file.unlink(missing_ok=True)
