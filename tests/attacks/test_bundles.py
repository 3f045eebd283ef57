"""Malicious bundles, and files, disks and locks that block."""

import asyncio
import fcntl
import io
import os
import shutil
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data
from structlog.testing import capture_logs

from model.bundle.store import GOLDEN_FILE, MODEL_FILE, new_version, open_bundle
from model.errors import BundleError
from model.graphs.external_data_check import OnnxEncodingError, require_self_contained
from model.graphs.sessions import create_session
from model.inference.predictor_loading import load_predictor
from service.app import create_app
from service.engine.daemon_threads import DaemonThreads
from service.errors import RolloutError
from service.observability.metrics_recorder import Metrics
from service.registry.model_repository import Repository
from service.registry.rollout_store import RolloutStore
from service.settings import ServiceSettings
from tests.bundles import copy_bundle, edit_manifest, update_digest
from tests.pictures import Pixels, encode
from tests.service.serving import (
    PNG,
    TIMEOUT_SECONDS,
    WatchedRepository,
    check_error,
    predictions,
    serving,
    serving_models,
    wait,
)
from training.data.dataset import Split


@pytest.fixture(scope="module")
def digit(held_out: Split) -> Pixels:
    return np.ascontiguousarray(held_out.images[0, 0])


@pytest.fixture
def models(bundle_folder: Path, tmp_path: Path) -> Path:
    copy_bundle(bundle_folder, tmp_path)
    return tmp_path


def link_to_a_copy(file: Path) -> None:
    """Replace a file by a symbolic link to the same content."""
    elsewhere = file.parent.parent / f"elsewhere-{file.name}"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


def link_the_folder(file: Path) -> None:
    link_to_a_copy(file.parent)


def make_a_fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def make_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def make_a_device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    "file", ["manifest.json", "model.onnx", "golden.npz", "report/card.md", "report/report.html"]
)
@pytest.mark.parametrize("put", [link_to_a_copy, make_a_fifo, make_a_folder, make_a_device])
def test_bundle_files_must_be_regular_files(
    models: Path, file: str, put: Callable[[Path], None]
) -> None:
    path = models / "digits" / "1"
    put(path / file)
    with pytest.raises(BundleError, match=rf"{file} cannot be read \(.*\); .* again\."):
        open_bundle(path)


def test_bundle_refuses_a_symbolic_link_inside(models: Path) -> None:
    path = models / "digits" / "1"
    link_the_folder(path / "report" / "card.md")
    with pytest.raises(BundleError, match="a symbolic link is not followed"):
        open_bundle(path)


def test_bundle_folder_may_be_a_symbolic_link(models: Path, tmp_path: Path) -> None:
    path = models / "digits" / "1"
    (tmp_path / "releases" / "digits").mkdir(parents=True)
    path.rename(tmp_path / "releases" / "digits" / "1")
    path.symlink_to(tmp_path / "releases" / "digits" / "1")
    assert load_predictor(open_bundle(path)).classes == 10


def test_huge_file_is_refused_before_it_is_read(models: Path) -> None:
    path = models / "digits" / "1"
    os.truncate(path / "manifest.json", 2**40)
    os.truncate(path / "report" / "card.md", 2**40)
    with pytest.raises(BundleError, match=r"manifest\.json cannot be read \(it is larger than"):
        open_bundle(path)


def test_bundle_uses_the_bytes_that_were_verified(models: Path) -> None:
    """Replacing the files after the check must not change what is used."""
    path = models / "digits" / "1"
    bundle = open_bundle(path)
    for file in bundle.manifest.files:
        (path / file).write_bytes(b"something else")
    assert load_predictor(bundle).calibrator is not None
    with pytest.raises(BundleError, match="differs from its SHA-256"):
        bundle.take(MODEL_FILE)


def external(place: str = "weights.bin") -> bytes:
    """Return a graph whose only weight is in another file."""
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    set_external_data(weight, place)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    return graph_of([helper.make_node("Add", ["x", "w"], ["y"])], [weight])


def graph_of(nodes: list[Any], weights: list[Any]) -> bytes:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    operators = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=operators, ir_version=10)
    return bytes(model.SerializeToString())


def hidden_in_an_attribute() -> bytes:
    model = onnx.load_from_string(external())
    weight = model.graph.initializer.pop()
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=weight))
    return bytes(model.SerializeToString())


def hidden_in_a_branch() -> bytes:
    model = onnx.load_from_string(external())
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])
    branch = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])], "b", [], [y], list(model.graph.initializer)
    )
    condition = numpy_helper.from_array(np.array(True), "c")
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    return graph_of([node], [condition])


