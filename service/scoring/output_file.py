"""The output as it grows: whole lines are appended, and what an earlier run wrote is kept.

A line counts once its line break is written, so a process that is killed loses no line and doubles
none: the next run drops a line that was cut, and goes on after the others.
"""

import csv
import fcntl
import os
import stat
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from model.errors import DropserveError
from service.scoring.result_lines import PATH, LineLayout, State, state_of


class OutputError(DropserveError):
    """The output cannot be written."""


class OutputFile:
    """A file of lines, open for appending; a context manager."""

    def __init__(self, path: Path, layout: LineLayout) -> None:
        """Open or create the file, and drop a last line that was cut.

        Raises:
            OutputError: it cannot be written, or another run writes it.
        """
        self.path = path
        self.layout = layout
        try:
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise unwritable(path, error) from None
        try:
            self._lock()
            self.states = self._recover()
            """The images that have a line, by name."""
        except OSError as error:
            self._file.close()
            raise unwritable(path, error) from None
        except OutputError:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        """Return the file."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._file.close()

    def append(self, lines: bytes) -> None:
        """Append whole lines.

        Raises:
            OutputError: the disk is full, for example; then none of them is in the file.
        """
        before = self._file.seek(0, os.SEEK_END)
        rest = memoryview(lines)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(before)
            raise unwritable(self.path, error) from None

    def flush(self) -> None:
        """Wait until all lines are on the disk; raises OutputError."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from None

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _written_by_another(self.path) from None
        except OSError:  # some network file systems have no locks
            return
        if not os.path.samestat(os.fstat(self._file.fileno()), self.path.stat()):
            raise _written_by_another(self.path)  # which has replaced the file since

    def _recover(self) -> dict[str, State]:
        """Drop a last line that was cut; return the names and states in the others.

        Raises:
            OutputError: an earlier line is none of this program's.
        """
        states: dict[str, State] = {}
        header = self.layout.header()
        end = 0
        with self.path.open("rb") as reader:
            for number, line in enumerate(reader, 1):
                if number == 1 and header:
                    is_whole = line == header
                else:
                    record = _record(line, self.layout)
                    is_whole = record is not None
                    if record is not None:
                        states[record[PATH]] = state_of(record)
                if not is_whole:
                    if line.endswith(b"\n"):
                        raise OutputError(
                            f"Line {number} of {self.path} was not written by this program; name "
                            "another --output."
                        )
                    break
                end += len(line)
        self._file.truncate(end)
        if end == 0:
            self.append(header)
        return states


def require_file(path: Path) -> None:
    """Raise OutputError for a folder or a device, of which reading may never end."""
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is a folder or a device, not a file; name another --output.")


def drop_lines(path: Path, layout: LineLayout, names: Container[str]) -> None:
    """Drop the lines of some images from a whole output that no run has open.

    Raises:
        OutputError: the file cannot be written; then it is as it was.
    """
    header = layout.header()

    def pieces() -> Iterator[bytes]:
        yield header
        with path.open("rb") as file:
            file.seek(len(header))
            yield from (line for line in file if layout.record(line)[PATH] not in names)

    write_atomically(path, pieces())


def _record(line: bytes, layout: LineLayout) -> dict[str, Any] | None:
    """Return the fields of a line; None for a line that was cut."""
    if line.endswith(b"\n"):
        with suppress(ValueError, LookupError, TypeError, csv.Error):
            return layout.record(line)
    return None


def _written_by_another(path: Path) -> OutputError:
    return OutputError(
        f"{path} is being written by another run; wait for its end, or name another --output."
    )


def unwritable(path: Path, error: OSError, lines: Path | None = None) -> OutputError:
    """Build the error of an output that cannot be written.

    lines: the file that has its lines so far; `path` if left out.
    """
    reason = error.strerror or type(error).__name__
    sentence = (
        f"{path} cannot be written ({reason}); name an --output in a folder that exists and has "
        "room."
    )
    with suppress(OSError):
        if (lines or path).stat().st_size:
            sentence += " What is written stays: the same command goes on after it."
    return OutputError(sentence)


def write_atomically(path: Path, pieces: Iterable[bytes], output: Path | None = None) -> None:
    """Write a file so that its path has the old content or the new one, whole.

    output: what an error names, where the file is beside an output.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        with replacing(path) as file:
            file.writelines(pieces)
    except OSError as error:
        raise unwritable(output or path, error) from None


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file that replaces another one in the end, and has its permissions.

    Where the path is a link, the file that it leads to is replaced.

    Raises:
        OSError: it cannot be written; then the other file is as it was.
    """
    target = path.resolve()
    draft = target.with_name(f".{target.name}.draft")
    try:
        with draft.open("wb") as file:
            if target.exists():
                os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
