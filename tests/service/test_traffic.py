"""Versions that appear, disappear and fail under traffic: no request is lost or misattributed."""

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from service.app import create_app
from service.settings import ServiceSettings
from tests.bundles import copy_bundle, edit_manifest
from tests.pictures import Pixels, encode
from tests.service.process import service_process
from tests.service.serving import (
    PNG,
    Application,
    WatchedRepository,
    check_error,
    check_sentence,
    serving,
    wait,
)


class Service:
    """An application over a folder that the test changes; it reads the folder on `refresh` only."""

    def __init__(self, application: Application, repository: WatchedRepository) -> None:
        self.application = application
        self._repository = repository

    def refresh(self) -> None:
        self.application.portal.call(self._repository.refresh)

    def version(self, **options: Any) -> str:
        """Return which version answers a prediction."""
        answer = self.application.post("/predict", self.image, **options, headers=PNG)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["version"])

    def control(self, path: str) -> Any:
        answer = self.application.post(path)
        assert answer.status_code == 200, answer.text
        return answer.json() if answer.content else None

    def index(self) -> dict[tuple[str, str], tuple[str, str]]:
        """Return state and reason by name and version from the index, without -mc models."""
        entries = self.application.post("/v2/repository/index").json()
        return {
            (each["name"], each["version"]): (each["state"], each["reason"])
            for each in entries
            if not each["name"].endswith("-mc")
        }

    def loaded(self, version: str) -> float:
        return self.application.metric("dropserve_model_info", model="digits", version=version)

    def refused(self, version: str) -> float:
        return self.application.metric("dropserve_refused_version", model="digits", version=version)

    image: bytes


@contextmanager
def running(folder: Path, image: bytes, **settings: Any) -> Iterator[Service]:
    service_settings = ServiceSettings(models_folder=folder, watch_seconds=0, **settings)
    repository = WatchedRepository(service_settings)
    with serving(create_app(service_settings, repository)) as application:
        wait(repository.loaded)
        service = Service(application, repository)
        service.image = image
        yield service


