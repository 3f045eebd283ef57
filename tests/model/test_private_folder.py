"""A folder of this user alone, whoever has made it before."""

import stat
from pathlib import Path

import pytest

from model.private_folder import make_private_folder


def test_private_folder_loses_the_permissions_of_other_users(tmp_path: Path) -> None:
    folder = tmp_path / "control"
    folder.mkdir(mode=0o777)
    make_private_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_link_to_a_private_folder_is_refused(tmp_path: Path) -> None:
    make_private_folder(tmp_path / "folder")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    with pytest.raises(PermissionError, match="it belongs to another user"):
        make_private_folder(tmp_path / "link")
