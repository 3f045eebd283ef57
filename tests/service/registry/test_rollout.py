"""Releases: every way to change them, kept for every process, whoever changes them at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from service.errors import RolloutError
from service.registry.rollout import RolloutSpec, RolloutStore, falls_to_canary, forget_processes
from tests.conftest import ROOT


def test_a_canary_is_tried_and_promoted_or_ended() -> None:
    tried = RolloutSpec().tried(1, 2, 0.25)
    assert tried == RolloutSpec(held=1, canary=2, share=0.25)
    assert tried.promoted(1) == RolloutSpec(held=2, previous=1)
    assert tried.rolled_back(None) == RolloutSpec(held=1)


def test_a_rollback_returns_to_the_version_before_or_the_next_lower() -> None:
    assert RolloutSpec(held=2, previous=1).rolled_back(None) == RolloutSpec(held=1)
    assert RolloutSpec().rolled_back(3) == RolloutSpec(held=3)
    with pytest.raises(RolloutError, match="no earlier version"):
        RolloutSpec().rolled_back(None)
    with pytest.raises(RolloutError, match="no canary to promote"):
        RolloutSpec().promoted(1)
    with pytest.raises(RolloutError, match="stable one already"):
        RolloutSpec().tried(1, 1, 0.5)
    with pytest.raises(RolloutError, match="not in service"):
        RolloutSpec().tried(None, 1, 0.5)


def test_taking_a_model_out_and_back_keeps_what_else_is_wanted() -> None:
    wanted = RolloutSpec().tried(1, 2, 0.5)
    assert wanted.taken_out().unloaded
    assert wanted.taken_out().loaded() == wanted.model_copy(update={"attempt": 1})
    assert wanted.pinned(7).followed() == RolloutSpec()
    assert wanted.taken_out().pinned(7) == RolloutSpec(held=7, unloaded=True)


def test_what_is_kept_is_there_for_the_next_process(tmp_path: Path) -> None:
    first = RolloutStore(tmp_path / "kept")
    first.change("digits", lambda now: now.pinned(3))
    second = RolloutStore(tmp_path / "kept")
    assert second.get("digits") == RolloutSpec()
    second.read()
    assert second.get("digits") == RolloutSpec(held=3)
    assert second.generation == 1


def test_without_a_folder_it_lasts_as_long_as_the_process() -> None:
    releases = RolloutStore(None)
    releases.change("digits", RolloutSpec.taken_out)
    assert releases.get("digits").unloaded
    assert releases.others_follow()
    releases.close()


def test_changes_of_several_processes_are_all_kept(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from service.registry.rollout import Releases
releases = Releases(Path(sys.argv[1]))
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


def test_a_refused_step_changes_nothing(tmp_path: Path) -> None:
    releases = RolloutStore(tmp_path)
    with pytest.raises(RolloutError):
        releases.change("digits", lambda now: now.promoted(1))
    assert releases.generation == 0
    assert not (tmp_path / "releases.json").exists()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RolloutError, match="--control-folder"):
        RolloutStore(tmp_path).change("digits", RolloutSpec.taken_out)


def test_a_folder_that_is_a_file_cannot_keep_anything(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RolloutError, match=r"cannot be kept .*--control-folder"):
        RolloutStore(tmp_path / "file").change("digits", RolloutSpec.taken_out)


@pytest.mark.parametrize("content", ["", "{", '{"models": {"digits": {"held": "x"}}}', "\0"])
def test_a_damaged_file_is_logged_once_and_changes_nothing(tmp_path: Path, content: str) -> None:
    releases = RolloutStore(tmp_path)
    releases.change("digits", lambda now: now.pinned(3))
    (tmp_path / "releases.json").write_text(content)
    with capture_logs() as log:
        releases.read()
        releases.read()
    assert releases.get("digits") == RolloutSpec(held=3)
    assert [line["event"] for line in log] == ["releases unreadable"]
    with pytest.raises(RolloutError, match=r"releases\.json cannot be read .* mend or remove it"):
        releases.change("letters", RolloutSpec.taken_out)
    assert (tmp_path / "releases.json").read_text() == content


def test_the_other_processes_are_waited_for(tmp_path: Path) -> None:
    releases = RolloutStore(tmp_path, processes=2)
    releases.change("digits", RolloutSpec.taken_out)
    releases.applied(releases.generation)
    assert not releases.others_follow(), "the other has not even begun"
    (tmp_path / "applied-foo").touch()
    with subprocess.Popen(["sleep", "60"]) as other:
        lagging = tmp_path / f"applied-{other.pid}"
        lagging.write_text("0")
        assert not releases.others_follow()
        lagging.write_text("1")
        assert releases.others_follow()
        other.kill()
    assert not releases.others_follow(), "it has ended, and its successor has not begun"
    forget_processes(tmp_path, other.pid)
    assert not lagging.exists()
    forget_processes(tmp_path)
    assert not list(tmp_path.glob("applied-*"))


@given(st.text(max_size=20))
def test_a_request_falls_the_same_way_each_time_and_never_back(request_id: str) -> None:
    """Who is in a small share stays in a larger one."""
    shares = [0, 0.1, 0.5, 0.9, 1]
    falls = [falls_to_canary(request_id, share) for share in shares]
    assert falls == [falls_to_canary(request_id, share) for share in shares]
    assert falls == sorted(falls)
    assert (falls[0], falls[-1]) == (False, True)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_the_share_is_kept(share: float) -> None:
    count = sum(falls_to_canary(str(number), share) for number in range(20_000))
    assert abs(count / 20_000 - share) < 4 * (share * (1 - share) / 20_000) ** 0.5
