"""Which peers live: by their process on this host, by their heartbeat on others."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.observability.process_stat import stat_fields
from service.registry import atomic_files, process_identity
from service.registry.peer_process_records import (
    FORGET_SECONDS,
    SILENCE_SECONDS,
    Peers,
    remove_ended,
)
from service.registry.process_identity import ProcessIdentity, this_process
from tests.service.registry.fake_hosts import Clock, on_host


def announced(folder: Path, me: ProcessIdentity, generation: int = 0) -> Peers:
    peers = Peers(folder, me)
    peers.announce(generation, {})
    return peers


def look_for(observer: Peers, clock: Clock, seconds: float) -> None:
    """Look every second for so long."""
    for _ in range(int(seconds)):
        clock.now += 1
        observer.look()


def test_replica_of_another_host_lives_while_its_heart_beats(tmp_path: Path) -> None:
    clock = Clock(1e6)
    here, there = Peers(tmp_path, on_host("a"), clock), announced(tmp_path, on_host("b"), 3)
    for _ in range(3):
        look_for(here, clock, SILENCE_SECONDS - 1)
        assert [each.record.generation for each in here.look()] == [3]
        there.beat()
    look_for(here, clock, SILENCE_SECONDS + 1)
    assert not here.look(), "its heart does not beat any more"
    there.beat()
    assert [each.record.generation for each in here.look()] == [3], "it was only slow"


def test_observer_that_was_suspended_forgets_no_replica(tmp_path: Path) -> None:
    clock = Clock()
    here = Peers(tmp_path, on_host("a"), clock)
    announced(tmp_path, on_host("b"))
    here.look()
    clock.now += 3600
    assert here.look(), "an hour without a look is no hour of silence"


def test_files_of_a_replica_that_is_long_gone_are_removed(tmp_path: Path) -> None:
    clock, gone = Clock(), on_host("b")
    here = Peers(tmp_path, on_host("a"), clock)
    announced(tmp_path, gone)
    draft = tmp_path / f".releases.json.{gone.name}.17"
    draft.touch()
    here.look()
    look_for(here, clock, FORGET_SECONDS - 2)
    here.remove_gone()
    assert draft.exists()
    look_for(here, clock, 3)
    here.remove_gone()
    assert list(tmp_path.iterdir()) == []
    assert not here.look()


def test_replica_of_this_host_lives_as_long_as_its_process(tmp_path: Path) -> None:
    clock = Clock()
    here = Peers(tmp_path, this_process(), clock)
    with subprocess.Popen(["sleep", "60"]) as other:
        started = int(stat_fields(other.pid)[19])
        identity = replace(this_process(), pid=other.pid, started=started)
        announced(tmp_path, identity)
        look_for(here, clock, 10 * FORGET_SECONDS)
        here.remove_gone()
        assert [each.identity for each in here.look()] == [identity], "it need not beat"
        other.kill()
    assert not here.look()
    here.remove_gone()
    assert list(tmp_path.iterdir()) == []


def test_process_number_that_is_used_again_is_another_process() -> None:
    me = this_process()
    assert not me.has_ended()
    assert replace(me, started=me.started - 1).has_ended()
    assert replace(me, pid=2**22 + 1).has_ended()
    assert replace(me, pid=2**70).has_ended()


def test_start_of_a_service_removes_the_ended_processes_of_its_own_host_alone(
    tmp_path: Path,
) -> None:
    me = this_process()
    ended, other = replace(me, started=me.started - 1), on_host("b")
    for each in (me, ended, other):
        announced(tmp_path, each)
    (tmp_path / f".releases.json.{ended.name}.1").touch()
    (tmp_path / "peer-of-something.json").touch()
    remove_ended(tmp_path, me)
    names = {each.name for each in tmp_path.iterdir()}
    assert names == {f"peer-{each}.json" for each in (me, other, "of-something")}


def test_container_is_a_host_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hosts = set()
    for boot, hostname in (("1", "a"), ("1", "b"), ("2", "a")):
        boot_id = tmp_path / boot / "sys/kernel/random/boot_id"
        boot_id.parent.mkdir(parents=True, exist_ok=True)
        boot_id.write_text(boot)
        namespace = tmp_path / boot / "self/ns/pid"
        namespace.parent.mkdir(parents=True, exist_ok=True)
        namespace.touch()
        monkeypatch.setattr(process_identity, "_PROC", tmp_path / boot)
        monkeypatch.setattr(process_identity, "this_hostname", lambda name=hostname: name)
        hosts.add(process_identity._host.__wrapped__())
    monkeypatch.setattr(process_identity, "_PROC", tmp_path / "missing")
    hosts |= {process_identity._host.__wrapped__() for _ in range(2)}
    assert len(hosts) == 5, "without /proc each process is one"


@given(st.text(alphabet="0123456789abcdef-", max_size=40))
def test_only_an_identity_is_parsed(text: str) -> None:
    parsed = ProcessIdentity.parse(text)
    assert parsed is None or ProcessIdentity.parse(str(parsed)) == parsed


def test_record_that_cannot_be_read_is_a_replica_that_lags(tmp_path: Path) -> None:
    clock = Clock()
    here = Peers(tmp_path, on_host("a"), clock)
    (tmp_path / f"peer-{on_host('b')}.json").write_text("{")
    assert [each.record.generation for each in here.look()] == [-1]
    look_for(here, clock, SILENCE_SECONDS + 1)
    assert not here.look()


def test_replica_that_leaves_is_not_waited_for_and_beats_no_more(tmp_path: Path) -> None:
    here, there = Peers(tmp_path, on_host("a")), announced(tmp_path, on_host("b"))
    assert here.look()
    there.leave()
    there.beat()
    assert not here.look()


def test_draft_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError):
        atomic_files.write(tmp_path / "file", "text")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert atomic_files.create(tmp_path / "first", "text")
    assert not atomic_files.create(tmp_path / "first", "other")
    assert (tmp_path / "first").read_text() == "text"