@pytest.mark.parametrize("graph", [external, hidden_in_an_attribute, hidden_in_a_branch])
def test_graph_with_external_data_is_refused(
    graph: Callable[[], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OnnxEncodingError, match="values are in another file"):
        require_self_contained(graph())
    with pytest.raises(Exception, match=r"(?i)external|model_path|data"):
        create_session(graph(), 1)


def test_bundle_with_external_data_is_refused(models: Path) -> None:
    path = models / "digits" / "1"
    model = onnx.load(path / MODEL_FILE)
    onnx.save(
        model,
        path / MODEL_FILE,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    update_digest(path, MODEL_FILE)
    with pytest.raises(BundleError, match="a tensor's values are in another file; export it"):
        load_predictor(open_bundle(path))


@pytest.mark.parametrize("damaged", [b"\x0f", b"\x3a\xff", b"\xff" * 11, b"\x3a\x05\x2a\x80"])
def test_malformed_graph_is_refused(damaged: bytes) -> None:
    with pytest.raises(OnnxEncodingError):
        require_self_contained(damaged)


def archive(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def npy(array: Any, shape: tuple[int, ...] | None = None) -> bytes:
    """Return an array as .npy; `shape` replaces the true one in its header."""
    file = io.BytesIO()
    np.save(file, array)
    if shape is None:
        return file.getvalue()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": array.dtype.str, "fortran_order": False, "shape": shape}
    )
    content: bytes = array.tobytes()
    return header.getvalue() + content


def with_large_images(golden: dict[str, bytes]) -> dict[str, bytes]:
    """Half a gigabyte of zeros, which compresses to half a megabyte."""
    return golden | {"images": npy(np.zeros((2**21, 1, 8, 8), np.float32))}


def with_wrong_shape(golden: dict[str, bytes]) -> dict[str, bytes]:
    return golden | {"images": npy(np.zeros(64, np.float32), (2**40, 1, 8, 8))}


def with_unknown_member(golden: dict[str, bytes]) -> dict[str, bytes]:
    return golden | {"unexpected": npy(np.zeros(2**26, np.float64))}


def pickled(golden: dict[str, bytes]) -> dict[str, bytes]:
    file = io.BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    return golden | {"images": file.getvalue()}


def with_many_samples(golden: dict[str, bytes]) -> dict[str, bytes]:
    return golden | {"samples": npy(np.int64(60_000))}


@pytest.mark.parametrize(
    "change", [with_large_images, with_wrong_shape, with_unknown_member, pickled, with_many_samples]
)
def test_hostile_golden_archive_takes_little_memory(
    models: Path, change: Callable[[dict[str, bytes]], dict[str, bytes]]
) -> None:
    path = models / "digits" / "1"
    with np.load(path / GOLDEN_FILE) as golden:
        members = {name: npy(golden[name]) for name in golden.files}
    (path / GOLDEN_FILE).write_bytes(archive(**change(members)))
    update_digest(path, GOLDEN_FILE)
    bundle = open_bundle(path)
    tracemalloc.start()
    with pytest.raises(BundleError, match="self-test cannot run"):
        load_predictor(bundle)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 2**20


def make_endless(bundle: Path) -> None:
    """Add a loop to the network that ends only when it is terminated."""
    model = onnx.load(bundle / MODEL_FILE)
    count, value, passed = (
        helper.make_tensor_value_info(name, TensorProto.INT64, [])
        for name in ("count", "value", "passed")
    )
    goes_on, still = (
        helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("goes_on", "still")
    )
    same = [
        helper.make_node("Identity", ["goes_on"], ["still"]),
        helper.make_node("Identity", ["value"], ["passed"]),
    ]
    body = helper.make_graph(same, "body", [count, goes_on, value], [still, passed])
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.array(True), "true"))
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "zero"))
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = "before" if name == "features" else name
    graph.node.extend(
        [
            helper.make_node("Loop", ["", "true", "zero"], ["ended"], body=body),
            helper.make_node("Cast", ["ended"], ["nothing"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["before", "nothing"], ["features"]),
        ]
    )
    onnx.save(model, bundle / MODEL_FILE)
    update_digest(bundle, MODEL_FILE)


def test_bundle_with_an_endless_self_test_is_refused_and_others_load(
    bundle_folder: Path, models: Path, digit: Pixels
) -> None:
    make_endless(copy_bundle(bundle_folder, models, "aaa"))
    with serving_models(models, load_timeout_seconds=1) as service:
        answer = service.post("/predict?model=digits", encode(digit), headers=PNG)
        (refused,) = service.get("/models").json()["refused"]
    assert predictions(answer)
    assert refused["name"] == "aaa"
    assert "aaa/1 could not be opened and tested within 1 seconds" in refused["reason"]
    loaders = [each for each in threading.enumerate() if each.name == "loader"]
    for loader in loaders:  # the run that is cancelled ends with the node that it is at
        loader.join(TIMEOUT_SECONDS)
    assert not any(loader.is_alive() for loader in loaders)


def test_stop_does_not_wait_for_a_bundle_that_is_being_opened(
    bundle_folder: Path, tmp_path: Path
) -> None:
    make_endless(copy_bundle(bundle_folder, tmp_path))
    settings = ServiceSettings(models_folder=tmp_path)

    async def scenario() -> float:
        repository = Repository(settings, Metrics())
        running = asyncio.create_task(repository.run())
        while not any(each.name == "loader" for each in threading.enumerate()):
            await asyncio.sleep(0)
        started = time.monotonic()
        repository.stop()
        await running
        await repository.close()
        return time.monotonic() - started

    assert asyncio.run(scenario()) < 5


def test_daemon_threads_time_out_and_are_bounded_on_a_stuck_disk() -> None:
    forever = threading.Event()

    async def scenario() -> None:
        threads = DaemonThreads("disk")
        for _ in range(20):
            with pytest.raises(TimeoutError):
                await threads.call(0.001, forever.wait)
        stuck = [each for each in threading.enumerate() if each.name == "disk"]
        assert len(stuck) == 8
        assert all(each.daemon for each in stuck)
        forever.set()
        for each in stuck:
            each.join()
        await asyncio.sleep(0)
        assert await threads.call(5, lambda: "back") == "back"

    asyncio.run(scenario())


@contextmanager
def held_lock(folder: Path) -> Iterator[None]:
    with (folder / "releases.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_rollout_change_times_out_on_a_held_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.registry.rollout_store._LOCK_SECONDS", 0.1)
    releases = RolloutStore(tmp_path)
    with held_lock(tmp_path), pytest.raises(RolloutError, match=r"has held releases\.lock for"):
        releases.change("digits", lambda now: now.pinned(1))
    releases.change("digits", lambda now: now.pinned(1))
    assert releases.get("digits").held == 1


def test_stop_does_not_wait_for_a_held_lock(models: Path, tmp_path: Path) -> None:
    control = tmp_path / "control"
    control.mkdir()
    with held_lock(control):
        started = time.monotonic()
        with serving_models(models, control_folder=control, control="anyone") as service:
            pinned = service.submit("POST", "/models/digits/pin?version=1")
        assert time.monotonic() - started < 4.5
        check_error(pinned.result(), 503, "not_ready", "The server is stopping; …")


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_rollout_lock_must_be_a_regular_file(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "releases.lock"
    if kind == "fifo":
        os.mkfifo(place)
    else:
        place.mkdir()
    with pytest.raises(RolloutError, match="cannot be kept"):
        RolloutStore(tmp_path).change("digits", lambda now: now.pinned(1))


def damage_by_bytes(file: Path) -> None:
    file.write_text('{"models": ')


def damage_by_a_fifo(file: Path) -> None:
    os.mkfifo(file)


def damage_by_a_folder(file: Path) -> None:
    file.mkdir()


@pytest.mark.parametrize("damage", [damage_by_bytes, damage_by_a_fifo, damage_by_a_folder])
def test_no_model_is_active_until_the_rollouts_can_be_read(
    models: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    control = tmp_path / "control"
    control.mkdir()
    file = control / "releases.json"
    damage(file)
    with serving_models(models, control_folder=control, watch_seconds=0.01) as service:
        ready = service.get("/health/ready")
        check_error(ready, 503, "not_ready", "releases.json cannot be read (…); mend or remove it.")
        assert str(control) not in ready.text
        assert service.get("/models").json()["models"] == []
        file.unlink() if not file.is_dir() else file.rmdir()
        while service.get("/health/ready").status_code != 200:
            pass
        assert service.get("/models").json()["models"][0]["version"] == "1"


def test_rollout_store_recovers_when_a_damaged_file_is_removed(tmp_path: Path) -> None:
    releases = RolloutStore(tmp_path)
    releases.change("digits", lambda now: now.pinned(3))
    (tmp_path / "releases.json").write_text("{")
    releases.read()
    (tmp_path / "releases.json").unlink()
    releases.read()
    releases.change("digits", lambda now: now.unpinned())
    assert releases.get("digits").held is None


def test_no_response_contains_the_path_of_the_models_folder(
    bundle_folder: Path, models: Path
) -> None:
    (copy_bundle(bundle_folder, models, version=2) / MODEL_FILE).unlink()
    make_a_fifo(copy_bundle(bundle_folder, models, "cats") / GOLDEN_FILE)
    (models / "dogs" / "1").mkdir(parents=True)
    edit_manifest(copy_bundle(bundle_folder, models, "mice"), name="rats")
    with capture_logs() as log, serving_models(models, control="anyone") as service:
        responses = [
            service.get("/models"),
            service.post("/v2/repository/index", b"{}"),
            service.post("/models/digits/pin?version=2"),
            service.post("/models/digits/pin?version=7"),
            service.post("/v2/repository/models/cats/load", b"{}"),
            service.get("/health/ready"),
        ]
    assert len(responses[0].json()["refused"]) == 4
    for response in responses:
        assert str(models) not in response.text
    refused = [line["reason"] for line in log if line["event"] == "bundle refused"]
    assert all(str(models) in reason for reason in refused), "the log has the whole path"


def test_second_model_does_not_change_the_default_model(
    bundle_folder: Path, models: Path, digit: Pixels, tmp_path: Path
) -> None:
    def default_model(service: Any) -> str:
        answer = service.post("/predict", encode(digit), headers=PNG)
        return str(answer.json()["model"])

    settings = ServiceSettings(models_folder=models, control="anyone", watch_seconds=0.01)
    with serving(create_app(settings, repository := WatchedRepository(settings))) as service:
        wait(repository.loaded)
        assert default_model(service) == "digits"
        copy_bundle(bundle_folder, models, "another")
        while len(service.get("/models").json()["models"]) < 2:
            pass
        assert default_model(service) == "digits"
    with serving_models(models, control="anyone") as service:
        assert default_model(service) == "digits", "also after a restart"
        assert service.post("/models/another/default").json()["name"] == "another"
        assert default_model(service) == "another"
        check_error(service.post("/models/cats/default"), 404, "unknown_model", "…")
        service.post("/v2/repository/models/another/unload", b"{}")
        out = service.post("/predict", encode(digit), headers=PNG)
        check_error(out, 503, "not_ready", "another, the default model, is not in service; …")
        service.post("/v2/repository/models/another/load", b"{}")
        shutil.rmtree(models / "another")
        service.post("/v2/repository/models/digits/load", b"{}")  # reads the folder again
        assert default_model(service) == "another", "it is still in service"
    with serving_models(models) as service:
        assert default_model(service) == "digits", (
            "a removed model is no default, the only one left is"
        )
        assert service.get("/models").json()["default"] == "digits"


def test_default_model_option_overrides_the_record(bundle_folder: Path, models: Path) -> None:
    copy_bundle(bundle_folder, models, "another")
    (models / ".default-model").write_text("digits\n")
    with serving_models(models, default_model="another", control="anyone") as service:
        assert service.get("/models").json()["default"] == "another"
        refused = service.post("/models/digits/default")
        check_error(
            refused, 409, "release_impossible", "another is the default by --default-model…"
        )


@pytest.mark.parametrize("content", ["", "no such\nname", "x" * 1000, "../../etc"])
def test_damaged_record_of_the_default_model_is_ignored(models: Path, content: str) -> None:
    (models / ".default-model").write_text(content)
    with serving_models(models) as service:
        assert service.get("/models").json()["default"] == "digits"


def test_concurrent_writers_get_different_versions(tmp_path: Path, bundle_folder: Path) -> None:
    manifest = open_bundle(bundle_folder).manifest.model_dump(
        exclude={"version", "files", "published"}
    )
    all_are_written = threading.Barrier(4, timeout=30)
    numbers, failures = [], []

    def describe(path: Path, version: int) -> None:
        (path / "report" / "card.md").write_text(f"version {version}")

    def publish() -> None:
        try:
            with new_version(tmp_path, "digits") as draft:
                shutil.copytree(bundle_folder, draft.path, dirs_exist_ok=True)
                draft.manifest = manifest
                draft.write_versioned = partial(describe, draft.path)
                all_are_written.wait()
            numbers.append(draft.version)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sorted(numbers) == [1, 2, 3, 4]
    for number in numbers:
        bundle = open_bundle(tmp_path / "digits" / str(number))
        assert (bundle.manifest.version, bundle.card) == (number, f"version {number}")
    assert not list((tmp_path / "digits").glob(".draft-*"))


def test_default_model_lasts_until_exit_where_nothing_can_be_written(
    bundle_folder: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.registry.default_model._write", lambda *_: False)
    settings = ServiceSettings(models_folder=models, watch_seconds=0.01)
    repository = WatchedRepository(settings)
    with capture_logs() as log, serving(create_app(settings, repository)) as service:
        wait(repository.loaded)
        copy_bundle(bundle_folder, models, "another")
        while len(service.get("/models").json()["models"]) < 2:
            pass
        assert service.get("/models").json()["default"] == "digits"
    warnings = [line["event"] for line in log if line["log_level"] == "warning"]
    assert warnings == ["default model not kept"]
    with serving_models(models) as service:
        assert service.get("/models").json()["default"] is None
