"""Caches of a user without a home and without an entry in the list of users, as in a container."""

import os
import stat
from pathlib import Path

import pytest

from training.cache_folders import default_cache_folder, use_writable_caches


def test_training_needs_no_home_and_no_entry_of_its_user(trained: Path) -> None:
    assert (trained / "stderr").read_text() == ""
    assert "atplotlib" not in (trained / "stdout").read_text()
    assert (trained / "models" / "digits" / "1" / "manifest.json").is_file()


def test_matplotlib_gets_a_folder_where_the_home_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("os.environ", {"HOME": "/proc/none"})
    folder = tmp_path / f"dropserve-cache-{os.getuid()}"
    folder.mkdir(mode=0o777)
    use_writable_caches()
    assert Path(os.environ["MPLCONFIGDIR"]).parent == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    monkeypatch.setattr("os.environ", {"HOME": str(tmp_path)})
    use_writable_caches()
    assert os.environ == {"HOME": str(tmp_path)}


def test_cache_is_in_the_home_where_that_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / ".cache" / "dropserve"
    monkeypatch.setenv("HOME", "/proc/none")
    assert default_cache_folder().name == f"dropserve-cache-{os.getuid()}"
