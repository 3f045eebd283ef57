"""What lies in the models folder: names, versions, and whether a version's files have changed.

With a served model name the folder is that of one model, as KServe mounts it: a bundle, or its
versions. Knows no rollout.
"""

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from model.bundle.store import (
    MANIFEST_FILE,
    check_name,
    list_models,
    list_versions,
    manifest_version,
)
from service.settings import ServiceSettings

Fingerprint = frozenset[tuple[str, int, int]]
"""Path, size in bytes and modification time in nanoseconds of every file of a bundle."""


class ModelsFolder:
    """The versions of every model, and where each lies; a dead disk may block every method."""

    def __init__(self, settings: ServiceSettings) -> None:
        """Read nothing yet."""
        self._folder = settings.bundles_folder
        self._served_name = settings.served_model_name
        self._manifest: tuple[tuple[int, int, int], int] | None = None
        """Of a folder that is a bundle: what changes with its manifest, and its version."""

    def list_bundles(self, names: Collection[str]) -> dict[str, list[int]]:
        """Return the versions of every model, the highest first.

        names: the only models to return; empty: all.

        Raises:
            OSError: the folder cannot be read, or nothing in it but a model that cannot be.
        """
        if self._served_name is not None:
            versions = self._served_versions()
            found = {self._served_name: versions} if versions else {}
        else:
            found = {name: list_versions(self._folder, name) for name in list_models(self._folder)}
            if not found:
                self._require_readable_models()
        return {name: found[name] for name in found if not names or name in names}

    def path(self, name: str, version: int) -> Path:
        """Return the folder of a version, which need not exist."""
        if self._served_name is None:
            return self._folder / name / str(version)
        return self._folder if self._manifest is not None else self._folder / str(version)

    def _require_readable_models(self) -> None:
        """Raise the OSError of the first folder of a model that this user may not read."""
        for each in sorted(self._folder.glob("*")):
            with suppress(ValueError, FileNotFoundError, NotADirectoryError):  # it is no model
                list(self._folder.joinpath(check_name(each.name)).iterdir())

    def _served_versions(self) -> list[int]:
        list_models(self._folder)  # raises where the folder cannot be read
        try:
            status = (self._folder / MANIFEST_FILE).lstat()
        except FileNotFoundError:
            self._manifest = None
            return list_versions(self._folder, ".")
        key = status.st_ino, status.st_size, status.st_mtime_ns
        if self._manifest is None or self._manifest[0] != key:
            self._manifest = key, manifest_version(self._folder)
        return [self._manifest[1]]


def fingerprint(bundle: Path) -> Fingerprint:
    """Return what changes when a file of the bundle does; empty if it cannot be read completely."""
    files = set()
    try:
        for file in bundle.rglob("*"):
            status = file.lstat()
            files.add((str(file), status.st_size, status.st_mtime_ns))
    except OSError:  # the bundle is being copied or removed at this moment
        return frozenset()
    return frozenset(files)
