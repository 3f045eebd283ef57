"""The SQLite file of feedback: opened, created, bounded, and changed in transactions.

Processes share it: each has a connection of its own, and SQLite lets one of them write at a time.
The write-ahead log is flushed to the disk before a transaction that has labels is acknowledged.
A file that is moved away or removed leaves nothing of its own to the next one of that name. Knows
no label.
"""

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Self

from model.errors import DropserveError

SCHEMA_VERSION = 1
_APPLICATION_ID = 0x44524642
"""Says in the file's header that it is one of feedback."""
_BUSY_SECONDS = 5.0
"""How long to wait for another process that writes."""
_POLL_SECONDS = 0.001
_LOG_BYTES = 2**22
"""To this the write-ahead log is cut when it has been copied into the file."""
_LOG_SUFFIXES = ("-wal", "-shm")
"""Of the files that SQLite keeps beside the file: the write-ahead log, and its index."""
_RESERVE_SHARE = 1 / 16
"""Of the file, kept free for the pages that every transaction needs besides its content."""
_SCHEMA = """
CREATE TABLE versions (
    id INTEGER PRIMARY KEY, model TEXT NOT NULL, version TEXT NOT NULL, digest TEXT NOT NULL,
    class_names TEXT NOT NULL, validation_images INTEGER NOT NULL, UNIQUE (model, version, digest));
CREATE TABLE answers (
    id INTEGER PRIMARY KEY AUTOINCREMENT, request_id TEXT NOT NULL, version INTEGER NOT NULL,
    time REAL NOT NULL, content BLOB NOT NULL);
CREATE INDEX answers_of_requests ON answers (request_id);
CREATE TABLE labels (
    id INTEGER PRIMARY KEY, answer INTEGER NOT NULL, image INTEGER NOT NULL,
    version INTEGER NOT NULL, time REAL NOT NULL, truth INTEGER NOT NULL, label INTEGER NOT NULL,
    UNIQUE (answer, image));
CREATE TABLE pictures (label INTEGER PRIMARY KEY, png BLOB NOT NULL);
CREATE TABLE counts (
    version INTEGER NOT NULL, bin INTEGER NOT NULL, labels INTEGER NOT NULL,
    correct INTEGER NOT NULL, confidence REAL NOT NULL, decided INTEGER NOT NULL,
    answered INTEGER NOT NULL, answered_wrong INTEGER NOT NULL, sets INTEGER NOT NULL,
    covered INTEGER NOT NULL, set_classes INTEGER NOT NULL, PRIMARY KEY (version, bin));
CREATE TABLE tests (
    version INTEGER NOT NULL, number INTEGER NOT NULL, sets TEXT, coverage REAL,
    state BLOB NOT NULL, PRIMARY KEY (version, number));
"""
"""`labels.truth` and `labels.label` are numbers of classes. In `tests`, number 0 is the risk, and
further ones are coverages."""

Inode = tuple[int, int]
"""A file's device, and its number there."""


class FeedbackFileError(DropserveError):
    """The file cannot be used now."""


class FeedbackFile:
    """An open file. Only one thread may use it."""

    def __init__(
        self, path: Path, inode: Inode | None, connection: sqlite3.Connection, max_bytes: int
    ) -> None:
        """Take an open connection to the file that has an inode; see `open`."""
        self.path = path
        self.connection = connection
        self._log_inodes = {log: _inode(log) for log in _logs(path)}
        self._inode = inode
        self._max_bytes = max_bytes
        self._page_bytes: int = self._pragma("page_size")
        connection.execute(f"PRAGMA max_page_count = {max_bytes // self._page_bytes}")

    @classmethod
    def open(cls, path: Path, max_bytes: int, *, create: bool = True) -> Self:
        """Open the file, which is created where `create` and it does not exist.

        Raises:
            FeedbackFileError: it cannot be opened, is damaged, or is another program's.
        """
        with as_sentence(path):
            if create:
                _make_missing(path)
            _require_access(path)
            inode = _inode(path)  # before, so that another file that is put there now is noticed
            connection = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                _prepare(path, connection)
                return cls(path, inode, connection, max_bytes)
            except BaseException:
                connection.close()
                raise

    def close(self) -> None:
        """Close it; the last process to do so copies the write-ahead log into the file."""
        if not self.is_in_place:
            with suppress(sqlite3.Error):
                self.connection.execute("PRAGMA wal_checkpoint")
            with suppress(OSError):
                self._remove_own_logs()
        with suppress(sqlite3.Error):
            self.connection.close()

    @property
    def is_in_place(self) -> bool:
        """Whether the path still names the file that was opened, which may have been moved."""
        return _inode(self.path) == self._inode

    @property
    def has_changed(self) -> bool:
        """Whether anything was stored since it was opened."""
        return self.connection.total_changes > 0

    def _remove_own_logs(self) -> None:
        """Remove what a moved file has left behind, or SQLite would copy it into the next file."""
        with _locked(self.path.parent):
            for log, inode in self._log_inodes.items():
                if _inode(log) == inode:
                    log.unlink(missing_ok=True)

    @contextmanager
    def transaction(self, *, flushed: bool) -> Iterator[sqlite3.Connection]:
        """Change the file: all of it, or nothing if the body raises.

        flushed: whether the disk has it at the end. A killed process loses it in neither case.

        Raises:
            FeedbackFileError: the file cannot be changed now.
        """
        with as_sentence(self.path):
            self.connection.execute(f"PRAGMA synchronous = {'FULL' if flushed else 'NORMAL'}")
            self._begin()
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self.connection.execute("ROLLBACK")
                raise

    def _begin(self) -> None:
        """Begin to write, as soon as no other process does.

        SQLite's own waiting sleeps for up to 100 ms, while a busy process writes again and again.
        """
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                self.connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_SECONDS)
            else:
                return

    def lacking_bytes(self, content_bytes: int) -> int:
        """Return how many bytes are too few for so much more; 0 or less: there is room."""
        used = self._pragma("page_count") - self._pragma("freelist_count")
        room = self._max_bytes * (1 - _RESERVE_SHARE) - used * self._page_bytes
        return int(content_bytes - room)

    def _pragma(self, name: str) -> int:
        with as_sentence(self.path):
            value: int = self.connection.execute(f"PRAGMA {name}").fetchone()[0]
        return value


