"""A backup as docs/deployment.md makes it, restored elsewhere."""

import shutil
import subprocess
from pathlib import Path

import pytest

from service.keys.key_file_changes import add_key
from tests.bundles import copy_bundle
from tests.deployment.deploy_files import PAGE
from tests.pictures import encode
from tests.service.process import service_process
from training.data.dataset import Split

pytestmark = pytest.mark.deployment

_FOLDERS = "--gzip --file /var/backups/dropserve.tar.gz --directory /var/lib/dropserve"
BACKUP = f"tar --create {_FOLDERS} models state keys.json"
RESTORE = f"tar --extract {_FOLDERS} --same-owner"


def run(command: str, backups: Path, data: Path) -> None:
    """Run a command of the page in other folders."""
    assert command in PAGE
    here = command.replace("/var/backups", str(backups)).replace("/var/lib/dropserve", str(data))
    subprocess.run(here.split(), check=True)


def test_restored_backup_serves_the_same_versions_with_the_same_bytes_to_the_same_keys(
    bundle_folder: Path, held_out: Split, tmp_path: Path
) -> None:
    data, image = tmp_path / "data", encode(held_out.images[0, 0])
    (data / "state").mkdir(parents=True)
    for version in (1, 2):
        copy_bundle(bundle_folder, data / "models", version=version)
    token = add_key(data / "keys.json", "alice", frozenset({"predict", "read"}), None)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "image/png"}

    def options(folder: Path) -> list[str]:
        keys = ["--api-keys-file", str(folder / "keys.json")]
        return ["--control-folder", str(folder / "state"), *keys]

    with service_process(data / "models", *options(data)) as service:
        with service.control() as control:
            assert control.post("/models/digits/pin?version=1").status_code == 200
        with service.client() as client:
            before = client.post("/uncertainty", content=image, headers=headers)
        run(BACKUP, tmp_path, data)
    shutil.rmtree(data)
    data.mkdir()
    run(RESTORE, tmp_path, data)
    with (
        service_process(data / "models", *options(data)) as restored,
        restored.client() as client,
    ):
        after = client.post("/uncertainty", content=image, headers=headers)
        nobody = client.post("/uncertainty", content=image, headers=headers | {"Authorization": ""})

    assert (before.status_code, before.json()["version"]) == (200, "1")
    assert after.content == before.content
    assert nobody.status_code == 401
