"""The rollout of each model: which version should be active, and a canary's share of requests.

All rollouts are in one file that every worker reads, so that a change by one reaches all. Knows no
bundle.
"""

import errno
import fcntl
import hashlib
import os
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.bundle.bounded_reading import read_file
from service.errors import RolloutError

logger = structlog.stdlib.get_logger("service")

_FILE = "releases.json"
_LOCK = "releases.lock"
_APPLIED = "applied-"
_MAX_BYTES = 16 * 2**20
_LOCK_SECONDS = 5.0
_LOCK_RETRY_SECONDS = 0.02


class RolloutSpec(BaseModel):
    """Which versions of one model should be active; the fields are those of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    held: int | None = Field(
        None, description="the pinned stable version; null: the newest that loads"
    )
    canary: int | None = Field(None, description="a version on trial beside the stable one")
    share: float = Field(0, ge=0, le=1, description="of the requests, for the canary")
    previous: int | None = Field(None, description="the version that a rollback returns to")
    unloaded: bool = Field(False, description="out of service")
    attempt: int = Field(0, description="increased to retry versions that failed to load")

    def as_loaded(self) -> "RolloutSpec":
        """Put the model back into service, and retry versions that failed to load."""
        return self.model_copy(update={"unloaded": False, "attempt": self.attempt + 1})

    def as_unloaded(self) -> "RolloutSpec":
        """Take the model out of service; pin, canary and history are kept."""
        return self.model_copy(update={"unloaded": True})

    def pinned(self, version: int) -> "RolloutSpec":
        """Pin one version, whichever newer ones appear."""
        return self._with_versions(held=version)

    def unpinned(self) -> "RolloutSpec":
        """Serve the newest version that loads."""
        return self._with_versions()

    def with_canary(self, stable: int | None, version: int, share: float) -> "RolloutSpec":
        """Give `version` a share of the requests, and pin `stable` for the others.

        Raises:
            RolloutError: there is no stable version, or `version` is the stable one.
        """
        if stable is None:
            raise RolloutError("The model is not in service; load it first.")
        if version == stable:
            raise RolloutError(f"Version {version} is the stable one already; name another.")
        return self._with_versions(held=stable, canary=version, share=share)

    def promoted(self, stable: int | None) -> "RolloutSpec":
        """Make the canary the stable version.

        Raises:
            RolloutError: there is no canary.
        """
        if self.canary is None:
            raise RolloutError("There is no canary to promote; start one first.")
        return self._with_versions(held=self.canary, previous=stable)

    def rolled_back(self, lower: int | None) -> "RolloutSpec":
        """End the canary; without one, return to the previous stable version.

        lower: the next lower version on disk, used where no previous one is recorded.

        Raises:
            RolloutError: there is nothing to return to.
        """
        if self.canary is not None:
            return self._with_versions(held=self.held)
        target = self.previous if self.previous is not None else lower
        if target is None:
            raise RolloutError("There is no earlier version to roll back to; copy one back first.")
        return self._with_versions(held=target)

    def _with_versions(self, **wanted: int | float | None) -> "RolloutSpec":
        return RolloutSpec.model_validate(
            {"unloaded": self.unloaded, "attempt": self.attempt, **wanted}
        )


class _RolloutFile(BaseModel):
    """The content of the file."""

    generation: int = 0
    models: dict[str, RolloutSpec] = Field(default_factory=dict)


class RolloutStore:
    """The rollouts of all models, in a folder that the workers share.

    Beside the file, each worker has a file `applied-PID` with the last generation that it applied.
    """

    def __init__(self, folder: Path | None, processes: int = 1) -> None:
        """Read nothing yet.

        folder: where the file is; None: a temporary folder, created by the first change.
        processes: how many share the folder, this one included.
        """
        self._folder = folder
        self._processes = processes
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._content = _RolloutFile()
        self._has_read = folder is None
        self._problem: str | None = None
        self._stopping = threading.Event()
        self._applied_generation = -1

    @property
    def generation(self) -> int:
        """The number of changes so far, as last read."""
        return self._content.generation

    def get(self, name: str) -> RolloutSpec:
        """Return the rollout of a model, as last read."""
        return self._content.models.get(name, RolloutSpec())

    @property
    def unread_reason(self) -> str | None:
        """Why the file has never been read; None if it has. Until then no model may be active."""
        return None if self._has_read else self._problem or f"{_FILE} has not been read yet."

    def read(self) -> None:
        """Read the file again; if it cannot be read, log that and keep the last content."""
        if self._folder is None:
            return
        try:
            self._content = _RolloutFile.model_validate_json(
                read_file(self._folder / _FILE, _MAX_BYTES)
            )
        except FileNotFoundError:  # no change yet, or an operator has removed a damaged file
            pass
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

    def change(self, name: str, step: Callable[[RolloutSpec], RolloutSpec]) -> None:
        """Change the rollout of a model, under a lock that excludes other processes.

        Raises:
            RolloutError: `step` raises it, the folder cannot be written, or the lock is not free.
        """
        try:
            with self._locked() as folder:
                self.read()
                if self._problem is not None:
                    raise RolloutError(self._problem)
                models = self._content.models | {name: step(self.get(name))}
                changed = _RolloutFile(generation=self.generation + 1, models=models)
                _write_atomically(folder / _FILE, changed.model_dump_json(indent=2))
                self._content = changed
        except OSError as error:
            raise RolloutError(
                f"The change cannot be kept ({error.strerror}); name a folder that can be written "
                "with --control-folder."
            ) from None

    def mark_applied(self, generation: int) -> None:
        """Record that this process has applied the rollouts of a generation."""
        if self._folder is not None and self._applied_generation != generation:
            with suppress(OSError):
                self._folder.mkdir(parents=True, exist_ok=True)
                _write_atomically(self._folder / f"{_APPLIED}{os.getpid()}", str(generation))
                self._applied_generation = generation

    def stop(self) -> None:
        """Stop waiting for the lock, now and later."""
        self._stopping.set()

    def peers_have_applied(self) -> bool:
        """Return whether every other process has applied the rollouts that were last read here."""
        if self._folder is None or self._processes == 1:
            return True
        generations = [
            _read_generation(file)
            for file in self._folder.glob(f"{_APPLIED}*")
            if _is_other_live_process(file.name.removeprefix(_APPLIED))
        ]
        have_applied = [generation >= self.generation for generation in generations]
        return len(have_applied) >= self._processes - 1 and all(have_applied)

    def close(self) -> None:
        """Remove the files of this process, so that no other waits for it."""
        self._stopping.set()
        if self._folder is not None:
            with suppress(OSError):
                (self._folder / f"{_APPLIED}{os.getpid()}").unlink(missing_ok=True)
        if self._temporary is not None:
            self._temporary.cleanup()

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


def remove_process_files(folder: Path, pid: int | None = None) -> None:
    """Remove the `applied-PID` file of an ended process; None: of all, when a service starts."""
    for file in folder.glob(f"{_APPLIED}{'*' if pid is None else pid}"):
        with suppress(OSError):
            file.unlink()


def routes_to_canary(request_id: str, share: float) -> bool:
    """Return whether a request goes to the canary; always the same for the same id.

    share: the canary's share of all ids, 0..1; an id in a small share is also in every larger one.
    """
    digest = hashlib.blake2b(request_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _write_atomically(file: Path, text: str) -> None:
    draft = file.with_name(f".{file.name}-{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(file)


def _read_generation(file: Path) -> int:
    try:
        return int(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0


def _is_other_live_process(pid: str) -> bool:
    """Return whether there is another process with that id."""
    if not pid.isdecimal() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
