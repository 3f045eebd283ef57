"""What lies in the models folder: names, versions, and whether a version's files have changed."""

from collections.abc import Collection
from pathlib import Path

from model.bundle.store import list_models, list_versions

Fingerprint = frozenset[tuple[str, int, int]]
"""Path, size in bytes and modification time in nanoseconds of every file of a bundle."""


def list_bundles(folder: Path, names: Collection[str]) -> dict[str, list[int]]:
    """Return the versions of every model in the folder, the highest first.

    names: the only models to return; empty: all.

    Raises:
        OSError: the folder cannot be read.
    """
    return {
        name: list_versions(folder, name)
        for name in list_models(folder)
        if not names or name in names
    }


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
