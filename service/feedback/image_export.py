"""Writes the kept images of a feedback file as a folder of images by class. Knows no command.

`python -m training --data FOLDER` reads such a folder.
"""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from model.errors import DropserveError
from service.feedback.model_versions_with_feedback import parse_class_names

_ROWS_AT_ONCE = 100
"""A read of this many rows ends before the next begins, so that the write-ahead log stays short."""


class ExportError(DropserveError):
    """The images cannot be exported."""


def models_with_kept_images(
    connection: sqlite3.Connection, versions: Collection[int]
) -> Sequence[str]:
    """Return the models of those of the versions that have kept images."""
    rows = connection.execute(
        "SELECT DISTINCT labels.version, model FROM pictures "
        "JOIN labels ON labels.id = pictures.label "
        "JOIN versions ON versions.id = labels.version"
    )
    return sorted({model for version, model in rows if version in versions})


def export_images(
    connection: sqlite3.Connection, versions: Collection[int], output: Path
) -> dict[str, int]:
    """Write the kept images of versions to output/CLASS/NUMBER.png; return how many of each class.

    Raises:
        ExportError: the folder exists already, or cannot be written; then there is none.
    """
    if output.exists():
        raise ExportError(f"{output} exists already; name a new folder as --output.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
        try:
            counts = _write(connection, versions, draft)
            draft.rename(output)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    except OSError as error:
        raise ExportError(
            f"{output} cannot be written ({error.strerror}); name another folder as --output."
        ) from None
    return counts


def _write(
    connection: sqlite3.Connection, versions: Collection[int], folder: Path
) -> dict[str, int]:
    counts: dict[str, int] = {}
    for number, name, png in _kept_images(connection, versions):
        place = folder / folder_name(name)
        place.mkdir(exist_ok=True)
        with (place / f"{number:08}.png").open("xb") as file:
            file.write(png)
            file.flush()
            os.fsync(file.fileno())
        counts[name] = counts.get(name, 0) + 1
    return counts


def _kept_images(
    connection: sqlite3.Connection, versions: Collection[int]
) -> Iterator[tuple[int, str, bytes]]:
    """Yield the number of each label, its class, and the image."""
    last = 0
    while True:
        rows = connection.execute(
            "SELECT labels.id, labels.version, truth, class_names, png FROM pictures "
            "JOIN labels ON labels.id = pictures.label "
            "JOIN versions ON versions.id = labels.version "
            "WHERE pictures.label > ? ORDER BY pictures.label LIMIT ?",
            (last, _ROWS_AT_ONCE),
        ).fetchall()
        if not rows:
            return
        for number, version, truth, names, png in rows:
            if version in versions:
                yield number, parse_class_names(names)[truth], png
        last = rows[-1][0]


def folder_name(class_name: str) -> str:
    """Return the name of a class's folder; what no name of a file may hold is percent-encoded.

    A % stays as it is, since the class may have come from a folder of that name.
    """
    name = quote(class_name, safe=" !#$%&'()+,;=@[]^_`{}~-.", encoding="utf-8")
    if class_name.isprintable() and "/" not in class_name:
        name = class_name
    return name.replace(".", "%2E", 1) if name.startswith(".") else name
