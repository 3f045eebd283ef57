"""Which bundles are loaded, which are refused, and how failures are reported."""

import asyncio
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from structlog.testing import capture_logs

from model.bundle.bounded_reading import read_chunks_at
from model.bundle.store import GOLDEN_FILE, MC_STATISTICS_FILE, MODEL_FILE
from model.inference.predictor import OOD_SCORES
from service.api import schemas
from service.app import create_app
from service.errors import ModelRequiredError, NotReadyError, UnknownModelError
from service.observability.metrics_recorder import Metrics
from service.registry.load_failures import LoadFailure
from service.registry.model_repository import Repository
from service.registry.models_folder_scan import fingerprint
from service.settings import ServiceSettings
from tests.bundles import copy_bundle, edit_manifest, update_digest
from tests.pictures import Pixels, encode
from tests.service.serving import (
    PNG,
    TIMEOUT_SECONDS,
    WatchedRepository,
    check_error,
    check_sentence,
    predictions,
    serving,
    serving_models,
    wait,
)


@dataclass(frozen=True)
class Outcome:
    """The state of a repository after `load`, and its errors in the log."""

    problem: str | None
    served: Sequence[tuple[str, str]]
    failures: Sequence[LoadFailure]
    errors: Sequence[Any]
    """The error lines of the log."""


def load(models_folder: Path, **settings: Any) -> Outcome:
    async def scenario() -> Outcome:
        knobs = ServiceSettings(models_folder=models_folder, **settings)
        repository = Repository(knobs, Metrics())
        with capture_logs() as log:
            await repository.load()
        await repository.close()
        served = [(each.stable.name, each.stable.version) for each in repository.active_versions]
        errors = [line for line in log if line["log_level"] == "error"]
        return Outcome(repository.not_ready_reason(), served, repository.load_failures, errors)

    return asyncio.run(scenario())


