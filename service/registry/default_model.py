"""Which model answers requests that name none, recorded on disk until an operator changes it.

Without the record a second model would change what such requests get. The record is written to the
control folder, if there is one, and to the models folder, if that is writable. Knows no bundle.
"""

from pathlib import Path

import structlog

from model.bundle.bounded_reading import read_file
from model.bundle.store import check_name, list_versions
from service.registry import atomic_files

logger = structlog.stdlib.get_logger("service")

DEFAULT_MODEL_FILE = ".default-model"
_MAX_BYTES = 256


class DefaultModel:
    """The record of the default model; every worker has an instance over the same files."""

    def __init__(self, models_folder: Path, control_folder: Path | None) -> None:
        """Read nothing yet."""
        self._models_folder = models_folder
        self._folders = [each for each in (control_folder, models_folder) if each is not None]
        self._last_warning: str | None = None
        self.name: str | None = None
        """The recorded model, as last read; None: there is no record yet."""
        self.exists = False
        """Whether the models folder had any version of it when that was last read."""

    def read(self) -> None:
        """Read the record again; if it cannot be read, log that and keep the last one."""
        for folder in self._folders:
            try:
                self.name = check_name(
                    read_file(folder / DEFAULT_MODEL_FILE, _MAX_BYTES).decode().strip()
                )
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (OSError, ValueError) as error:
                self._warn_once("default model unreadable", folder=str(folder), reason=str(error))
                continue
            break
        self.exists = self.name is not None and bool(list_versions(self._models_folder, self.name))
        if self.name is not None and not self.exists:
            self._warn_once(
                "default model not in the models folder",
                model=self.name,
                folder=str(self._models_folder),
            )

    def record_first(self, name: str) -> None:
        """Record the only active model, unless another process has recorded one meanwhile."""
        if self.name is not None:  # the recorded model is gone
            self.change(name)
            return
        self._record(name, first=True)
        self.read()
        self._set_current(self.name or name)

    def change(self, name: str) -> None:
        """Record another model."""
        self._record(name, first=False)
        self._set_current(name)

    def _set_current(self, name: str) -> None:
        if (self.name, self.exists) != (name, True):
            logger.info("default model", model=name)
        self.name, self.exists, self._last_warning = name, True, None

    def _record(self, name: str, *, first: bool) -> None:
        written = [_write(folder / DEFAULT_MODEL_FILE, name, first) for folder in self._folders]
        if not any(written):
            self._warn_once(
                "default model not kept",
                model=name,
                reason="neither the control folder nor the models folder can be written; it is "
                "forgotten at the end: set --default-model before there are several",
            )

    def _warn_once(self, event: str, **details: str) -> None:
        """Log a warning, unless it was the last one."""
        if self._last_warning != event:
            logger.warning(event, **details)
        self._last_warning = event


def _write(file: Path, name: str, first: bool) -> bool:
    """Write a record atomically; return whether there is one now.

    first: keep a record that exists already.
    """
    try:
        if first:
            atomic_files.create(file, f"{name}\n")
        else:
            atomic_files.write(file, f"{name}\n")
    except OSError:
        return False
    return True
