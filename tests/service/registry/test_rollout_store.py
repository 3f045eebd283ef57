"""Rollouts: their persistence, and concurrent changes by processes of this host and of others."""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from service.errors import RolloutError
from service.registry.peer_process_records import SILENCE_SECONDS
from service.registry.rollout_spec import RolloutSpec
from service.registry.rollout_store import RolloutStore
from tests.conftest import ROOT
from tests.service.registry.fake_hosts import Clock, on_host


def test_rollout_store_persists_changes(tmp_path: Path) -> None:
    first = RolloutStore(tmp_path / "kept")
    first.change("digits", lambda now: now.pinned(3))
    second = RolloutStore(tmp_path / "kept")
    assert second.get("digits") == RolloutSpec()
    second.read()
    assert second.get("digits") == RolloutSpec(held=3)
    assert second.generation == 1


def test_rollout_store_without_a_folder_is_temporary() -> None:
    releases = RolloutStore(None)
    releases.change("digits", RolloutSpec.as_unloaded)
    assert releases.get("digits").unloaded
    assert not releases.lagging_peers()
    releases.close()


def test_rollout_store_keeps_concurrent_changes_of_several_processes(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from service.registry.rollout_store import RolloutStore
releases = RolloutStore(Path(sys.argv[1]))
for index in range(10):
    releases.change(f"{sys.argv[2]}-{index}", lambda now: now.pinned(1))
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen([*command, name], cwd=ROOT) for name in "ab"]
    assert [process.wait() for process in processes] == [0, 0]
    releases = RolloutStore(tmp_path)
    releases.read()
    assert releases.generation == 20
    assert all(releases.get(f"{name}-{index}").held for name in "ab" for index in range(10))


def test_rollout_store_writes_nothing_when_a_step_raises(tmp_path: Path) -> None:
    releases = RolloutStore(tmp_path)
    with pytest.raises(RolloutError):
        releases.change("digits", lambda now: now.promoted(1))
    assert releases.generation == 0
    assert not (tmp_path / "releases.json").exists()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_change_in_an_unwritable_folder_names_the_option(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RolloutError, match="--control-folder"):
        RolloutStore(tmp_path).change("digits", RolloutSpec.as_unloaded)


def test_change_in_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RolloutError, match=r"cannot be kept .*--control-folder"):
        RolloutStore(tmp_path / "file").change("digits", RolloutSpec.as_unloaded)


@pytest.mark.parametrize("content", ["", "{", '{"models": {"digits": {"held": "x"}}}', "\0"])
def test_rollout_store_logs_a_damaged_file_once_and_keeps_its_content(
    tmp_path: Path, content: str
) -> None:
    releases = RolloutStore(tmp_path)
    releases.change("digits", lambda now: now.pinned(3))
    (tmp_path / "releases.json").write_text(content)
    with capture_logs() as log:
        releases.read()
        releases.read()
    assert releases.get("digits") == RolloutSpec(held=3)
    assert [line["event"] for line in log] == ["releases unreadable"]
    with pytest.raises(RolloutError, match=r"releases\.json cannot be read .* mend or remove it"):
        releases.change("letters", RolloutSpec.as_unloaded)
    assert (tmp_path / "releases.json").read_text() == content


def test_changes_of_two_hosts_are_each_others_to_follow(tmp_path: Path) -> None:
    first, second = (RolloutStore(tmp_path, on_host(letter), Clock()) for letter in "ab")
    for store in (first, second):
        store.read()
        store.mark_applied(store.generation, {})
    first.change("digits", lambda now: now.pinned(3))
    assert [each.identity.host for each in first.lagging_peers()] == ["b" * 16]
    second.read()
    assert second.get("digits").held == 3
    second.mark_applied(second.generation, {"digits": [3]})
    assert not first.lagging_peers()
    assert [str(each) for each in first.peers_without_versions("digits")] == [
        f"process 1 on {socket.gethostname()}"
    ]
    assert not first.peers_without_versions("letters")


def test_host_that_has_died_is_waited_for_until_its_heartbeat_is_missed(tmp_path: Path) -> None:
    clock = Clock()
    store, dead = RolloutStore(tmp_path, on_host("a"), clock), RolloutStore(tmp_path, on_host("b"))
    dead.mark_applied(0, {})
    store.change("digits", lambda now: now.pinned(3))
    for _ in range(int(SILENCE_SECONDS)):
        assert store.lagging_peers()
        clock.now += 1
    assert not store.lagging_peers()
    restarted = RolloutStore(tmp_path, on_host("b"))
    restarted.read()
    assert restarted.get("digits").held == 3


steps = st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.integers(1, 9))