@pytest.fixture
def models(bundle_folder: Path, tmp_path: Path) -> Path:
    """A models folder of this test's own, with the real bundle as `digits/1`."""
    copy_bundle(bundle_folder, tmp_path)
    return tmp_path


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[0 if file.suffix == ".json" else len(data) // 2] ^= 1
    file.write_bytes(data)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def remove(file: Path) -> None:
    file.unlink()


def make_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: dict[Callable[[Path], None], tuple[str, str]] = {
    truncate: ("… is damaged (…); copy the bundle again.", "… differs from its SHA-256; …"),
    flip_a_bit: ("… is damaged (…); copy the bundle again.", "… differs from its SHA-256; …"),
    empty: ("… is damaged (…); copy the bundle again.", "… differs from its SHA-256; …"),
    remove: ("… cannot be read (No such file or directory); …",) * 2,
    make_a_folder: ("… cannot be read (Is a directory); …",) * 2,
}


def _damaged_sentence(damage: Callable[[Path], None], file: str) -> str:
    of_manifest, of_others = DAMAGES[damage]
    return of_manifest if file == "manifest.json" else of_others


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize(
    "file",
    [
        "manifest.json",
        "model.onnx",
        "head.onnx",
        "golden.npz",
        "calibration.npz",
        "report/card.md",
        "report/most_confident_mistakes.png",
    ],
)
def test_repository_reports_why_a_damaged_bundle_failed_to_load(
    models: Path, file: str, damage: Callable[[Path], None]
) -> None:
    damage(models / "digits" / "1" / file)
    outcome = load(models)
    assert outcome.served == []
    assert outcome.problem is not None
    check_sentence(outcome.problem, _damaged_sentence(damage, file))
    assert f"digits/1/{file}" in outcome.problem
    assert str(models) not in outcome.problem
    assert outcome.failures == [LoadFailure("digits", 1, outcome.problem)]
    refused, not_ready = outcome.errors
    assert (refused["event"], refused["model"], refused["version"]) == (
        "bundle refused",
        "digits",
        1,
    )
    assert (not_ready["event"], not_ready["reason"]) == ("not ready", outcome.problem)
    assert refused["reason"] == outcome.problem.replace("digits/1", str(models / "digits" / "1"))


def _other_golden_outputs(bundle: Path) -> None:
    with np.load(bundle / GOLDEN_FILE) as golden:
        changed = dict(golden) | {"logits": golden["logits"] + 0.01}
    np.savez_compressed(bundle / GOLDEN_FILE, **changed)
    update_digest(bundle, GOLDEN_FILE)


def _pickled_golden_outputs(bundle: Path) -> None:
    np.savez_compressed(bundle / GOLDEN_FILE, images=np.array([{}], object), allow_pickle=True)
    update_digest(bundle, GOLDEN_FILE)


def _another_graph(bundle: Path) -> None:
    (bundle / MODEL_FILE).write_bytes(b"not a graph")
    update_digest(bundle, MODEL_FILE)


def _another_graph_of_statistics(bundle: Path) -> None:
    (bundle / MC_STATISTICS_FILE).write_bytes(b"not a graph")
    update_digest(bundle, MC_STATISTICS_FILE)


def _another_input(bundle: Path) -> None:
    declared = {"channels": 1, "height": 9, "width": 8, "resize": "pad"}
    edit_manifest(bundle, input=declared)


def _a_later_schema(bundle: Path) -> None:
    edit_manifest(bundle, schema_version=4)


def _another_name(bundle: Path) -> None:
    edit_manifest(bundle, name="letters")


def _no_ood_scores(bundle: Path) -> None:
    model = onnx.load(bundle / MODEL_FILE)
    kept = [each for each in model.graph.output if each.name != OOD_SCORES]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    onnx.save(model, bundle / MODEL_FILE)
    update_digest(bundle, MODEL_FILE)


def _no_head(bundle: Path) -> None:
    edit_manifest(bundle, files={})


MISMATCHES: dict[Callable[[Path], None], str] = {
    _other_golden_outputs: "…/golden.npz: the self-test's logits differ by 0.01, more …",
    _pickled_golden_outputs: "…/golden.npz: the self-test cannot run (…); …",
    _another_graph: "digits/1 has a graph that is refused: …; export it again.",
    _another_graph_of_statistics: "digits/1 has a graph that is refused: …; export it again.",
    _another_input: "… does not take the images its manifest declares (…); export it again.",
    _a_later_schema: "…/manifest.json is not a manifest of schema 3 (schema_version: …); …",
    _another_name: "… holds letters version 1; put it back into letters/1.",
    _no_ood_scores: "digits/1 is calibrated, but its graph computes no …; export the bundle again.",
    _no_head: "… lists no model.onnx; export it again.",
}


@pytest.mark.parametrize("change", MISMATCHES, ids=lambda change: change.__name__)
def test_repository_refuses_a_bundle_that_contradicts_its_manifest(
    models: Path, change: Callable[[Path], None]
) -> None:
    change(models / "digits" / "1")
    outcome = load(models)
    assert outcome.served == []
    assert outcome.problem is not None
    check_sentence(outcome.problem, MISMATCHES[change])


@pytest.mark.parametrize("name", ["", "missing", "file", "x" * 300])
def test_not_ready_reason_names_a_models_folder_without_bundles(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    outcome = load(tmp_path / name)
    assert outcome.served == []
    assert outcome.problem is not None
    assert outcome.problem.startswith("The models folder ")
    (line,) = outcome.errors
    assert (line["reason"], line["models_folder"]) == (outcome.problem, str(tmp_path / name))


def test_not_ready_reason_describes_an_unreadable_models_folder(tmp_path: Path) -> None:
    outcome = load(tmp_path / ("x" * 300))
    sentence = "The models folder … cannot be read (File name too long); give this user …"
    check_sentence(outcome.problem or "", sentence)


def test_repository_serves_the_highest_version_only(bundle_folder: Path, models: Path) -> None:
    for version in (2, 10):
        copy_bundle(bundle_folder, models, version=version)
    (models / "digits" / "011").mkdir()
    outcome = load(models)
    assert outcome.served == [("digits", "10")]
    assert outcome.failures == []


def test_repository_serves_a_lower_version_when_the_highest_is_damaged(
    bundle_folder: Path, models: Path, digit: Pixels
) -> None:
    truncate(copy_bundle(bundle_folder, models, version=2) / MODEL_FILE)
    with serving_models(models) as service:
        ready = service.get("/health/ready")
        listed = schemas.Models.model_validate_json(service.get("/models").content)
        answer = service.post("/predict", encode(digit), headers=PNG)
        higher = service.post("/predict?version=2", encode(digit), headers=PNG)
    assert ready.status_code == 200
    assert [(each.name, each.version) for each in listed.models] == [("digits", "1")]
    (refusal,) = listed.refused
    assert (refusal.name, refusal.version) == ("digits", "2")
    check_sentence(refusal.reason, "digits/2/model.onnx differs from its SHA-256; …")
    assert (len(predictions(answer)), answer.json()["version"]) == (1, "1")
    check_error(
        higher, 404, "unknown_version", "Version '2' of digits is not loaded; version 1 is."
    )


def link_nowhere(version: Path) -> None:
    version.symlink_to("nowhere")


def link_to_itself(version: Path) -> None:
    version.symlink_to(version.name)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (link_nowhere, "No such file or directory"),
        (link_to_itself, "Too many levels of symbolic links"),
        (Path.touch, "Not a directory"),
    ],
)
def test_version_that_is_no_folder_is_refused_as_a_damaged_one_is(
    models: Path, make: Callable[[Path], None], reason: str
) -> None:
    make(models / "digits" / "4")
    outcome = load(models)
    assert outcome.served == [("digits", "1")]
    (failure,) = outcome.failures
    assert (failure.name, failure.version) == ("digits", 4)
    check_sentence(failure.reason, f"digits/4/manifest.json cannot be read ({reason}); …")


