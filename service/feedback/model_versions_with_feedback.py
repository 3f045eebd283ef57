"""The versions in a feedback file, with their counts and tests. Knows no answer and no label."""

import sqlite3
from collections.abc import Sequence
from functools import lru_cache

import orjson

from model.uncertainty.prediction_sets import SetKind
from model.uncertainty.sequential_test_of_coverage_and_risk import (
    PromisedRateTest,
    level_of_coverage_test,
    level_of_risk_test,
)
from service.feedback.remembered_answer import VersionIdentity
from service.feedback.version_figures import COUNTS, CoverageTest, LabelCounts, VersionFigures

MAX_COVERAGES = 4
"""Most coverages of a version that are tested, the first ones that labels arrive for."""
_RISK = 0
"""The number of the test of the risk; those of coverages follow."""


def version_row(connection: sqlite3.Connection, version: VersionIdentity) -> int:
    """Return the row of a version, which is added if it is missing."""
    found = find_version(connection, version)
    if found is not None:
        return found
    names = orjson.dumps(version.class_names).decode()
    cursor = connection.execute(
        "INSERT INTO versions (model, version, digest, class_names, validation_images) "
        "VALUES (?, ?, ?, ?, ?)",
        (version.model, version.version, version.digest, names, version.validation_images),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def find_version(connection: sqlite3.Connection, version: VersionIdentity) -> int | None:
    """Return the row of a version; None: it is not in the file."""
    row = connection.execute(
        "SELECT id FROM versions WHERE model = ? AND version = ? AND digest = ?", version[:3]
    ).fetchone()
    return None if row is None else row[0]


def read_versions(connection: sqlite3.Connection) -> dict[int, VersionIdentity]:
    """Return every version in the file by its row."""
    rows = connection.execute(
        "SELECT id, model, version, digest, class_names, validation_images FROM versions "
        "ORDER BY id"
    )
    return {
        number: VersionIdentity(model, version, digest, parse_class_names(classes), images)
        for number, model, version, digest, classes, images in rows
    }


@lru_cache(maxsize=64)
def parse_class_names(text: str) -> tuple[str, ...]:
    """Return the names of classes that a row of `versions` has as JSON."""
    return tuple(orjson.loads(text))


def read_figures(connection: sqlite3.Connection, version: int, level: float) -> VersionFigures:
    """Return what the labels of a version say."""
    columns = ", ".join(COUNTS)
    bins = {
        number: LabelCounts(*counts)
        for number, *counts in connection.execute(
            f"SELECT bin, {columns} FROM counts WHERE version = ?",  # noqa: S608
            (version,),
        )
    }
    risk: PromisedRateTest | None = None
    coverages: list[CoverageTest] = []
    for number, sets, coverage, state in _test_rows(connection, version):
        if number == _RISK:
            risk = PromisedRateTest(level_of_risk_test(level), state)
        else:
            test = PromisedRateTest(level_of_coverage_test(level, number - 1), state)
            coverages.append(CoverageTest(sets, coverage, test))
    return VersionFigures(bins, risk, tuple(coverages))


def add_counts(
    connection: sqlite3.Connection, version: int, bin_number: int, counts: LabelCounts
) -> None:
    """Add counts, which may be negative, to those of a bin."""
    columns = ", ".join(COUNTS)
    marks = ", ".join("?" * len(COUNTS))
    sums = ", ".join(f"{name} = {name} + excluded.{name}" for name in COUNTS)
    connection.execute(
        f"INSERT INTO counts (version, bin, {columns}) VALUES (?, ?, {marks}) "  # noqa: S608
        f"ON CONFLICT DO UPDATE SET {sums}",
        (version, bin_number, *(getattr(counts, name) for name in COUNTS)),
    )


def risk_test(connection: sqlite3.Connection, version: int, level: float) -> PromisedRateTest:
    """Return the test of a version's risk, as it is stored or new."""
    states = [state for number, *_, state in _test_rows(connection, version) if number == _RISK]
    return PromisedRateTest(level_of_risk_test(level), states[0] if states else b"")


def coverage_test(
    connection: sqlite3.Connection, version: int, sets: SetKind, coverage: float, level: float
) -> tuple[int, PromisedRateTest] | None:
    """Return the number and the test of one coverage; None: too many others are tested."""
    rows = [row for row in _test_rows(connection, version) if row[0] != _RISK]
    for number, *subject, state in rows:
        if subject == [sets, coverage]:
            return number, PromisedRateTest(level_of_coverage_test(level, number - 1), state)
    if len(rows) >= MAX_COVERAGES:
        return None
    number = len(rows) + 1
    return number, PromisedRateTest(level_of_coverage_test(level, number - 1))


def store_test(
    connection: sqlite3.Connection,
    version: int,
    test: PromisedRateTest,
    number: int = _RISK,
    sets: SetKind | None = None,
    coverage: float | None = None,
) -> None:
    """Store the state of a test; without further arguments, of the risk."""
    connection.execute(
        "INSERT OR REPLACE INTO tests VALUES (?, ?, ?, ?, ?)",
        (version, number, sets, coverage, test.to_bytes()),
    )


def forget_tests(connection: sqlite3.Connection, versions: Sequence[int]) -> None:
    """Begin the tests of versions anew; alarms end."""
    connection.executemany("DELETE FROM tests WHERE version = ?", [(each,) for each in versions])


def _test_rows(
    connection: sqlite3.Connection, version: int
) -> list[tuple[int, SetKind, float, bytes]]:
    return connection.execute(
        "SELECT number, sets, coverage, state FROM tests WHERE version = ? ORDER BY number",
        (version,),
    ).fetchall()