@given(st.lists(steps, max_size=6))
@settings(max_examples=10, deadline=None)
def test_changes_of_two_hosts_in_any_order_are_all_kept(
    changes: list[tuple[str, str, int]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stores = {letter: RolloutStore(Path(folder), on_host(letter)) for letter in "ab"}
        for letter, model, version in changes:
            stores[letter].change(model, partial(RolloutSpec.pinned, version=version))
        for store in stores.values():
            store.read()
            assert store.generation == len(changes)
            wanted = {model: version for _, model, version in changes}
            assert {name: each.held for name, each in store.models.items()} == wanted


def test_changes_are_kept_where_the_lock_excludes_nobody(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from service.registry.rollout_store import RolloutStore
RolloutStore._lock = lambda self, descriptor: None
store = RolloutStore(Path(sys.argv[1]))
for index in range(10):
    store.change(f"{sys.argv[2]}-{index}", lambda now: now.pinned(1))
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen([*command, name], cwd=ROOT) for name in "ab"]
    assert [process.wait() for process in processes] == [0, 0]
    store = RolloutStore(tmp_path)
    store.read()
    assert store.generation == 20
    assert len(store.models) == 20


def test_change_of_a_writer_that_died_between_its_two_steps_is_read(tmp_path: Path) -> None:
    store = RolloutStore(tmp_path)
    store.change("digits", lambda now: now.pinned(3))
    before = (tmp_path / "releases.json").read_bytes()
    store.change("digits", lambda now: now.pinned(4))
    (tmp_path / "releases.json").write_bytes(before)
    other = RolloutStore(tmp_path)
    other.read()
    assert (other.generation, other.get("digits").held) == (2, 4)
    other.change("letters", lambda now: now.pinned(1))
    store.read()
    assert (store.generation, store.get("digits").held, store.get("letters").held) == (3, 4, 1)


def test_change_is_kept_where_only_the_second_step_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RolloutStore(tmp_path)
    store.change("digits", lambda now: now.pinned(3))
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", lambda *_: Path("/missing/file").touch())
        store.change("digits", lambda now: now.pinned(4))
    for each in (store, RolloutStore(tmp_path)):
        each.read()
        assert each.get("digits").held == 4


def test_file_that_an_operator_edits_or_removes_has_no_older_successor(tmp_path: Path) -> None:
    store, file = RolloutStore(tmp_path), tmp_path / "releases.json"
    store.change("digits", lambda now: now.pinned(3))
    store.change("digits", lambda now: now.pinned(4))
    text = file.read_text()
    file.unlink()
    file.write_text(text.replace('"generation": 2', '"generation": 1').replace("4", "7"))
    store.read()
    assert store.get("digits").held == 7
    file.unlink()
    anew = RolloutStore(tmp_path)
    anew.read()
    assert anew.models == {}
    anew.change("letters", lambda now: now.pinned(1))
    again = RolloutStore(tmp_path)
    again.read()
    assert list(again.models) == ["letters"]


def test_only_the_last_generations_stay_beside_the_file(tmp_path: Path) -> None:
    store = RolloutStore(tmp_path)
    for _ in range(18):
        store.change("digits", RolloutSpec.as_loaded)
    assert len(list(tmp_path.glob("releases-*"))) == 16


@pytest.mark.parametrize(
    ("name", "error", "sentence"),
    [
        ("fcntl.flock", errno.ENOLCK, r"has no locks; mount it with locks, .*--control-folder"),
        ("os.link", errno.EIO, r"cannot be kept \(Input/output error\)"),
    ],
)
def test_file_system_that_refuses_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, error: int, sentence: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(name, refuse)
    with pytest.raises(RolloutError, match=sentence):
        RolloutStore(tmp_path).change("digits", lambda now: now.pinned(1))


def test_file_system_without_links_is_warned_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr("os.link", refuse)
    store = RolloutStore(tmp_path)
    with capture_logs() as log:
        store.change("digits", lambda now: now.pinned(1))
        store.change("digits", lambda now: now.pinned(2))
    assert [line["event"] for line in log] == ["control folder without hard links"]
    assert store.get("digits").held == 2


def test_process_that_peers_cannot_see_serves_on_and_is_warned_of_once(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.touch()
    store = RolloutStore(folder)
    with capture_logs() as log:
        store.mark_applied(0, {})
        store.mark_applied(0, {})
    assert [line["event"] for line in log] == ["peers do not see this process"]
    folder.unlink()
    store.mark_applied(0, {})
    assert len(list(folder.glob("peer-*"))) == 1


def test_peers_that_cannot_see_a_process_are_warned_of_once_a_minute(tmp_path: Path) -> None:
    clock = Clock()
    folder = tmp_path / "shared"
    store = RolloutStore(folder, clock=clock)
    store.mark_applied(0, {})
    shutil.rmtree(folder)
    folder.touch()
    counts = []
    for seconds in (2.0, 2.0, 57.0, 2.0):
        clock.now += seconds
        with capture_logs() as log:
            store.mark_applied(0, {})  # it has nothing to write, so nothing fails
            store.beat()
        counts.append(len(log))
    assert counts == [1, 0, 0, 1]


def test_reader_sees_no_half_of_a_change(tmp_path: Path) -> None:
    """What is under the file's name is whole at each moment, also while it is replaced."""
    store = RolloutStore(tmp_path)
    store.change("digits", lambda now: now.pinned(1))
    file = tmp_path / "releases.json"
    with file.open() as before:
        store.change("digits", lambda now: now.pinned(2))
        assert json.loads(before.read())["models"]["digits"]["held"] == 1
    assert json.loads(file.read_text())["models"]["digits"]["held"] == 2
    assert [each.name for each in tmp_path.glob(".*")] == []