@pytest.fixture
def models(bundle_folder: Path, tmp_path: Path) -> Path:
    """A models folder for one test, with the real bundle as `digits/1`."""
    copy_bundle(bundle_folder, tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def image(digit: Pixels) -> bytes:
    return encode(digit)


@pytest.fixture
def publish(bundle_folder: Path, models: Path) -> Callable[[int], Path]:
    """Copy the real bundle into the folder as another version."""
    return lambda version: copy_bundle(bundle_folder, models, version=version)


Publish = Callable[[int], Path]


class SlowBody:
    """The body of a request that stays in flight until `finish`."""

    def __init__(self, image: bytes) -> None:
        self._image = image
        self.arrived = threading.Event()
        self._may_finish = asyncio.Event()

    def finish(self, service: Service) -> None:
        service.application.portal.call(self._set)

    async def _set(self) -> None:
        self._may_finish.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._image[:10]
        self.arrived.set()
        await self._may_finish.wait()
        yield self._image[10:]


def test_new_version_takes_over_while_the_old_one_drains(
    models: Path, image: bytes, publish: Publish
) -> None:
    with running(models, image) as service:
        body = SlowBody(image)
        options = {"content": body, "headers": PNG}
        in_flight = service.application.submit("POST", "/predict", **options)
        wait(body.arrived)
        publish(2)
        assert service.version() == "1"
        service.refresh()
        assert service.version() == "2"
        assert (service.loaded("1"), service.loaded("2")) == (1, 1), "1 is still in use"
        with pytest.raises(AssertionError):
            service.version(params={"version": "1"})
        body.finish(service)
        assert in_flight.result().json()["version"] == "1"
        while service.loaded("1"):
            pass  # it is released after the response is sent
        assert service.application.metric("dropserve_switches_total", model="digits") == 2
        assert service.index() == {("digits", "2"): ("READY", "")}


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[0 if file.suffix == ".json" else len(data) // 2] ^= 1
    file.write_bytes(data)


def _of_another_model(file: Path) -> None:
    file.write_bytes(b"of another model" + file.read_bytes())


DAMAGES: tuple[Callable[[Path], None], ...] = (_truncate, _flip, Path.unlink, _of_another_model)


def test_old_version_serves_on_when_any_file_of_the_new_one_is_damaged(
    models: Path, image: bytes, publish: Publish
) -> None:
    example = publish(2)
    files = [file.relative_to(example) for file in sorted(example.rglob("*.*"))]
    shutil.rmtree(example)
    assert {file.name for file in files} > {"manifest.json", "model.onnx", "head.onnx"}
    with running(models, image) as service:
        for number, (file, damage) in enumerate(
            ((file, damage) for file in files for damage in DAMAGES), start=2
        ):
            damage(publish(number) / file)
            service.refresh()
            state, reason = service.index()["digits", str(number)]
            assert state == "UNAVAILABLE"
            assert reason.startswith(f"digits/{number}")
            assert (service.version(), service.refused(str(number))) == ("1", 1)
            assert service.application.get("/v2/health/ready").status_code == 200
            shutil.rmtree(models / f"digits/{number}")
        service.refresh()
        assert service.index() == {("digits", "1"): ("READY", "")}
        assert service.refused("2") == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema_version": 1}, "…manifest.json is not a manifest of schema 3 (schema_version…"),
        ({"name": "letters"}, "… holds letters version 2; put it back into letters/2."),
        ({"version": 3}, "… holds digits version 3; put it back into digits/3."),
        (
            {"input": {"channels": 3, "height": 8, "width": 8, "resize": "pad"}},
            "… takes images of 3 x 8 x 8, but clients of digits send 1 x 8 x 8; …",
        ),
    ],
)
def test_bundle_with_another_identity_or_input_is_refused(
    models: Path, image: bytes, publish: Publish, changes: dict[str, Any], reason: str
) -> None:
    with running(models, image) as service:
        edit_manifest(publish(2), **changes)
        service.refresh()
        state, actual = service.index()["digits", "2"]
        assert state == "UNAVAILABLE"
        check_sentence(actual, reason)
        assert service.version() == "1"


def test_partly_copied_version_is_refused_once_and_served_when_complete(
    models: Path, image: bytes, publish: Publish, bundle_folder: Path
) -> None:
    with running(models, image) as service, capture_logs() as log:
        folder = publish(2)
        (folder / "model.onnx").unlink()
        for _ in range(3):
            service.refresh()
            assert service.version() == "1"
        shutil.copy(bundle_folder / "model.onnx", folder / "model.onnx")
        service.refresh()
        assert service.version() == "2"
        assert service.refused("2") == 0
    assert [line["event"] for line in log].count("bundle refused") == 1


def test_removed_version_serves_until_another_can(
    models: Path, image: bytes, publish: Publish
) -> None:
    publish(2)
    with running(models, image) as service:
        assert service.version() == "2"
        shutil.rmtree(models / "digits/2")
        service.refresh()
        assert service.version() == "1"
        shutil.rmtree(models / "digits")
        service.refresh()
        assert service.version() == "1"
        assert service.application.get("/health/ready").status_code == 200
        card = service.application.get("/models/digits")
        assert card.json()["card"].startswith("# ")


def test_new_model_in_the_folder_is_served(models: Path, image: bytes, bundle_folder: Path) -> None:
    with running(models, image, default_model="digits") as service:
        copy_bundle(bundle_folder, models, "letters")
        service.refresh()
        assert service.version(params={"model": "letters"}) == "1"
        assert service.version() == "1"


def test_models_option_selects_models_and_pins_versions(
    models: Path, image: bytes, publish: Publish, bundle_folder: Path
) -> None:
    for version in (2, 3):
        publish(version)
    for name in ("letters", "others"):
        copy_bundle(bundle_folder, models, name)
    with running(models, image, models="digits@2,letters", default_model="digits") as service:
        assert set(service.index()) == {("digits", "2"), ("letters", "1")}
        assert service.version() == "2"
        held = service.application.post("/models/digits/pin?version=3")
        sentence = "digits is held at version 2 by --models; change it there, …"
        check_error(held, 409, "release_impossible", sentence)
        unknown = service.application.post("/v2/repository/models/others/load")
        check_error(unknown, 404, "unknown_model", "There is no model 'others' to be loaded; …")


def test_pinned_version_is_served_once_it_is_published(
    models: Path, image: bytes, publish: Publish
) -> None:
    with running(models, image, models="digits@2") as service:
        refused = service.application.get("/health/ready")
        check_error(refused, 503, "not_ready", "digits/2/manifest.json cannot be read (…); …")
        publish(2)
        service.refresh()
        assert service.version() == "2"


def test_canary_answers_its_share_of_request_ids_until_promoted_or_ended(
    models: Path, image: bytes, publish: Publish
) -> None:
    publish(2)
    ids = [str(number) for number in range(40)]

    def by_id(service: Service) -> list[str]:
        return [
            str(
                service.application.post(
                    "/predict", image, headers=PNG | {"X-Request-ID": each}
                ).json()["version"]
            )
            for each in ids
        ]

    with running(models, image) as service:
        service.control("/models/digits/pin?version=1")
        summary = service.control("/models/digits/canary?version=2&share=0.5")
        assert (summary["version"], summary["canary"], summary["canary_share"]) == ("1", "2", 0.5)
        answers = by_id(service)
        assert answers == by_id(service), "the same id goes to the same version"
        assert set(answers) == {"1", "2"}
        for version, number in (("stable", "1"), ("canary", "2"), ("1", "1"), ("2", "2")):
            assert service.version(params={"version": version}) == number
        model = service.application.get("/v2/models/digits").json()
        assert model["versions"] == ["1", "2"]

        service.control("/models/digits/rollback")
        assert by_id(service) == ["1"] * 40
        service.control("/models/digits/canary?version=2&share=1")
        assert by_id(service) == ["2"] * 40
        assert service.control("/models/digits/promote")["version"] == "2"
        assert service.loaded("1") == 0
        publish(3)
        service.refresh()
        assert by_id(service) == ["2"] * 40, "pinned"
        assert service.control("/models/digits/rollback")["version"] == "1"
        summary = service.control("/models/digits/follow")
        assert (summary["version"], summary["held"]) == ("3", False)


def infer(service: Service, request_id: str, **fields: str) -> str:
    """Return which version answers an Open Inference request."""
    inputs = [{"name": "images", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}]
    answer = service.application.post(
        "/v2/models/digits/infer",
        headers={"X-Request-ID": request_id},
        json={"inputs": inputs, **fields},
    )
    return str(answer.json()["model_version"])


def test_canary_routing_uses_the_id_of_an_open_inference_request_unless_it_is_empty(
    models: Path, image: bytes, publish: Publish
) -> None:
    publish(2)
    with running(models, image) as service:
        service.control("/models/digits/canary?version=1&share=0.5")
        answers = [infer(service, "always the same", id=str(number)) for number in range(40)]
        assert set(answers) == {"1", "2"}
        again = [infer(service, "always the same", id=str(number)) for number in range(40)]
        assert answers == again
        by_header = [infer(service, str(number)) for number in range(40)]
        assert by_header == answers
        assert [infer(service, str(number), id="") for number in range(40)] == by_header


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/models/digits", "manifest"),
        *((f"/models/digits/{part}", "version") for part in ("drift", "examples", "feedback")),
        ("/models/digits/examples/999", "error"),
        ("/v2/models/digits/config", "version_policy"),
    ],
)
def test_reads_without_a_version_are_of_the_stable_one_during_a_canary(
    models: Path, image: bytes, publish: Publish, tmp_path: Path, path: str, field: str
) -> None:
    publish(2)
    with running(models, image, feedback=tmp_path / "feedback.db") as service:
        service.control("/models/digits/canary?version=1&share=1")
        read, stable, canary = (
            service.application.get(address).json()[field]
            for address in (path, *_of_versions(path))
        )
    assert read == stable != canary


