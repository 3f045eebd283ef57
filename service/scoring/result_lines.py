"""The lines of an output: their fields, and their text as JSON or CSV. Knows no file.

Every number has the very text that it has in the answer of POST /uncertainty.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import orjson

from service.scoring.score_settings import OutputFormat, ScoreSettings

PATH, ABSTAIN, ERROR = "path", "abstain", "error"
FIGURES = (
    "label",
    "confidence",
    "predictive_entropy",
    "expected_entropy",
    "mutual_information",
    "variation_ratio",
    "prediction_set",
    "typicality",
    ABSTAIN,
    "abstain_because",
)
"""The fields of an answer that every line has."""
STOPPING_FIGURES = ("samples_used", "stopped_because")
"""The fields of an answer that a line has with --samples auto."""
_PROBABILITIES = "probabilities"
_PROBABILITY_PREFIX = "probability_"

Record = Mapping[str, Any]
"""A line by its fields. An image that could not be scored has `path` and `error` alone."""


class State(Enum):
    """What the line of an image says of it."""

    ANSWERED = auto()
    ABSTAINED = auto()
    FAILED = auto()
    """It could not be scored."""


@dataclass(frozen=True)
class LineLayout:
    """The fields of the lines of one output, and how they are written."""

    format: OutputFormat
    figures: tuple[str, ...]
    class_names: tuple[str, ...]
    """The classes whose probabilities are written; none: no probabilities are."""

    @classmethod
    def of(cls, settings: ScoreSettings, class_names: Sequence[str]) -> "LineLayout":
        """Return the layout that the settings select for a model with these classes."""
        figures = FIGURES + STOPPING_FIGURES if settings.samples == "auto" else FIGURES
        return cls(settings.format, figures, tuple(class_names if settings.probabilities else ()))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of a table."""
        by_class = tuple(_PROBABILITY_PREFIX + name for name in self.class_names)
        return (PATH, *self.figures, *by_class, ERROR)

    def header(self) -> bytes:
        """Return what stands before the first line: the names of the columns, or nothing."""
        return _csv_line(list(map(_cell, self.columns))) if self.format is OutputFormat.CSV else b""

    def result(self, name: str, prediction: Record) -> bytes:
        """Return the line of an image, with its line break.

        prediction: of `service.api.response_builders`.
        """
        record = {PATH: name} | {figure: prediction[figure] for figure in self.figures}
        if self.class_names:
            record[_PROBABILITIES] = prediction[_PROBABILITIES]
        return self._line(record)

    def error(self, name: str, sentence: str) -> bytes:
        """Return the line of an image that could not be scored, with its line break."""
        return self._line({PATH: name, ERROR: sentence})

    def record(self, line: bytes) -> dict[str, Any]:
        """Return the fields of a whole line: of CSV as text, of JSON as values.

        Raises:
            ValueError, LookupError, TypeError, csv.Error: the line is none of this layout.
        """
        if self.format is OutputFormat.CSV:
            return dict(zip(self.columns, next(csv.reader([line.decode()])), strict=True))
        record: dict[str, Any] = orjson.loads(line)
        record[PATH] = str(record[PATH])
        return record

    def _line(self, record: Record) -> bytes:
        if self.format is not OutputFormat.CSV:
            return orjson.dumps(record) + b"\n"
        row = self.row(record)
        return _csv_line([_cell(row[column]) for column in self.columns])

    def row(self, record: Record) -> dict[str, Any]:
        """Return a record as the row of a table: None where it has no value."""
        row = dict.fromkeys(self.columns) | {
            key: value for key, value in record.items() if key != _PROBABILITIES
        }
        for name, value in record.get(_PROBABILITIES, {}).items():
            row[_PROBABILITY_PREFIX + name] = value
        return row


def state_of(record: Record) -> State:
    """Return what a line says of its image."""
    if record.get(ERROR):
        return State.FAILED
    return State.ABSTAINED if record.get(ABSTAIN) in (True, "true") else State.ANSWERED


def _cell(value: Any) -> str:
    """Return a value as JSON writes it, but text without quotation marks, and null as nothing."""
    if isinstance(value, str):
        return "".join(each if each.isprintable() else repr(each)[1:-1] for each in value)
    text = orjson.dumps(value).decode()
    return "" if text == "null" else text


def _csv_line(cells: Sequence[str]) -> bytes:
    """Return one row of CSV, in one line."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()
