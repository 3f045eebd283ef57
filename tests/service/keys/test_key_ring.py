"""Tests of the keys that are good now, and of how they follow their file."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.keys.key_file_changes import add_key, revoke_key
from service.keys.key_ring import KeyRing
from service.keys.scopes import Scope
from service.observability.metrics_recorder import Metrics
from tests.service.resource_limits import no_descriptors

PREDICT: frozenset[Scope] = frozenset({"predict"})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def are_unreadable(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("dropserve_keys_unreadable")


def test_ring_finds_each_key_and_no_other(file: Path) -> None:
    tokens = {name: add_key(file, name, PREDICT, None) for name in ("one", "two")}
    ring = KeyRing(file, Metrics())
    for name, token in tokens.items():
        found = ring.find(token)
        assert found is not None
        assert found.name == name
        flipped = [
            token[:place] + chr(ord(token[place]) ^ 1) + token[place + 1 :]
            for place in range(len(token))
        ]
        for wrong in ["", token[:-1], token + "x", token.upper(), "é" * len(token), *flipped]:
            assert ring.find(wrong) is None
    mixed = tokens["one"][:12] + tokens["two"][12:]
    assert ring.find(mixed) is None


def test_expired_key_is_not_found(file: Path) -> None:
    token = add_key(file, "me", PREDICT, 1e-9)
    assert KeyRing(file, Metrics()).find(token) is None


def test_ring_follows_additions_and_revocations(file: Path) -> None:
    first = add_key(file, "one", PREDICT, None)
    ring = KeyRing(file, Metrics())
    second = add_key(file, "two", PREDICT, None)
    assert ring.find(second) is None
    with capture_logs() as log:
        ring.refresh()
        ring.refresh()
    assert log == [{"event": "keys read", "log_level": "info", "keys": 2}]
    assert ring.find(second) is not None
    revoke_key(file, "one")
    ring.refresh()
    assert ring.find(first) is None
    assert ring.find(second) is not None


@pytest.mark.parametrize("damage", ["truncated", "removed", "writable", "folder"])
def test_damaged_file_changes_no_key_is_logged_once_and_is_on_the_metrics_until_it_is_mended(
    file: Path, damage: str
) -> None:
    token = add_key(file, "me", PREDICT, None)
    content, metrics = file.read_bytes(), Metrics()
    ring = KeyRing(file, metrics)
    assert are_unreadable(metrics) == 0
    match damage:
        case "truncated":
            file.write_bytes(content[:100])
        case "writable":
            file.chmod(0o666)
        case _:
            file.unlink()
            if damage == "folder":
                file.mkdir()
    with capture_logs() as log:
        ring.refresh()
        ring.refresh()
    (line,) = log
    assert (line["event"], line["log_level"], line["keys_kept"]) == ("keys not read", "error", 1)
    assert str(file) in line["reason"]
    assert ring.find(token) is not None
    assert are_unreadable(metrics) == 1
    if damage == "folder":
        file.rmdir()
    file.write_bytes(content)
    file.chmod(0o600)
    with capture_logs() as log:
        ring.refresh()
    assert [line["event"] for line in log] == ["keys read"]
    assert are_unreadable(metrics) == 0


def test_file_that_could_not_be_opened_for_a_moment_is_read_at_the_next_look(file: Path) -> None:
    revoked = add_key(file, "me", PREDICT, None)
    ring = KeyRing(file, Metrics())
    revoke_key(file, "me")
    with capture_logs() as log:
        with no_descriptors():
            ring.refresh()
            ring.refresh()
        assert ring.find(revoked) is not None
        ring.refresh()
    assert [line["event"] for line in log] == ["keys not read", "keys read"]
    assert "Too many open files" in log[0]["reason"]
    assert ring.find(revoked) is None


def test_ring_without_a_file_knows_no_key_until_there_is_one(file: Path) -> None:
    metrics = Metrics()
    ring = KeyRing(file, metrics)
    assert are_unreadable(metrics) == 1
    token = add_key(file, "me", PREDICT, None)
    assert ring.find(token) is None
    ring.refresh()
    assert ring.find(token) is not None
    assert are_unreadable(metrics) == 0