def _of_versions(path: str) -> list[str]:
    if path.startswith("/v2"):
        return [
            path.replace("/config", f"/versions/{each}/config") for each in ("stable", "canary")
        ]
    return [f"{path}?version={each}" for each in ("stable", "canary")]


def test_rollout_to_a_version_that_fails_to_load_changes_nothing(
    models: Path, image: bytes, publish: Publish
) -> None:
    (publish(2) / "head.onnx").write_bytes(b"")
    with running(models, image) as service:
        for path in ("pin?version=2", "canary?version=2"):
            refused = service.application.post(f"/models/digits/{path}")
            check_error(refused, 409, "version_refused", "…/2/head.onnx differs from its SHA-256…")
        listed = service.application.get("/models").json()["models"]
        assert [(each["version"], each["held"], each["canary"]) for each in listed] == [
            ("1", False, None)
        ]
        load = service.application.post("/v2/repository/models/digits/load")
        check_error(load, 409, "version_refused", "…/2/head.onnx differs from its SHA-256…")
        assert service.version() == "1"


def test_unloaded_model_is_not_served_until_it_is_loaded(
    models: Path, image: bytes, bundle_folder: Path
) -> None:
    copy_bundle(bundle_folder, models, "letters")
    with running(models, image, default_model="digits") as service:
        service.control("/v2/repository/models/digits/unload")
        service.refresh()
        ready = service.application.get("/health/ready")
        sentence = "digits is unloaded; load it with python -m service.control load digits."
        check_error(ready, 503, "not_ready", sentence)
        assert service.index()["digits", "1"] == ("UNAVAILABLE", "unloaded")
        unknown = service.application.post("/predict?model=digits", image, headers=PNG)
        check_error(unknown, 404, "unknown_model", "No model 'digits' is loaded; …")
        assert service.version(params={"model": "letters"}) == "1"
        service.control("/v2/repository/models/digits-mc/load")
        assert service.version() == "1"


