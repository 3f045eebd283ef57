"""Services that share their rollouts: replicas of one folder, and a file that they follow."""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from service.registry import model_repository, rollout_store, waiting_for_peer_processes
from service.registry.default_model import DefaultModel
from tests.bundles import copy_bundle
from tests.service.bad_requests import PICTURE
from tests.service.registry.fake_hosts import on_host
from tests.service.serving import PNG, Application, check_error, serving_models


@pytest.fixture
def models(bundle_folder: Path, tmp_path: Path) -> Path:
    """A models folder with the real bundle as versions 1 and 2 of `digits`."""
    for version in (1, 2):
        copy_bundle(bundle_folder, tmp_path / "models", version=version)
    return tmp_path / "models"


@pytest.fixture(autouse=True)
def hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each store that is made a host of its own; nobody waits long for the others."""
    letters = iter("abcdef")
    monkeypatch.setattr(rollout_store, "this_process", lambda: on_host(next(letters)))
    monkeypatch.setattr(model_repository, "_FOLLOW_SECONDS", 0.01)
    monkeypatch.setattr(waiting_for_peer_processes, "_CHECK_SECONDS", 0.01)


@contextmanager
def replicas(*folders: Path, control: Path) -> Iterator[list[Application]]:
    """Run a service for each models folder; they share a control folder."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(serving_models(each, watch_seconds=0, control_folder=control))
            for each in folders
        ]


def version(application: Application) -> str:
    return str(application.get("/models").json()["models"][0]["version"])


def test_command_returns_once_the_replica_on_another_host_has_followed(
    models: Path, tmp_path: Path
) -> None:
    with replicas(models, models, control=tmp_path / "shared") as (first, second):
        for command, wanted in (
            ("pin?version=1", "1"),
            ("canary?version=2&share=0.5", "1"),
            ("promote", "2"),
            ("rollback", "1"),
        ):
            assert first.post(f"/models/digits/{command}").status_code == 200
            assert (version(first), version(second)) == (wanted, wanted)
        assert second.post("/models/digits/follow").status_code == 200
        assert version(first) == "2"
    left = {each.name for each in (tmp_path / "shared").iterdir() if "peer" in each.name}
    assert left == set(), "replicas that end leave no record"


def test_replica_that_cannot_load_a_version_is_named(models: Path, tmp_path: Path) -> None:
    other = shutil.copytree(models, tmp_path / "other")
    shutil.rmtree(other / "digits/2")
    with replicas(models, other, control=tmp_path / "shared") as (first, second):
        pinned = first.post("/models/digits/pin?version=2")
        sentence = "The change is made, but process 1 on … cannot load version 2 of digits; …"
        check_error(pinned, 504, "deadline_exceeded", sentence)
        assert (version(first), version(second)) == ("2", "1")
        assert first.post("/models/digits/pin?version=1").status_code == 200


def test_replica_that_does_not_follow_is_named(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting_for_peer_processes, "_TIMEOUT_SECONDS", 0.2)
    shared = tmp_path / "shared"
    with replicas(models, control=shared) as (service,):
        silent = rollout_store.RolloutStore(shared)
        silent.mark_applied(0, {})
        pinned = service.post("/models/digits/pin?version=1")
        sentence = "The change is made, but process 1 on … did not follow within 0.2 seconds; …"
        check_error(pinned, 504, "deadline_exceeded", sentence)
        silent.close()
        assert service.post("/models/digits/follow").status_code == 200


def test_replica_decides_by_what_another_one_has_changed_a_moment_ago(
    models: Path, tmp_path: Path, bundle_folder: Path
) -> None:
    copy_bundle(bundle_folder, models, version=3)
    with replicas(models, control=tmp_path / "shared") as (service,):
        other = rollout_store.RolloutStore(tmp_path / "shared")
        other.change("digits", lambda now: now.pinned(2))
        assert service.post("/models/digits/canary?version=1&share=0.5").status_code == 200
        other.read()
        assert (other.get("digits").held, other.get("digits").canary) == (2, 1)


def test_restarted_replica_is_ready_with_the_wanted_versions_alone(
    models: Path, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    rollout_store.RolloutStore(shared).change("digits", lambda now: now.pinned(1))
    with replicas(models, control=shared) as (service,):
        assert service.get("/health/ready").status_code == 200
        assert version(service) == "1"


def test_rollouts_file_is_followed_and_commands_are_refused(models: Path, tmp_path: Path) -> None:
    file = tmp_path / "rollouts.json"
    file.write_text(json.dumps({"default": "digits", "models": {"digits": {"version": 1}}}))
    copy_bundle(models / "digits/1", models, name="letters")
    with serving_models(models, rollouts=file, watch_seconds=0) as service:
        assert version(service) == "1"
        assert service.metric("dropserve_rollouts_valid") == 1
        refused = "The file rollouts.json (--rollouts) says which versions serve; change it there."
        for path in (
            "/models/digits/pin?version=2",
            "/models/letters/default",
            "/v2/repository/models/digits/unload",
            "/v2/repository/models/digits/load",
        ):
            check_error(service.post(path), 409, "release_impossible", refused)
        wanted = {"version": 1, "canary": 2, "canary_share": 0.5}
        replacement = tmp_path / "next.json"
        replacement.write_text(json.dumps({"models": {"digits": wanted}}))
        replacement.replace(file)
        while service.get("/models").json()["models"][0]["canary"] != "2":
            pass
        file.write_text("{")
        while service.metric("dropserve_rollouts_valid") != 0:
            pass
        assert service.get("/health/ready").status_code == 200
        assert service.get("/models").json()["models"][0]["canary"] == "2"


def test_service_is_not_ready_before_its_rollouts_file_is_valid(
    models: Path, tmp_path: Path
) -> None:
    file = tmp_path / "rollouts.json"
    with capture_logs() as log, serving_models(models, rollouts=file, watch_seconds=0) as service:
        sentence = "rollouts.json (--rollouts) cannot be followed (No such file or directory)."
        check_error(service.get("/health/ready"), 503, "not_ready", sentence)
        file.write_text('{"models": {"digits": {"version": 1}, "mistyped": {"version": 1}}}')
        while service.get("/health/ready").status_code != 200:
            pass
        assert version(service) == "1"
        while "wanted versions not loaded" not in [line["event"] for line in log]:
            service.get("/health/live")
    missing = [line["missing"] for line in log if line["event"] == "wanted versions not loaded"]
    assert missing == [{"mistyped": [1]}]


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (
            {"models": {"digits": {"unloaded": True}}},
            "digits is unloaded by the file rollouts.json (--rollouts); change it there.",
        ),
        (
            {"models": {"digits": {"unloaded": True}, "letters": {}}},
            "digits, the default …; …, or name another default in the file rollouts.json (…).",
        ),
    ],
)
def test_model_that_a_file_unloads_is_to_be_changed_in_the_file(
    models: Path, bundle_folder: Path, tmp_path: Path, wanted: dict[str, Any], sentence: str
) -> None:
    file = tmp_path / "rollouts.json"
    DefaultModel(models, None).record_first("digits")
    if "letters" in wanted["models"]:
        copy_bundle(bundle_folder, models, "letters")
    file.write_text(json.dumps(wanted))
    with serving_models(models, rollouts=file, watch_seconds=0) as service:
        check_error(service.post("/predict", PICTURE, headers=PNG), 503, "not_ready", sentence)
