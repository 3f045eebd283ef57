"""Which version of a model is to serve: the newest or a held one, a canary's share, or none.

Kept in one file that every worker reads, so that a change made by one reaches all. Knows no bundle.
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

from model.bundle.files import read
from service.errors import RolloutError

logger = structlog.stdlib.get_logger("service")

_FILE = "releases.json"
_LOCK = "releases.lock"
_APPLIED = "applied-"
_MOST_BYTES = 16 * 2**20
_LOCK_SECONDS = 5.0
_LOCK_AGAIN_SECONDS = 0.02


class RolloutSpec(BaseModel):
    """What is wanted of one model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    held: int | None = Field(None, description="the stable version; null: the newest good one")
    canary: int | None = Field(None, description="a version on trial beside the stable one")
    share: float = Field(0, ge=0, le=1, description="of the requests, for the canary")
    previous: int | None = Field(None, description="the version that a rollback returns to")
    unloaded: bool = Field(False, description="taken out of service")
    attempt: int = Field(0, description="raised when refused versions are to be tried again")

    def loaded(self) -> "RolloutSpec":
        """Put the model back into service, and try again what was refused."""
        return self.model_copy(update={"unloaded": False, "attempt": self.attempt + 1})

    def taken_out(self) -> "RolloutSpec":
        """Take the model out of service; what else is wanted of it is kept."""
        return self.model_copy(update={"unloaded": True})

    def pinned(self, version: int) -> "RolloutSpec":
        """Hold one version, whatever else appears."""
        return self._with(held=version)

    def followed(self) -> "RolloutSpec":
        """Serve the newest good version again."""
        return self._with()

    def tried(self, stable: int | None, version: int, share: float) -> "RolloutSpec":
        """Give `version` a share of the requests; the others stay with `stable`.

        Raises:
            RolloutError: nothing serves beside it, or it is the stable one itself.
        """
        if stable is None:
            raise RolloutError("The model is not in service; load it first.")
        if version == stable:
            raise RolloutError(f"Version {version} is the stable one already; name another.")
        return self._with(held=stable, canary=version, share=share)

    def promoted(self, stable: int | None) -> "RolloutSpec":
        """Make the canary the stable version.

        Raises:
            RolloutError: there is no canary.
        """
        if self.canary is None:
            raise RolloutError("There is no canary to promote; start one first.")
        return self._with(held=self.canary, previous=stable)

    def rolled_back(self, lower: int | None) -> "RolloutSpec":
        """End the canary; where there is none, return to the version before.

        lower: the next lower version on disk, for want of a remembered one.

        Raises:
            RolloutError: there is nothing to return to.
        """
        if self.canary is not None:
            return self._with(held=self.held)
        target = self.previous if self.previous is not None else lower
        if target is None:
            raise RolloutError("There is no earlier version to roll back to; copy one back first.")
        return self._with(held=target)

    def _with(self, **wanted: int | float | None) -> "RolloutSpec":
        return RolloutSpec.model_validate(
            {"unloaded": self.unloaded, "attempt": self.attempt, **wanted}
        )


class _RolloutFile(BaseModel):
    generation: int = 0
    models: dict[str, RolloutSpec] = Field(default_factory=dict)


class RolloutStore:
    """The releases of all models, in a folder that the workers share."""

    def __init__(self, folder: Path | None, processes: int = 1) -> None:
        """Read nothing yet.

        folder: where to keep them; None: a temporary one, made when there is need.
        processes: how many share it, this one among them.
        """
        self._folder = folder
        self._processes = processes
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._known = _RolloutFile()
        self._is_known = folder is None
        self._problem: str | None = None
        self._closing = threading.Event()
        self._applied = -1

    @property
    def generation(self) -> int:
        """How many changes there have been, as last read."""
        return self._known.generation

    def get(self, name: str) -> RolloutSpec:
        """Return what is wanted of a model, as last read."""
        return self._known.models.get(name, RolloutSpec())

    @property
    def unknown(self) -> str | None:
        """Say what is wrong where the file could not be read even once: nothing may serve then."""
        return None if self._is_known else self._problem or f"{_FILE} has not been read yet."

    def read(self) -> None:
        """Read the file again; one that cannot be read is logged, and changes nothing."""
        if self._folder is None:
            return
        try:
            self._known = _RolloutFile.model_validate_json(read(self._folder / _FILE, _MOST_BYTES))
        except FileNotFoundError:  # nothing was changed yet, or a damaged one was removed
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
        self._is_known = True

    def change(self, name: str, step: Callable[[RolloutSpec], RolloutSpec]) -> None:
        """Change what is wanted of a model, whoever else does so at the same time.

        Raises:
            RolloutError: `step` refuses, or the folder cannot be written.
        """
        try:
            with self._locked() as folder:
                self.read()
                if self._problem is not None:
                    raise RolloutError(self._problem)
                models = self._known.models | {name: step(self.get(name))}
                changed = _RolloutFile(generation=self.generation + 1, models=models)
                _replace(folder / _FILE, changed.model_dump_json(indent=2))
                self._known = changed
        except OSError as error:
            raise RolloutError(
                f"The change cannot be kept ({error.strerror}); name a folder that can be written "
                "with --control-folder."
            ) from None

    def applied(self, generation: int) -> None:
        """Note that this process serves what was wanted as of that generation."""
        if self._folder is not None and self._applied != generation:
            with suppress(OSError):
                self._folder.mkdir(parents=True, exist_ok=True)
                _replace(self._folder / f"{_APPLIED}{os.getpid()}", str(generation))
                self._applied = generation

    def stop(self) -> None:
        """Wait for no lock any more."""
        self._closing.set()

    def others_follow(self) -> bool:
        """Whether every other process serves what was last read here."""
        if self._folder is None or self._processes == 1:
            return True
        others = [
            _generation(file)
            for file in self._folder.glob(f"{_APPLIED}*")
            if _alive(file.name.removeprefix(_APPLIED))
        ]
        following = [generation >= self.generation for generation in others]
        return len(following) >= self._processes - 1 and all(following)

    def close(self) -> None:
        """Stop being one of the processes that have to follow."""
        self._closing.set()
        if self._folder is not None:
            with suppress(OSError):
                (self._folder / f"{_APPLIED}{os.getpid()}").unlink(missing_ok=True)
        if self._temporary is not None:
            self._temporary.cleanup()

    @contextmanager
    def _locked(self) -> Iterator[Path]:
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
        """Take the lock; whoever holds it for long is not waited for."""
        end = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end or self._closing.wait(_LOCK_AGAIN_SECONDS):
                    raise RolloutError(
                        f"Another process has held {_LOCK} for {_LOCK_SECONDS:g} seconds; try "
                        "again, or end that process."
                    ) from None
            else:
                return


def _open_lock(file: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(file, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{_LOCK} is no regular file")
    return descriptor


def forget_processes(folder: Path, pid: int | None = None) -> None:
    """Forget which processes had followed: one that has ended, or all, when a service starts."""
    for file in folder.glob(f"{_APPLIED}{'*' if pid is None else pid}"):
        with suppress(OSError):
            file.unlink()


def falls_to_canary(request_id: str, share: float) -> bool:
    """Whether a request is among the canary's share: always the same for the same id."""
    digest = hashlib.blake2b(request_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _replace(file: Path, text: str) -> None:
    draft = file.with_name(f".{file.name}-{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(file)


def _generation(file: Path) -> int:
    try:
        return int(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0


def _alive(pid: str) -> bool:
    """Whether another process of that number lives."""
    if not pid.isdecimal() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
