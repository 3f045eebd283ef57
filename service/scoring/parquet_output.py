"""Parquet files from lines of JSON, by pyarrow, which the extra `parquet` installs."""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson

from model.errors import SettingsError
from service.scoring.output_file import OutputError, replacing, unwritable
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


def states_in(output: Path, layout: LineLayout) -> dict[str, State]:
    """Return the images in a file of an earlier run, by name; none where there is no file.

    Raises:
        OutputError: the file was not written by this program, or cannot be read.
    """
    table = _read_table(output, layout, [PATH, ABSTAIN, ERROR])
    return {row[PATH]: state_of(row) for row in table.to_pylist()}


def write_parquet(
    output: Path, lines: Path, layout: LineLayout, sort: SortField | None = None
) -> None:
    """Write what `output` has, then what is new in `lines`, and replace `output` by that.

    A line takes the place of a row that has an error.

    sort: the field by which all rows are sorted, in memory.

    Raises:
        OutputError: it cannot be written, or `output` was not written by this program; then the
            file is as it was.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(layout)
    try:
        old = _without_errors_of(_read_table(output, layout), lines)
        known = set(old[PATH].to_pylist())
        new = [pa.Table.from_pylist(rows, schema) for rows in _row_groups(lines, layout, known)]
        table = pa.concat_tables([old, *new])
        if sort is not None:
            keys = [sort_key(row, sort) for row in table.select({PATH, sort}).to_pylist()]
            table = table.take(sorted(range(len(keys)), key=keys.__getitem__))
        with replacing(output) as file:
            pq.write_table(table, file, row_group_size=_ROWS)
    except OSError as error:
        raise unwritable(output, error, lines) from None


def _read_table(output: Path, layout: LineLayout, columns: Sequence[str] | None = None) -> Any:
    """Return columns of a file of an earlier run, all if left out; no rows without a file.

    Raises:
        OutputError: the file was not written by this program, or cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(layout)
    if not output.exists():
        return schema.empty_table()
    try:
        with pq.ParquetFile(output) as file:
            if file.schema_arrow.equals(schema):
                return file.read(columns)
    except pa.ArrowException:
        pass
    except OSError as error:
        if error.errno is not None:  # without a number, it is of the content
            raise unwritable(output, error) from None
    raise OutputError(
        f"{output} was not written by this program, or is damaged; name another --output."
    )


def _schema(layout: LineLayout) -> Any:
    import pyarrow as pa

    return pa.schema([(column, _type(column)) for column in layout.columns])


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
