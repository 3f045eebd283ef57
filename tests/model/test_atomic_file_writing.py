"""Tests of files that are written whole or not at all."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from model.atomic_file_writing import write_new, write_whole


def test_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for content in (b"first, and longer", b"second"):
        write_whole(file, content)
        assert file.read_bytes() == content
    assert list(tmp_path.iterdir()) == [file]


def fail(_descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_file_that_finds_no_room_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    write_whole(file, b"before")
    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left on device"):
        write_whole(file, b"after")
    assert file.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [file]


def test_new_file_replaces_none_and_is_gone_where_it_finds_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(OSError, match="No space left on device"):
            write_new(file, b"content")
    assert not list(tmp_path.iterdir())
    write_new(file, b"content")
    with pytest.raises(FileExistsError):
        write_new(file, b"other")
    assert file.read_bytes() == b"content"


def test_threads_that_write_one_file_leave_what_one_of_them_wrote(tmp_path: Path) -> None:
    contents = [bytes([number]) * 100_000 for number in range(32)]
    file = tmp_path / "file"
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda content: write_whole(file, content), contents))
    assert file.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [file]
