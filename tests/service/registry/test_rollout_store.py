"""Rollouts: every change, its persistence, concurrent changes, and canary routing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from service.errors import RolloutError
from service.registry.rollout_store import (
    RolloutSpec,
    RolloutStore,
    remove_process_files,
    routes_to_canary,
)
from tests.conftest import ROOT


def test_rollout_starts_promotes_and_ends_a_canary() -> None:
    tried = RolloutSpec().with_canary(1, 2, 0.25)
    assert tried == RolloutSpec(held=1, canary=2, share=0.25)
    assert tried.promoted(1) == RolloutSpec(held=2, previous=1)
    assert tried.rolled_back(None) == RolloutSpec(held=1)


def test_rollback_returns_to_the_previous_or_next_lower_version() -> None:
    assert RolloutSpec(held=2, previous=1).rolled_back(None) == RolloutSpec(held=1)
    assert RolloutSpec().rolled_back(3) == RolloutSpec(held=3)
    with pytest.raises(RolloutError, match="no earlier version"):
        RolloutSpec().rolled_back(None)
    with pytest.raises(RolloutError, match="no canary to promote"):
        RolloutSpec().promoted(1)
    with pytest.raises(RolloutError, match="stable one already"):
        RolloutSpec().with_canary(1, 1, 0.5)
    with pytest.raises(RolloutError, match="not in service"):
        RolloutSpec().with_canary(None, 1, 0.5)


def test_unload_and_load_keep_pin_and_canary() -> None:
    wanted = RolloutSpec().with_canary(1, 2, 0.5)
    assert wanted.as_unloaded().unloaded
    assert wanted.as_unloaded().as_loaded() == wanted.model_copy(update={"attempt": 1})
    assert wanted.pinned(7).unpinned() == RolloutSpec()
    assert wanted.as_unloaded().pinned(7) == RolloutSpec(held=7, unloaded=True)


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
    assert releases.peers_have_applied()
    releases.close()


def test_rollout_store_keeps_concurrent_changes_of_several_processes(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from service.registry.rollout_store import RolloutStore
releases = RolloutStore(Path(sys.argv[1]))
for index in range(20):
    releases.change(f"{sys.argv[2]}-{index}", lambda now: now.pinned(1))
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen([*command, name], cwd=ROOT) for name in "abc"]
    assert [process.wait() for process in processes] == [0, 0, 0]
    releases = RolloutStore(tmp_path)
    releases.read()
    assert releases.generation == 60
    assert all(releases.get(f"{name}-{index}").held for name in "abc" for index in range(20))


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


def test_peers_have_applied_waits_for_every_live_process(tmp_path: Path) -> None:
    releases = RolloutStore(tmp_path, processes=2)
    releases.change("digits", RolloutSpec.as_unloaded)
    releases.mark_applied(releases.generation)
    assert not releases.peers_have_applied(), "the other process has not started yet"
    (tmp_path / "applied-foo").touch()
    with subprocess.Popen(["sleep", "60"]) as other:
        lagging = tmp_path / f"applied-{other.pid}"
        lagging.write_text("0")
        assert not releases.peers_have_applied()
        lagging.write_text("1")
        assert releases.peers_have_applied()
        other.kill()
    assert not releases.peers_have_applied(), "it has ended, and its successor has not started"
    remove_process_files(tmp_path, other.pid)
    assert not lagging.exists()
    remove_process_files(tmp_path)
    assert not list(tmp_path.glob("applied-*"))


@given(st.text(max_size=20))
def test_canary_routing_is_deterministic_and_monotonic_in_the_share(request_id: str) -> None:
    """An id in a small share is also in every larger one."""
    shares = [0, 0.1, 0.5, 0.9, 1]
    routed = [routes_to_canary(request_id, share) for share in shares]
    assert routed == [routes_to_canary(request_id, share) for share in shares]
    assert routed == sorted(routed)
    assert (routed[0], routed[-1]) == (False, True)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_canary_routing_matches_the_share(share: float) -> None:
    count = sum(routes_to_canary(str(number), share) for number in range(20_000))
    assert abs(count / 20_000 - share) < 4 * (share * (1 - share) / 20_000) ** 0.5
