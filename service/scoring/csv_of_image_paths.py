"""Tables of paths in CSV files: the column `path`, or the first one if it names images."""

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from model.errors import DropserveError
from service.scoring.image_file import display_name
from service.scoring.image_file_filter import has_image_suffix

_COLUMN = "path"
_DELIMITERS = (",", ";", "\t")
"""Spreadsheets write semicolons where the comma is the decimal sign."""

_SEPARATOR_LINE = re.compile(r"sep=.\s*", re.IGNORECASE)
"""The first line with which a spreadsheet names the sign between cells."""

Rows = Sequence[Sequence[str]]


class PathTableError(DropserveError):
    """A table of paths cannot be read."""


def read_paths(table: Path) -> Iterable[Path | None]:
    """Return the path of each row, relative to the table's folder unless absolute.

    The column is the one whose first cell is `path`, or else the first one, if a cell of it names a
    file or ends like an image. Its first cell is a heading unless it does so. Cells are separated
    by commas, semicolons or tabs, whichever gives such a column. A row without a path is None;
    empty lines are left out.

    Raises:
        PathTableError: the table is not CSV, or no column has paths.
        OSError: it cannot be read.
    """
    try:
        # utf-8-sig: spreadsheets write a mark in front; surrogateescape: paths need not be UTF-8.
        with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            lines = file.readlines()
        _require_text(table, lines)
        if lines and _SEPARATOR_LINE.fullmatch(lines[0]):
            del lines[0]
        tables = [_rows(lines, delimiter) for delimiter in _DELIMITERS]
    except (csv.Error, ValueError) as error:
        raise PathTableError(
            f"{display_name(str(table))} is not a table that can be read ({error}); save it as CSV."
        ) from None
    if not tables[0]:
        return []
    for rows in tables:
        headings = [cell.lower() for cell in rows[0]]
        if _COLUMN in headings:
            return _paths(table.parent, rows[1:], headings.index(_COLUMN))
    # With one cell a row, another sign separates the cells, or none does.
    for rows in [each for each in tables if len(each[0]) > 1] or tables[:1]:
        if any(_is_path(table.parent, row) for row in rows):
            return _paths(table.parent, rows if _is_path(table.parent, rows[0]) else rows[1:], 0)
    raise PathTableError(
        f"{display_name(str(table))} has no column called path, and its first column names no "
        "image; call the column that names the images path."
    )


def _require_text(table: Path, lines: Sequence[str]) -> None:
    """Raise PathTableError if a line has zero bytes: it is of UTF-16, or of no text at all."""
    if any("\0" in line for line in lines):
        raise PathTableError(
            f"{display_name(str(table))} has zero bytes, as text in UTF-16 does; save it as CSV in "
            "UTF-8."
        )


def _rows(lines: Iterable[str], delimiter: str) -> Rows:
    """Return the cells of all rows but empty lines."""
    rows = csv.reader(lines, delimiter=delimiter)
    return [[cell.strip() for cell in row] for row in rows if row]


def _paths(folder: Path, rows: Rows, column: int) -> Iterable[Path | None]:
    for row in rows:
        yield folder / row[column] if len(row) > column and row[column] else None


def _is_path(folder: Path, row: Sequence[str]) -> bool:
    """Return whether the first cell of a row names an image or a file."""
    if not row[0] or has_image_suffix(row[0]):
        return bool(row[0])
    try:
        return (folder / row[0]).is_file()
    except OSError:  # longer than a name may be, for example
        return False
