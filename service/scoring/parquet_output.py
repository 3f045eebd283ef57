"""Parquet files from lines of JSON, by pyarrow, which the extra `parquet` installs."""

import os
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson

from model.errors import SettingsError
from service.scoring.output_file import unwritable
from service.scoring.result_lines import ABSTAIN, ERROR, PATH, LineLayout, State, state_of
from service.scoring.score_settings import SortField
from service.scoring.sort_output_by_field import sort_key

_TEXT = (PATH, "label", "abstain_because", "stopped_because", ERROR)
_TYPES = {"abstain": "bool", "samples_used": "int64"}
_ROWS = 65_536
"""Rows of a group, which is in memory at once."""


def require_pyarrow() -> None:
    """Raise SettingsError where pyarrow is not installed."""
    if find_spec("pyarrow") is None:
        raise SettingsError(
            "--output: .parquet needs pyarrow, which is not installed; run pip install "
            "'.[parquet]' in the project's folder, or write .csv or .jsonl."
        )


def states_in(output: Path) -> dict[str, State]:
    """Return the images in a file of an earlier run, by name; none where there is no file."""
    if not output.exists():
        return {}
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(output, columns=[PATH, ABSTAIN, ERROR])
    except OSError as error:
        raise unwritable(output, error) from None
    return {row[PATH]: state_of(row) for row in table.to_pylist()}


def write_parquet(
    output: Path, lines: Path, layout: LineLayout, sort: SortField | None = None
) -> None:
    """Write what `output` has, then what is new in `lines`, and replace `output` by that.

    A line takes the place of a row that has an error.

    sort: the field by which all rows are sorted, in memory.

    Raises:
        OutputError: it cannot be written; then the file is as it was.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(column, _type(column)) for column in layout.columns])
    draft = output.with_name(f".{output.name}.draft")
    old = pq.read_table(output, schema=schema) if output.exists() else schema.empty_table()
    try:
        old = _without_errors_of(old, lines)
        known = set(old[PATH].to_pylist())
        new = [pa.Table.from_pylist(rows, schema) for rows in _row_groups(lines, layout, known)]
        table = pa.concat_tables([old, *new])
        if sort is not None:
            keys = [sort_key(row, sort) for row in table.select({PATH, sort}).to_pylist()]
            table = table.take(sorted(range(len(keys)), key=keys.__getitem__))
        pq.write_table(table, draft, row_group_size=_ROWS)
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(output)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise unwritable(output, error, lines) from None


def _without_errors_of(old: Any, lines: Path) -> Any:
    """Return a table without the rows that have an error and a line."""
    import pyarrow as pa

    with lines.open("rb") as file:
        written = {orjson.loads(line)[PATH] for line in file}
    rows = zip(old[PATH].to_pylist(), old[ERROR].to_pylist(), strict=True)
    stays = [error is None or name not in written for name, error in rows]
    return old.filter(pa.array(stays, pa.bool_()))


def _row_groups(lines: Path, layout: LineLayout, known: set[str]) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    with lines.open("rb") as file:
        for line in file:
            record = orjson.loads(line)
            if record[PATH] not in known:
                rows.append(layout.row(record))
            if len(rows) == _ROWS:
                yield rows
                rows = []
    yield rows


def _type(column: str) -> Any:
    import pyarrow as pa

    if column == "prediction_set":
        return pa.list_(pa.string())
    return pa.string() if column in _TEXT else pa.type_for_alias(_TYPES.get(column, "float64"))
