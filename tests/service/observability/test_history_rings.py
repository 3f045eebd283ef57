"""The counts of the last 15 minutes: in memory, or in a folder that workers share."""

import errno
import fcntl
import os
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from service.observability.history_rings import INTERVALS, HistoryRings

SUBJECT = "route", "/models/{name}"
NOW = 359_000_000
"""The number of an interval."""


def counts(*values: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return np.array(values, np.uint32)


@pytest.fixture(params=["memory", "files"])
def rings(request: pytest.FixtureRequest, tmp_path: Path) -> HistoryRings:
    return HistoryRings(tmp_path if request.param == "files" else None)


def test_counts_of_an_interval_are_summed(rings: HistoryRings) -> None:
    for interval, values in ((NOW - 1, (1, 0)), (NOW, (2, 5)), (NOW, (3, 0))):
        assert rings.add(SUBJECT, interval, counts(*values))
    found = rings.read(SUBJECT, NOW, 2)
    assert found.shape == (INTERVALS, 2)
    assert found[-2:].tolist() == [[1, 0], [5, 5]]
    assert not found[:-2].any()


def test_counts_disappear_after_15_minutes(rings: HistoryRings) -> None:
    assert rings.add(SUBJECT, NOW, counts(1))
    assert rings.read(SUBJECT, NOW + INTERVALS - 1, 1)[0] == 1
    assert not rings.read(SUBJECT, NOW + INTERVALS, 1).any()
    assert rings.add(SUBJECT, NOW + INTERVALS, counts(2))  # at the same place
    assert rings.read(SUBJECT, NOW + INTERVALS, 1)[-1] == 2


def test_interval_that_has_not_ended_is_not_read(rings: HistoryRings) -> None:
    assert rings.add(SUBJECT, NOW, counts(1))
    assert not rings.read(SUBJECT, NOW - 1, 1).any()


def test_unknown_subject_has_counted_nothing(rings: HistoryRings) -> None:
    assert rings.read(SUBJECT, NOW, 3).shape == (INTERVALS, 3)
    assert list(rings.subjects()) == []


def test_subjects_are_listed_whatever_their_characters(rings: HistoryRings) -> None:
    subjects = [("engine",), ("route", "/ui/static/{file:path}"), ("version", "a,b-1.x", "1")]
    for subject in subjects:
        assert rings.add(subject, NOW, counts(1))
    assert list(rings.subjects()) == sorted(subjects)


def test_two_processes_of_a_folder_add_to_one_ring(tmp_path: Path) -> None:
    one, other = HistoryRings(tmp_path), HistoryRings(tmp_path)
    assert one.add(SUBJECT, NOW, counts(1, 2))
    assert other.add(SUBJECT, NOW, counts(10, 20))
    for each in (one, other, HistoryRings(tmp_path)):  # the last as a worker that was replaced
        assert each.read(SUBJECT, NOW, 2)[-1].tolist() == [11, 22]


def test_ring_that_another_process_holds_is_not_waited_for(tmp_path: Path) -> None:
    rings = HistoryRings(tmp_path)
    assert rings.add(SUBJECT, NOW, counts(1))
    (file,) = tmp_path.iterdir()
    with file.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert not rings.add(SUBJECT, NOW, counts(1))
    assert rings.read(SUBJECT, NOW, 1)[-1] == 1


def test_full_disk_is_logged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    rings = HistoryRings(tmp_path)
    monkeypatch.setattr(os, "pwrite", full)
    with capture_logs() as log:
        assert not rings.add(SUBJECT, NOW, counts(1))
        assert not rings.add(SUBJECT, NOW, counts(1))
    (line,) = log
    assert line["event"] == "the last minutes are not recorded"
    assert "No space left on device" in line["reason"]


def test_idle_rings_are_removed(rings: HistoryRings, tmp_path: Path) -> None:
    assert rings.add(SUBJECT, NOW, counts(1))
    assert rings.add(("engine",), NOW + 1, counts(1))
    for file in tmp_path.glob("*models*"):
        os.utime(file, (0, 0))
    rings.forget_idle(NOW + INTERVALS)
    assert list(rings.subjects()) == [("engine",)]