def test_rollback_and_follow_release_a_pinned_version_that_is_gone(
    models: Path, image: bytes, publish: Publish, tmp_path: Path
) -> None:
    publish(2)
    kept = tmp_path / "kept"
    with running(models, image, control_folder=kept) as service:
        service.control("/models/digits/pin?version=2")
    shutil.rmtree(models / "digits/2")
    with running(models, image, control_folder=kept) as service:
        assert service.application.get("/health/ready").status_code == 503
        canary = service.application.post("/models/digits/canary?version=1")
        sentence = "The model is not in service; load it first."
        check_error(canary, 409, "release_impossible", sentence)
        assert service.control("/models/digits/rollback")["version"] == "1"
        assert service.control("/models/digits/follow")["held"] is False
        service.control("/v2/repository/models/digits/unload")
        pinned = service.application.post("/models/digits/pin?version=1")
        sentence = "It is kept for when digits is in service; load it."
        check_error(pinned, 409, "release_impossible", sentence)
        service.control("/v2/repository/models/digits/load")
        assert service.version() == "1"


def test_version_with_another_input_size_is_tried_after_unload(
    models: Path, image: bytes, bundle_folder: Path
) -> None:
    """Every worker retries the versions that it has refused."""
    with running(models, image) as service:
        folder = copy_bundle(bundle_folder, models, version=2)
        edit_manifest(folder, input={"channels": 1, "height": 9, "width": 8, "resize": "pad"})
        service.refresh()
        check_sentence(service.index()["digits", "2"][1], "… unload the model first.")
        service.control("/v2/repository/models/digits/unload")
        assert service.index() == {("digits", "2"): ("UNAVAILABLE", "unloaded")}
        load = service.application.post("/v2/repository/models/digits/load")
        # This bundle declares another size than its graph takes, so it fails, but it was tried.
        check_error(load, 409, "version_refused", "…/2 does not take the images its manifest …")
        assert service.version() == "1"


