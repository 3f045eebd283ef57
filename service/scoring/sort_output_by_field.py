"""Sorting of a whole output by one of its fields: what to look at first comes first."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from service.scoring.output_file import write_atomically
from service.scoring.result_lines import PATH, LineLayout
from service.scoring.score_settings import SortField

_ASCENDING = ("confidence", "typicality", PATH)
"""Fields of which the lowest values come first; of the others, the highest do."""

_Key = tuple[float, str]


def sort_output(path: Path, layout: LineLayout, field: SortField) -> None:
    """Sort the lines of a file; those without a value come last, equal ones by path.

    Keeps in memory the key and the place of each line, not the lines.

    Raises:
        OutputError: the file cannot be written; then it is as it was.
    """
    header = layout.header()
    places: list[tuple[_Key, int, int]] = []
    start = len(header)
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            places.append((sort_key(layout.record(line), field), start, len(line)))
            start += len(line)
        places.sort()

        def pieces() -> Iterator[bytes]:
            yield header
            for _, begin, length in places:
                file.seek(begin)
                yield file.read(length)

        write_atomically(path, pieces())


def sort_key(record: dict[str, Any], field: SortField) -> _Key:
    """Return the key by which a line is sorted in ascending order."""
    if field == PATH:
        return 0.0, str(record[PATH])
    value = record.get(field)
    if value in (None, ""):
        return math.inf, str(record[PATH])
    number = float(value)
    return (number if field in _ASCENDING else -number), str(record[PATH])
