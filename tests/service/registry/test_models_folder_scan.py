"""What is said of a models folder that cannot be read, as opposed to an empty one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.registry.models_folder_scan import ModelsFolder
from service.settings import ServiceSettings
from tests.bundles import copy_bundle, edit_manifest


def list_bundles(folder: Path) -> dict[str, list[int]]:
    return ModelsFolder(ServiceSettings(models_folder=folder)).list_bundles(())


def test_missing_or_empty_models_folder_has_no_bundles(tmp_path: Path) -> None:
    assert list_bundles(tmp_path) == {}
    assert list_bundles(tmp_path / "later") == {}


def test_models_folder_that_is_a_file_or_a_dangling_link_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(OSError, match=name):
            list_bundles(tmp_path / name)


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody read digits and lost+found, whoever runs the tests."""
    iterdir = Path.iterdir

    def guarded(path: Path) -> Iterator[Path]:
        if path.name in ("digits", "lost+found"):
            raise PermissionError(13, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", guarded)


@pytest.mark.usefixtures("forbidden")
def test_model_that_this_user_may_not_read_is_an_error_where_there_is_no_other(
    tmp_path: Path,
) -> None:
    (tmp_path / "README").touch()
    (tmp_path / "lost+found").mkdir()
    assert list_bundles(tmp_path) == {}
    (tmp_path / "digits").mkdir()
    with pytest.raises(PermissionError) as raised:
        list_bundles(tmp_path)
    assert raised.value.filename == str(tmp_path / "digits")
    (tmp_path / "pets" / "1").mkdir(parents=True)
    assert list_bundles(tmp_path) == {"pets": [1]}


def test_bundle_that_is_replaced_in_place_has_another_version(
    bundle_folder: Path, tmp_path: Path
) -> None:
    bundle = copy_bundle(bundle_folder, tmp_path, "digits", 1)
    folder = ModelsFolder(ServiceSettings(models_folder=bundle, served_model_name="numerals"))
    assert folder.list_bundles(()) == {"numerals": [1]}
    edit_manifest(bundle, version=20)
    assert folder.list_bundles(()) == {"numerals": [20]}
    assert folder.path("numerals", 20) == bundle
    assert folder.list_bundles({"digits"}) == {}