def test_model_reloaded_while_it_drains_counts_as_loaded(models: Path, image: bytes) -> None:
    with running(models, image) as service:
        body = SlowBody(image)
        options = {"content": body, "headers": PNG}
        in_flight = service.application.submit("POST", "/predict", **options)
        wait(body.arrived)
        service.control("/v2/repository/models/digits/unload")
        service.control("/v2/repository/models/digits/load")
        body.finish(service)
        assert in_flight.result().status_code == 200
        service.refresh()
        assert service.loaded("1") == 1


def test_model_without_a_folder_can_be_unloaded(models: Path, image: bytes) -> None:
    with running(models, image) as service:
        shutil.rmtree(models / "digits")
        service.refresh()
        assert service.version() == "1"
        service.control("/v2/repository/models/digits/unload")
        assert service.application.get("/health/ready").status_code == 503


def test_missing_canary_is_refused_once(
    models: Path, image: bytes, publish: Publish, tmp_path: Path
) -> None:
    publish(2)
    with running(models, image, control_folder=tmp_path / "kept") as service:
        service.control("/models/digits/pin?version=1")
        service.control("/models/digits/canary?version=2")
    shutil.rmtree(models / "digits/2")
    with (
        capture_logs() as log,
        running(models, image, control_folder=tmp_path / "kept") as service,
    ):
        for _ in range(3):
            service.refresh()
        assert service.version() == "1"
    assert [line["event"] for line in log].count("bundle refused") == 1


def test_public_port_refuses_control_whatever_the_headers(models: Path, image: bytes) -> None:
    with running(models, image) as service:
        for name, value in (("X-Forwarded-For", "127.0.0.1"), ("Host", "localhost"), ("A", "b")):
            answer = service.application.public().post(
                "/models/digits/follow", headers={name: value}
            )
            check_error(answer, 403, "control_disabled", "…by the control listener alone; …")


def test_rollout_persists_in_the_control_folder(
    models: Path, image: bytes, publish: Publish, tmp_path: Path
) -> None:
    publish(2)
    kept = tmp_path / "kept"
    with running(models, image, control_folder=kept) as service:
        service.control("/models/digits/pin?version=1")
    with running(models, image, control_folder=kept) as service:
        assert service.version() == "1"
    with running(models, image) as service:
        assert service.version() == "2"


@pytest.mark.parametrize(
    ("who", "listener", "status"),
    [
        ("local", "control", 200),
        ("local", "public", 403),
        ("anyone", "public", 200),
        ("nobody", "control", 403),
    ],
)
def test_control_setting_decides_which_listener_accepts_changes(
    models: Path, image: bytes, who: str, listener: str, status: int
) -> None:
    with running(models, image, control=who) as service:
        is_public = listener == "public"
        client = service.application.public() if is_public else service.application
        answers = [
            client.post(path)
            for path in ("/v2/repository/models/digits/load", "/models/digits/follow")
        ]
        assert [answer.status_code for answer in answers] == [status] * 2


def test_every_worker_follows_the_folder_and_the_rollouts(
    models: Path, image: bytes, publish: Publish
) -> None:
    publish(2)
    options = ("--watch-seconds", "0.05", "--models", "digits")
    with service_process(models, *options, workers=2) as service:

        def versions() -> set[str]:
            found = set()
            for worker in service.workers():
                with service.only(worker):
                    found.add(service.post("/predict", image, "image/png").json()["version"])
            return found

        assert versions() == {"2"}
        with service.control() as client:
            changed = client.post("/models/digits/pin?version=1")
        assert changed.status_code == 200
        assert versions() == {"1"}, "the response came after both had switched"
        with service.control() as client:
            assert client.post("/models/digits/follow").status_code == 200
        publish(3)
        service.wait_for("model in service", count=2 + 2 + 2 + 2)
        with service.control() as client:
            assert client.post("/v2/repository/models/digits/unload").status_code == 200
            assert client.post("/v2/repository/models/digits/load").status_code == 200
        assert versions() == {"3"}