class FaultyDisk:
    """Reads files as the real one does, after some errors."""

    def __init__(self, error: Exception, times: int) -> None:
        self._error = error
        self.errors_left = times

    def read_chunks_at(self, folder: int, name: str, limit: int) -> Iterator[bytes]:
        if name == MODEL_FILE and self.errors_left:
            self.errors_left -= 1
            raise self._error
        yield from read_chunks_at(folder, name, limit)


WHOLE = "digits/1/model.onnx cannot be read (…); the bundle may be whole: see to its disk …"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), WHOLE),
        (OSError(errno.EIO, os.strerror(errno.EIO)), WHOLE),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), WHOLE),
        (MemoryError(), "digits/1 could not be opened and tested for want of memory; give the …"),
    ],
)
def test_version_that_cannot_be_read_now_is_tried_again_without_a_change_of_its_files(
    models: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str
) -> None:
    disk = FaultyDisk(error, 2)
    monkeypatch.setattr("model.bundle.store.read_chunks_at", disk.read_chunks_at)
    monkeypatch.setattr("service.registry.version_lifecycle._FIRST_PAUSE_SECONDS", 0.0)

    async def scenario() -> tuple[str | None, str | None]:
        repository = Repository(ServiceSettings(models_folder=models), Metrics())
        await repository.load()
        reason = repository.not_ready_reason()
        while disk.errors_left:
            await repository.refresh()
        await repository.refresh()
        later = repository.not_ready_reason()
        await repository.close()
        return reason, later

    reason, later = asyncio.run(scenario())
    check_sentence(reason or "", sentence)
    assert later is None


@pytest.mark.parametrize(
    ("unit", "units"),
    [(1e-12, [1, 2, 4, 4]), (60.0, [1, 1, 1, 1])],
    ids=["over at once", "not over yet"],
)
def test_version_that_cannot_be_read_now_is_tried_again_after_ever_longer_pauses(
    models: Path, monkeypatch: pytest.MonkeyPatch, unit: float, units: list[int]
) -> None:
    disk = FaultyDisk(OSError(errno.EIO, os.strerror(errno.EIO)), 100)
    monkeypatch.setattr("model.bundle.store.read_chunks_at", disk.read_chunks_at)
    monkeypatch.setattr("service.registry.version_lifecycle._FIRST_PAUSE_SECONDS", unit)
    monkeypatch.setattr("service.registry.version_lifecycle._LONGEST_PAUSE_SECONDS", 4 * unit)

    async def scenario() -> list[float]:
        repository = Repository(ServiceSettings(models_folder=models), Metrics())
        failures = repository._loaded.failures
        files = fingerprint(models / "digits" / "1")
        pauses = []
        for _ in units:
            await repository.refresh()
            pauses.append(failures.pause(("digits", 1), files))
        await repository.close()
        return pauses

    assert asyncio.run(scenario()) == [each * unit for each in units]


