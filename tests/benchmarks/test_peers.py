import re
import sys
from pathlib import Path

import pytest

from benchmarks.serving.environments import REQUIREMENTS
from benchmarks.serving.peers import INT8, OURS, PEERS, Peer, Stage, other_checkout
from model.bundle.store import open_bundle


@pytest.mark.parametrize("peer", [*PEERS, INT8], ids=lambda each: each.name)
def test_every_peer_has_its_requirements_and_their_versions_are_pinned(peer: Peer) -> None:
    text = (REQUIREMENTS / f"{peer.environment}.requirements.txt").read_text()
    named = [line for line in text.splitlines() if not line.startswith(("#", "--"))]
    assert named or peer.environment == OURS
    assert all(re.fullmatch(r"[\w\[\]-]+==[\d.]+", line) for line in named)


def test_names_differ_and_no_server_is_asked_the_same_twice() -> None:
    assert len({each.name for each in PEERS}) == len(PEERS)
    assert len({each.title for each in (*PEERS, INT8)}) == len(PEERS) + 1
    for peer in PEERS:
        kinds = [ask.kind for ask in peer.asks]
        assert len(set(kinds)) == len(kinds)


def test_no_file_of_requirements_is_nobody_s() -> None:
    files = {file.name.partition(".")[0] for file in REQUIREMENTS.glob("*.requirements.txt")}
    assert files == {peer.environment for peer in PEERS}


def test_another_checkout_is_started_from_its_own_folder_and_asked_the_same(
    tmp_path: Path, models_folder: Path
) -> None:
    bundle = open_bundle(models_folder / "digits" / "1")
    stage = Stage(Path(sys.executable), bundle, tmp_path, 8300)
    before = other_checkout(tmp_path)
    ours = next(each for each in PEERS if each.name == OURS)
    assert before.command(stage).environment["PYTHONPATH"] == str(tmp_path)
    assert before.command(stage).arguments == ours.command(stage).arguments
    assert (before.asks, before.environment) == (ours.asks, ours.environment)
