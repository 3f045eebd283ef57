"""Shadow versions: the differences that are counted are those that a replay finds."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import orjson
import pytest
from onnx import numpy_helper

from model.bundle.store import GOLDEN_FILE, HEAD_FILE, MODEL_FILE
from service.api.answer_by_another_version import answer_as_noted
from service.app import create_app
from service.observability.metrics_recorder import Metrics
from service.replay.replay_run import Replay, run
from service.replay.replay_settings import ReplaySettings
from service.settings import ServiceSettings
from service.shadow.background_comparison import Answer, ShadowComparison
from service.shadow.spare_time import SpareTime
from service.traffic_log.traffic_record import Subject
from tests.bundles import copy_bundle, edit_manifest, update_digest
from tests.pictures import Pixels, encode, instances, numbers
from tests.service.serving import (
    JSON,
    PNG,
    Application,
    WatchedRepository,
    check_error,
    serving,
    serving_models,
    wait,
)

URLS = (
    *("/predict", "/uncertainty", "/uncertainty?samples=auto", "/uncertainty?method=analytic"),
    *("/v1/models/digits:predict", "/v1/models/digits-mc:predict"),
)
CLASSES, NEGATED = 10, 3
"""How many labels there are, and the one whose weights are negated."""


class NoRest(SpareTime):
    """Lets one run follow the other."""

    async def rest(self, run_seconds: float, least_seconds: float = 0.0) -> None:
        await asyncio.sleep(0)


@contextmanager
def shadowing(
    models: Path, answer: Answer = answer_as_noted, **settings: Any
) -> Iterator[Application]:
    """Serve a folder of bundles, with a comparison that does not rest."""
    service_settings = ServiceSettings(models_folder=models, **settings)
    repository = WatchedRepository(service_settings)
    shadows = ShadowComparison(repository, answer, NoRest(1))
    with serving(create_app(service_settings, repository, shadows=shadows)) as service:
        wait(repository.loaded)
        yield service


def summary(service: Application) -> dict[str, Any]:
    """Return what GET /models says of the shadow of the only model."""
    found: dict[str, Any] = service.get("/models").json()["models"][0]["shadow"]
    return found


def settled(service: Application, images: int) -> dict[str, Any]:
    """Ask until this many images are accounted for."""
    while True:
        found = summary(service)
        if sum(found["images"].values()) >= images:
            return found


def start(service: Application, query: str = "version=2") -> None:
    assert service.post("/models/digits/pin?version=1").status_code == 200
    assert service.post(f"/models/digits/shadow?{query}").status_code == 200


def negate_a_label(bundle: Path) -> None:
    """Negate the weights of one label in both graphs, and adapt the self-test to it."""
    offsets = [_negate(bundle / file) for file in (HEAD_FILE, MODEL_FILE)]
    with np.load(bundle / GOLDEN_FILE) as golden:
        arrays = {name: array.copy() for name, array in golden.items()}
    for name, offset in zip(("sampled_logits", "logits"), offsets, strict=True):
        arrays[name][..., NEGATED] = 2 * offset - arrays[name][..., NEGATED]
    np.savez_compressed(bundle / GOLDEN_FILE, **arrays)
    for file in (HEAD_FILE, MODEL_FILE, GOLDEN_FILE):
        update_digest(bundle, file)


def _negate(file: Path) -> float:
    """Negate the weights of a label in a graph; return its bias."""
    graph = onnx.load(file)
    weight, bias = [each for each in graph.graph.initializer if each.dims[0] == CLASSES][:2]
    negated = numpy_helper.to_array(weight).copy()
    negated[NEGATED] *= -1
    weight.CopyFrom(numpy_helper.from_array(negated, weight.name))
    onnx.save(graph, file)
    return float(numpy_helper.to_array(bias)[NEGATED].item())


def ask(service: Application, digits: Pixels) -> int:
    """Send single digits and several ones by all routes; return how many images that were."""
    several = instances([numbers(digit) for digit in digits[:24]])
    for url in URLS:
        assert service.post(url, several, headers=JSON).status_code == 200
    for url in URLS[:4]:
        assert service.post(url, encode(digits[0]), headers=PNG).status_code == 200
    tensor = {"name": "images", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [0.25] * 64}
    infer = orjson.dumps({"inputs": [tensor]})
    for name in ("digits", "digits-mc"):
        path = f"/v2/models/{name}/infer"
        assert service.post(path, infer, headers=JSON).status_code == 200
    return 24 * len(URLS) + 4 + 2


@pytest.fixture
def models(bundle_folder: Path, tmp_path: Path) -> Path:
    """A models folder with the real bundle as the versions 1 and 2."""
    for version in (1, 2):
        copy_bundle(bundle_folder, tmp_path / "models", version=version)
    return tmp_path / "models"


def test_equal_version_has_no_difference_at_all(models: Path, digits: Pixels) -> None:
    with shadowing(models) as service:
        start(service)
        images = ask(service, digits)
        found = settled(service, images)
        pair = {"model": "digits", "version": "1", "shadow": "2"}
        name = "dropserve_shadow_probability_difference"
        assert service.metric(f"{name}_bucket", le="0.0", **pair) == images
    assert found["images"] == {"compared": images, "dropped": 0, "failed": 0}
    assert (found["labels_differ"], found["abstentions_differ"]) == (0, 0)
    assert found["mean_probability_difference"] == 0
    assert (found["state"], found["reason"]) == ("comparing", None)
    assert 0 < found["abstentions_compared"] < images


def test_differences_are_those_that_a_replay_finds(
    models: Path, digits: Pixels, tmp_path: Path
) -> None:
    negate_a_label(models / "digits" / "2")
    log = tmp_path / "log"
    with shadowing(models, traffic_log=log, traffic_log_images=True) as service:
        start(service)
        images = ask(service, digits)
        found = settled(service, images)
    comparisons = replay(log, models).to_json()["comparisons"]
    assert found["images"]["compared"] == images == sum(each["answers"] for each in comparisons)
    assert found["labels_differ"] == sum(each["labels_differ"] for each in comparisons) > 0
    for name in ("abstentions_compared", "abstentions_differ"):
        assert found[name] == sum(each[name] for each in comparisons) > 0
    total = sum(each["answers"] * each["probability_difference"]["mean"] for each in comparisons)
    assert found["mean_probability_difference"] == pytest.approx(total / images, rel=1e-6)


def replay(folder: Path, models: Path) -> Replay:
    settings = ReplaySettings.model_construct(
        folder=folder, model="digits", version=2, models_folder=models, threads=1
    )
    return asyncio.run(run(settings))


def test_shadow_answers_no_client_and_a_restart_keeps_it(
    models: Path, digit: Pixels, tmp_path: Path
) -> None:
    folder = tmp_path / "control"
    with serving_models(models, control_folder=folder) as service:
        start(service, "version=2&share=0.5")
    with serving_models(models, control_folder=folder) as service:
        assert (summary(service)["version"], summary(service)["share"]) == ("2", 0.5)
        answer = service.post("/predict", encode(digit), headers=PNG)
        assert answer.json()["version"] == "1"
        refused = service.post("/predict?version=2", encode(digit), headers=PNG)
        check_error(refused, 404, "unknown_version", "Version '2' of digits is not loaded; …")
        assert service.post("/models/digits/unshadow").json()["shadow"] is None
        assert service.post("/models/digits/follow").json()["version"] == "2"


def test_share_of_the_requests_is_compared(models: Path, digits: Pixels) -> None:
    with shadowing(models) as service:
        start(service, "version=2&share=0.25")
        body = encode(digits[0])
        for number in range(40):
            headers = {**PNG, "X-Request-ID": str(number)}
            assert service.post("/predict", body, headers=headers).status_code == 200
        compared = settled(service, 1)["images"]
    assert 0 < sum(compared.values()) < 25


def test_images_without_room_are_dropped_and_counted(models: Path, digits: Pixels) -> None:
    settings = ServiceSettings(models_folder=models)
    repository = WatchedRepository(settings)
    shadows = ShadowComparison(repository, answer_as_noted, NoRest(1), max_waiting_bytes=3000)
    with serving(create_app(settings, repository, shadows=shadows)) as service:
        wait(repository.loaded)
        start(service)
        several = instances([numbers(digit) for digit in digits[:24]])
        assert service.post("/predict", several, headers=JSON).status_code == 200
        found = settled(service, 24)
    assert found["images"] == {"compared": 0, "dropped": 24, "failed": 0}
    assert found["mean_probability_difference"] is None


def test_shadow_that_fails_says_so_and_requests_are_answered(models: Path, digit: Pixels) -> None:
    async def fail(*_: object) -> Any:
        raise RuntimeError("no memory")

    with shadowing(models, fail) as service:
        start(service)
        assert service.post("/predict", encode(digit), headers=PNG).status_code == 200
        found = settled(service, 1)
    assert found["images"] == {"compared": 0, "dropped": 0, "failed": 1}
    assert (found["state"], found["reason"]) == ("failing", "The log has the reason.")


def test_shadow_with_other_labels_says_which(models: Path, digit: Pixels) -> None:
    manifest = orjson.loads((models / "digits" / "2" / "manifest.json").read_bytes())
    edit_manifest(models / "digits" / "2", class_names=["zero", *manifest["class_names"][1:]])
    with shadowing(models) as service:
        start(service)
        assert service.post("/predict", encode(digit), headers=PNG).status_code == 200
        found = settled(service, 1)
    sentence = "Its labels are others: it adds 'zero' and lacks '0'; an answer with one of them "
    assert found["reason"] == f"{sentence}differs."


def test_shadow_that_is_removed_or_damaged_is_refused(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "control"
    with serving_models(models, control_folder=folder) as service:
        start(service)
        refused = service.post("/models/digits/shadow?version=9")
        check_error(refused, 404, "unknown_version", "There is no version 9 of digits in …")
        assert summary(service)["version"] == "2"
    (models / "digits" / "2" / MODEL_FILE).write_bytes(b"")
    with serving_models(models, control_folder=folder) as service:
        found = summary(service)
        assert service.get("/health/ready").status_code == 200
        again = service.post("/models/digits/shadow?version=2")
    assert (found["state"], found["images"]["compared"]) == ("refused", 0)
    assert "model.onnx differs from its SHA-256" in found["reason"]
    check_error(again, 409, "version_refused", "…model.onnx differs from its SHA-256; …")


@pytest.mark.parametrize(
    ("steps", "status", "code", "sentence"),
    [
        (["shadow?version=1"], 409, "release_impossible", "Version 1 is the stable one already; …"),
        (["unshadow"], 409, "release_impossible", "There is no shadow version to end; …"),
        (
            ["canary?version=2", "shadow?version=2"],
            *(409, "release_impossible", "Version 2 is the canary already; name another."),
        ),
    ],
)
def test_shadow_that_is_impossible_is_refused_with_one_sentence(
    models: Path, steps: list[str], status: int, code: str, sentence: str
) -> None:
    with serving_models(models) as service:
        assert service.post("/models/digits/pin?version=1").status_code == 200
        *before, last = [service.post(f"/models/digits/{step}") for step in steps]
        assert all(each.status_code == 200 for each in before)
        check_error(last, status, code, sentence)


def test_series_end_with_the_shadow(models: Path, digit: Pixels) -> None:
    with shadowing(models) as service:
        start(service)
        assert service.post("/predict", encode(digit), headers=PNG).status_code == 200
        settled(service, 1)
        assert 'shadow="2"' in service.get("/metrics").text
        assert service.post("/models/digits/unshadow").status_code == 200
        while 'shadow="2"' in service.get("/metrics").text:
            pass  # until the version is drained


def test_answer_that_is_built_on_a_thread_is_noted_on_the_event_loop() -> None:
    threads: list[int] = []

    class OneShadow:
        metrics = Metrics()

        def compared_versions(self, _name: str) -> Any:
            threads.append(threading.get_ident())
            stable = SimpleNamespace(name="digits", version="1")
            return None if len(threads) > 1 else SimpleNamespace(stable=stable)

    async def note() -> None:
        repository: Any = OneShadow()
        shadows = ShadowComparison(repository, answer_as_noted, NoRest(1))
        comparing = asyncio.create_task(shadows.run())
        await asyncio.sleep(0)
        subject = Subject("/predict", "digits", "1", np.zeros((1, 1, 8, 8), np.float32), None)
        await asyncio.to_thread(shadows.note, subject, list, 0)
        while len(threads) < 2:
            await asyncio.sleep(0)
        comparing.cancel()

    asyncio.run(note(), debug=True)  # where the loop refuses calls of other threads
    assert threads == [threading.get_ident()] * 2


def test_answers_are_built_once_however_many_runs_they_take(models: Path, digits: Pixels) -> None:
    built: list[int] = []

    class Counting(ShadowComparison):
        def note(self, subject: Subject, rows: Any, numbers: int) -> None:
            def counted() -> Any:
                built.append(1)
                return rows()

            super().note(subject, counted, numbers)

    settings = ServiceSettings(models_folder=models)
    repository = WatchedRepository(settings)
    shadows = Counting(repository, answer_as_noted, NoRest(1))
    with serving(create_app(settings, repository, shadows=shadows)) as service:
        wait(repository.loaded)
        start(service)
        several = instances([numbers(digit) for digit in digits[:24]])
        url = "/v1/models/digits:predict"
        assert service.post(url, several, headers=JSON).status_code == 200
        assert settled(service, 24)["images"]["compared"] == 24
    assert len(built) == 1
