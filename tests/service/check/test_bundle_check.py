"""The check of the models folder, with copies of a trained bundle."""

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from model.bundle.store import MODEL_FILE
from service.check import bundle_check
from service.check.bundle_check import check_versions
from service.check.findings import Finding, Level
from service.check.loading_every_version import VersionTrials
from service.registry.models_folder_scan import ModelsFolder
from service.registry.rollout_store import RolloutStore
from service.settings import ServiceSettings
from tests.bundles import copy_bundle, edit_manifest
from tests.service.check.test_checks import ERROR, FINE, WARNING, check_found

SERVES = "digits version 1: verified, self-tested, and tried on the examples."
DAMAGED = f"…{MODEL_FILE} differs from its SHA-256; copy the bundle again."


def find(folder: Path, **options: Any) -> list[Finding]:
    """Return what is found of the versions in a folder."""
    settings = ServiceSettings(models_folder=folder, **options)
    return asyncio.run(check_versions(settings)).findings


def damage(bundle: Path) -> None:
    file = bundle / MODEL_FILE
    file.write_bytes(file.read_bytes() + b"!")


@pytest.fixture
def models(tmp_path: Path, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models folder with `digits/1`, to be changed; its checks start no sandbox process."""

    async def no_findings(_trials: VersionTrials) -> list[Finding]:
        return []

    monkeypatch.setattr(bundle_check, "_check_sandbox", no_findings)
    copy_bundle(bundle_folder, tmp_path / "models")
    return tmp_path / "models"


def test_good_version_is_fine_and_its_memory_is_measured(models_folder: Path) -> None:
    checked = asyncio.run(check_versions(ServiceSettings(models_folder=models_folder)))
    check_found(checked.findings, (FINE, SERVES))
    assert checked.worker_bytes is not None
    assert 50 * 2**20 < checked.worker_bytes < 8 * 2**30


def test_check_of_versions_writes_nothing(models: Path, tmp_path: Path) -> None:
    def content() -> dict[Path, tuple[int, int]]:
        statuses = {each: each.lstat() for each in tmp_path.rglob("*")}
        return {path: (each.st_mtime_ns, each.st_size) for path, each in statuses.items()}

    state = tmp_path / "state"
    RolloutStore(state).change("digits", lambda now: now.pinned(1))
    before = content()
    check_found(find(models, control_folder=state), (FINE, SERVES))
    assert content() == before


def test_refused_version_is_a_warning_while_another_serves(
    models: Path, bundle_folder: Path
) -> None:
    damage(copy_bundle(bundle_folder, models, version=2))
    found = find(models)
    check_found(found, (WARNING, f"refused, and 1 serves. {DAMAGED}"), (FINE, SERVES))
    assert found[0].subject == "digits version 2"


def test_refused_version_is_an_error_where_it_is_the_only_one(models: Path) -> None:
    damage(models / "digits" / "1")
    check_found(find(models), (ERROR, f"refused. {DAMAGED}"))


def test_pinned_version_that_is_missing_is_an_error(models: Path) -> None:
    missing = "refused. …7/manifest.json cannot be read (…); export or copy the bundle again."
    check_found(find(models, models="digits@7"), (ERROR, missing))
    absent = "--models names pets, of which there is no version; publish one, or leave it out."
    check_found(find(models, models="digits,pets"), (ERROR, absent), (FINE, SERVES))


def test_rollouts_decide_which_version_has_to_serve(
    models: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    damage(copy_bundle(bundle_folder, models, version=2))
    store = RolloutStore(tmp_path / "state")
    store.change("digits", lambda now: now.with_canary(1, 2, 0.5))
    state = {"control_folder": tmp_path / "state"}
    on_trial = find(models, **state)
    check_found(on_trial, (WARNING, f"refused, and 1 serves. {DAMAGED}"), (FINE, SERVES))
    store.change("digits", lambda now: now.pinned(2))
    check_found(find(models, **state), (ERROR, f"refused. {DAMAGED}"))
    store.change("digits", lambda now: now.pinned(1).as_unloaded())
    unloaded = "digits is unloaded; load it with python -m service.control load digits."
    found = find(models, **state)
    assert [each.level for each in found] == [WARNING, FINE, ERROR]
    assert [each.sentence for each in found[1:]] == [unloaded, unloaded]


def test_shadow_is_tried_as_a_canary_is(models: Path, bundle_folder: Path, tmp_path: Path) -> None:
    store = RolloutStore(tmp_path / "state")
    store.change("digits", lambda now: now.with_shadow(1, 2, 1.0))
    state = {"control_folder": tmp_path / "state"}
    missing = "refused, and 1 serves. …2/manifest.json cannot be read (…); export or copy …"
    check_found(find(models, **state), (WARNING, missing), (FINE, SERVES))
    shadow = copy_bundle(bundle_folder, models, version=2)
    check_found(find(models, **state), (FINE, SERVES))
    edit_manifest(shadow, input=manifest_input(shadow) | {"height": 9})
    other = "refused, and 1 serves. … takes images of 1 x 9 x 8, but clients of digits send …"
    check_found(find(models, **state), (WARNING, other), (FINE, SERVES))


def manifest_input(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads((bundle / "manifest.json").read_bytes())["input"]
    return found


def test_folder_without_a_bundle_is_an_error(tmp_path: Path) -> None:
    empty = "The models folder holds no bundle; train one with python -m training."
    check_found(find(tmp_path), (ERROR, empty))
    nowhere = f"The models folder {tmp_path}/none does not exist; name another with …"
    check_found(find(tmp_path / "none"), (ERROR, nowhere))
    (tmp_path / "file").touch()
    no_folder = f"The models folder {tmp_path}/file cannot be read (Not a directory); give …"
    check_found(find(tmp_path / "file"), (ERROR, no_folder))


def test_default_model_has_to_serve(models: Path, bundle_folder: Path) -> None:
    missing = "The models folder holds no bundle of the default model 'pets'; train one with …"
    check_found(find(models, default_model="pets"), (ERROR, missing), (FINE, SERVES))
    copy_bundle(bundle_folder, models, name="pets")
    both = "digits version 1, pets version 1: …"
    none = "several serve and none is the default, …; name one with --default-model."
    check_found(find(models), (WARNING, none), (FINE, both))
    check_found(find(models, default_model="pets"), (FINE, both))
    (models / ".default-model").write_text("pets\n")
    check_found(find(models), (FINE, both))


def test_version_that_takes_too_long_for_an_example_is_refused(models_folder: Path) -> None:
    (found,) = find(models_folder, inference_timeout_seconds=1e-9)
    assert found.level == Level.ERROR
    check_found([found], (ERROR, "refused. It loads, but does not answer its examples: …"))


def test_bundle_from_the_future_is_a_warning_about_the_clock(models: Path) -> None:
    edit_manifest(models / "digits" / "1", published="2999-01-01T00:00:00Z")
    sentence = "It is … here, but digits version 1 was published at 2999-…; set the clock, …"
    check_found(find(models), (FINE, SERVES), (WARNING, sentence))


def test_process_that_reads_no_large_images_is_an_error(
    models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.check.loading_every_version._large_image", lambda: bytes(2**17))
    sentence = "No process can be started that reads large images: … Allow the service more …"
    check_found(find(models_folder), (ERROR, sentence), (FINE, SERVES))


def test_trial_is_made_once(models: Path) -> None:
    async def try_twice() -> list[bool]:
        settings = ServiceSettings(models_folder=models)
        trials = VersionTrials(settings, ModelsFolder(settings))
        try:
            first = await trials.passes("digits", 1, keep=False)
            damage(models / "digits" / "1")
            return [first, await trials.passes("digits", 1)]
        finally:
            await trials.close()

    assert asyncio.run(try_twice()) == [True, True]


def test_rollouts_file_says_what_has_to_serve(models: Path, tmp_path: Path) -> None:
    file = tmp_path / "rollouts.json"
    file.write_text('{"models": {"digits": {"version": 1}}}')
    check_found(find(models, rollouts=file), (FINE, SERVES))
    file.write_text('{"default": "mistyped", "models": {"mistyped": {}}}')
    nothing = "--rollouts names mistyped, of which there is no version; publish one, or leave …"
    check_found(find(models, rollouts=file), (ERROR, nothing), (FINE, SERVES))
    file.write_text('{"models": {"digits": {"unloaded": true}}}')
    unloaded = "digits is unloaded by the file rollouts.json (--rollouts); change it there."
    check_found(find(models, rollouts=file), (FINE, unloaded), (ERROR, unloaded))
