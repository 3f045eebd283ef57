"""Which model answers requests that name none: recorded on disk until somebody changes it.

A second model must not change what they get. The record lies in the control folder, where there is
one, and in the models folder, where that may be written. Knows no bundle.
"""

import os
from contextlib import suppress
from pathlib import Path

import structlog

from model.bundle.files import read
from model.bundle.store import check_name, versions

logger = structlog.stdlib.get_logger("service")

DEFAULT_MODEL_FILE = ".default-model"
_MOST_BYTES = 256


class DefaultModel:
    """The record; of several processes each has one, of the same files."""

    def __init__(self, models_folder: Path, control_folder: Path | None) -> None:
        """Read nothing yet."""
        self._models_folder = models_folder
        self._folders = [each for each in (control_folder, models_folder) if each is not None]
        self._said: str | None = None
        self.name: str | None = None
        """As last read; None: there is no record yet."""
        self.is_there = False
        """Whether any version of it was in the models folder when that was last read."""

    def read(self) -> None:
        """Read the record again; one that cannot be read is logged, and changes nothing."""
        for folder in self._folders:
            try:
                self.name = check_name(
                    read(folder / DEFAULT_MODEL_FILE, _MOST_BYTES).decode().strip()
                )
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (OSError, ValueError) as error:
                self._say("default model unreadable", folder=str(folder), reason=str(error))
                continue
            break
        self.is_there = self.name is not None and bool(versions(self._models_folder, self.name))
        if self.name is not None and not self.is_there:
            self._say(
                "default model not in the models folder",
                model=self.name,
                folder=str(self._models_folder),
            )

    def settle(self, name: str) -> None:
        """Record the first model in service, unless another process has recorded one meanwhile."""
        if self.name is not None:  # what was recorded is gone
            self.change(name)
            return
        self._record(name, first=True)
        self.read()
        self._take(self.name or name)

    def change(self, name: str) -> None:
        """Record another model."""
        self._record(name, first=False)
        self._take(name)

    def _take(self, name: str) -> None:
        if (self.name, self.is_there) != (name, True):
            logger.info("default model", model=name)
        self.name, self.is_there, self._said = name, True, None

    def _record(self, name: str, *, first: bool) -> None:
        kept = [_write(folder / DEFAULT_MODEL_FILE, name, first) for folder in self._folders]
        if not any(kept):
            self._say(
                "default model not kept",
                model=name,
                reason="neither the control folder nor the models folder can be written; it is "
                "forgotten at the end: set --default-model before there are several",
            )

    def _say(self, event: str, **details: str) -> None:
        """Log what is wrong, once."""
        if self._said != event:
            logger.warning(event, **details)
        self._said = event


def _write(file: Path, name: str, first: bool) -> bool:
    """Write a record in one step; tell whether there is one now.

    first: leave one that is there already.
    """
    draft = file.with_name(f"{file.name}-{os.getpid()}")
    try:
        draft.write_text(f"{name}\n", encoding="utf-8")
        if first:
            with suppress(FileExistsError):
                os.link(draft, file)
        else:
            draft.replace(file)
    except OSError:
        return False
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    return True