def test_service_stays_live_and_is_not_ready_when_every_version_is_damaged(
    models: Path, digit: Pixels
) -> None:
    truncate(models / "digits" / "1" / MODEL_FILE)
    with serving_models(models) as service:
        refused = [
            service.get("/health/ready"),
            service.post("/predict", encode(digit), headers=PNG),
        ]
        alive = service.get("/health/live")
    for response in refused:
        check_error(response, 503, "not_ready", "…/model.onnx differs from its SHA-256; …")
    assert alive.status_code == 200


def test_repository_serves_other_models_beside_a_damaged_one(
    bundle_folder: Path, models: Path
) -> None:
    truncate(copy_bundle(bundle_folder, models, "broken") / MODEL_FILE)
    outcome = load(models)
    assert outcome.problem is None
    assert outcome.served == [("digits", "1")]
    assert [each.name for each in outcome.failures] == ["broken"]


def test_service_without_its_default_model_is_not_ready_but_serves_named_models(
    bundle_folder: Path, models: Path, digit: Pixels
) -> None:
    truncate(copy_bundle(bundle_folder, models, "broken") / MODEL_FILE)
    with serving_models(models, default_model="broken") as service:
        unnamed = service.post("/predict", encode(digit), headers=PNG)
        named = service.post("/predict?model=digits", encode(digit), headers=PNG)
        ready = service.get("/health/ready")
    for response in (unnamed, ready):
        check_error(response, 503, "not_ready", "…/model.onnx differs from its SHA-256; …")
    assert predictions(named)


def test_not_ready_reason_names_a_missing_default_model(models: Path) -> None:
    outcome = load(models, default_model="cats")
    sentence = "… holds no bundle of the default model 'cats'; train one with python -m training."
    check_sentence(outcome.problem or "", sentence)


def test_default_model_answers_where_there_are_several(
    bundle_folder: Path, models: Path, digit: Pixels
) -> None:
    copy_bundle(bundle_folder, models, "other")
    with serving_models(models, default_model="other") as service:
        answer = service.post("/predict", encode(digit), headers=PNG)
    assert answer.json()["model"] == "other"


def test_repository_serves_no_model_before_all_are_loaded(
    bundle_folder: Path, models: Path
) -> None:
    """Otherwise the first loaded model would answer requests that name none."""

    class CheckingRepository(WatchedRepository):
        async def _reconcile(self, name: str) -> None:
            await super()._reconcile(name)
            for wanted in (None, "digits", "later"):
                with pytest.raises(NotReadyError, match="still being loaded"):
                    self.get(wanted, None)

    copy_bundle(bundle_folder, models, "later")
    settings = ServiceSettings(models_folder=models)
    repository = CheckingRepository(settings)
    with serving(create_app(settings, repository)):
        wait(repository.loaded)
        assert [each.stable.version for each in repository.active_versions] == ["1", "1"]
        with pytest.raises(ModelRequiredError):
            repository.get(None, None)
        with pytest.raises(UnknownModelError):
            repository.get("cats", None)
        assert repository.get("later", "1").bundle.manifest.name == "later"


@pytest.mark.parametrize(
    ("failing", "task"),
    [
        ("service.registry.waiting_for_peer_processes.PeerFollowing.run", "peers"),
        ("service.engine.model_loader.LoadedModel.drain", "drain"),
    ],
)
def test_background_task_of_the_repository_that_fails_is_logged_at_once(
    models: Path, monkeypatch: pytest.MonkeyPatch, failing: str, task: str
) -> None:
    async def fail(_self: object) -> None:
        raise ValueError("what nobody expected")

    async def scenario() -> None:
        repository = Repository(ServiceSettings(models_folder=models), Metrics())
        running = asyncio.create_task(repository.run())
        await repository.wait_until_loaded(TIMEOUT_SECONDS)
        repository.stop()
        await running
        await repository.close()

    monkeypatch.setattr(failing, fail)
    with capture_logs() as log:
        asyncio.run(scenario())
    (line,) = [line for line in log if line["event"] == "background task failed"]
    assert (line["task"], str(line["exc_info"])) == (task, "what nobody expected")


def test_repository_ignores_folders_that_are_no_versions(models: Path) -> None:
    (models / ".hidden" / "1").mkdir(parents=True)
    (models / "empty").mkdir()
    (models / "digits" / ".draft-x").mkdir()
    (models / "digits" / "latest").mkdir()
    (models / "digits" / "0").mkdir()
    outcome = load(models)
    assert outcome.served == [("digits", "1")]
    assert outcome.failures == []