def why_unusable(path: Path) -> str | None:
    """Return in one sentence why `FeedbackFile.open` would refuse a file; None if it would not.

    The file is neither created nor changed. What a service that runs has not copied from its
    write-ahead log yet is not seen.
    """
    if not os.path.lexists(path):
        return None
    try:
        with as_sentence(path):
            _require_access(path)
            address = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
            with closing(sqlite3.connect(address, uri=True)) as connection:
                _is_new(path, connection)
    except FeedbackFileError as error:
        return str(error)
    return None


@contextmanager
def as_sentence(path: Path) -> Iterator[None]:
    """Turn what the disk or SQLite raises into a FeedbackFileError with a sentence."""
    try:
        yield
    except OSError as error:
        raise FeedbackFileError(
            f"{path} cannot be opened ({error.strerror}); give this user access to it and to its "
            "folder, or name another --feedback."
        ) from None
    except sqlite3.DatabaseError as error:
        raise FeedbackFileError(f"{path} {_why(error)}") from None


def _why(error: sqlite3.DatabaseError) -> str:
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
            return (
                f"is damaged, or no feedback file ({error}); move it away with its -wal and -shm, "
                "and a new one is begun."
            )
        case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR:
            return f"cannot be written ({error}); free space on its disk, or repair it."
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return "is locked by another program; let that one end."
        case _:
            return f"cannot be used ({error}); give this user access to it and to its folder."


def _make_missing(path: Path) -> None:
    """Make an empty file for this user alone, where there is none; raises OSError."""
    if os.path.lexists(path):
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(path.parent):
        if not os.path.lexists(path):
            for log in _logs(path):
                log.unlink(missing_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _require_access(path: Path) -> None:
    """Raise OSError if this user may not read and write the file, or it is a link."""
    os.close(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes from removing logs meanwhile, which may be those of a new file."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _logs(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in _LOG_SUFFIXES]


def _inode(path: Path) -> Inode | None:
    """Return the device and the number of a file; None: there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _prepare(path: Path, connection: sqlite3.Connection) -> None:
    """Set what every connection needs, and create the tables in a new file."""
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise FeedbackFileError(
            f"{path} lies where SQLite has no write-ahead log; name a file on a local disk."
        )
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
    connection.execute("BEGIN IMMEDIATE")
    if _is_new(path, connection):
        for statement in _SCHEMA.split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")
    connection.execute("PRAGMA busy_timeout = 0")


def _is_new(path: Path, connection: sqlite3.Connection) -> bool:
    """Return whether a file has no tables yet.

    Raises:
        FeedbackFileError: it is another program's, or has another schema.
    """
    with closing(connection.execute("PRAGMA user_version")) as cursor:
        version = cursor.fetchone()[0]
    if version == 0 and not connection.execute("SELECT 1 FROM sqlite_schema").fetchone():
        return True
    if connection.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
        raise FeedbackFileError(f"{path} is a database of another program; name another file.")
    if version != SCHEMA_VERSION:
        raise FeedbackFileError(
            f"{path} has version {version} of the schema, and this program knows {SCHEMA_VERSION}; "
            "use the program that wrote it, or name another file."
        )
    return False
