import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.features import features
from benchmarks.serving.comparison import Expected, rotated
from benchmarks.serving.environments import REQUIREMENTS
from benchmarks.serving.payloads import photograph
from benchmarks.serving.peers import (
    INT8,
    OURS,
    PEERS,
    LaunchSpec,
    Peer,
    other_checkout,
    with_feature,
)
from model.bundle.store import open_bundle
from model.images.preprocessing import decode, to_float
from model.inference.predictor_loading import load_predictor


@pytest.mark.parametrize("peer", [*PEERS, INT8], ids=lambda each: each.name)
def test_every_peer_has_requirements_with_pinned_versions(peer: Peer) -> None:
    text = (REQUIREMENTS / f"{peer.environment}.requirements.txt").read_text()
    named = [line for line in text.splitlines() if not line.startswith(("#", "--"))]
    assert named or peer.environment == OURS
    assert all(re.fullmatch(r"[\w\[\]-]+==[\d.]+", line) for line in named)


@pytest.mark.parametrize("is_cropped", [True, False], ids=["cropped", "squeezed"])
def test_answer_to_the_photograph_has_to_be_right_for_one_of_the_ways_to_reduce_it(
    models_folder: Path, is_cropped: bool
) -> None:
    bundle = open_bundle(models_folder / "digits" / "1")
    peer = next(each for each in PEERS if each.name == "fastapi")
    endpoint = next(each for each in peer.endpoints if each.kind == "JPEG")
    file = photograph(1)
    squeezed = Image.open(io.BytesIO(file)).resize((8, 8), Image.Resampling.BILINEAR)
    pixels = decode(file, bundle.manifest.input) if is_cropped else np.asarray(squeezed)[None]
    answer = load_predictor(bundle).predict(to_float(pixels[None])).probabilities[0]
    expected = Expected(bundle)
    assert not expected.mismatch(peer, endpoint, answer.tolist())
    assert "off by" in expected.mismatch(peer, endpoint, [0.1] * 10)


def test_another_one_goes_first_in_each_round() -> None:
    assert [rotated("abc", number) for number in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]


def test_names_titles_and_kinds_of_request_are_unique() -> None:
    assert len({each.name for each in PEERS}) == len(PEERS)
    assert len({each.title for each in (*PEERS, INT8)}) == len(PEERS) + 1
    for peer in PEERS:
        kinds = [endpoint.kind for endpoint in peer.endpoints]
        assert len(set(kinds)) == len(kinds)


def test_every_requirements_file_belongs_to_a_peer() -> None:
    files = {file.name.partition(".")[0] for file in REQUIREMENTS.glob("*.requirements.txt")}
    assert files == {peer.environment for peer in PEERS}


def test_other_checkout_starts_from_its_folder_with_the_same_requests(
    tmp_path: Path, models_folder: Path
) -> None:
    bundle = open_bundle(models_folder / "digits" / "1")
    spec = LaunchSpec(Path(sys.executable), bundle, tmp_path, 8300)
    before = other_checkout(tmp_path)
    ours = next(each for each in PEERS if each.name == OURS)
    assert before.command(spec).environment["PYTHONPATH"] == str(tmp_path)
    assert before.command(spec).arguments == ours.command(spec).arguments
    assert (before.endpoints, before.environment) == (ours.endpoints, ours.environment)


def test_service_with_keys_is_started_with_a_key_file_and_gets_a_key_with_every_request(
    tmp_path: Path, models_folder: Path
) -> None:
    bundle = open_bundle(models_folder / "digits" / "1")
    keyed = with_feature("keys", features(tmp_path)["keys"])
    options = keyed.command(LaunchSpec(Path(sys.executable), bundle, tmp_path, 8300)).arguments
    assert tuple(options[-2:]) == ("--api-keys-file", str(tmp_path / "keys.json"))
    image = np.zeros((1, 8, 8), np.float32)
    ours = next(each for each in PEERS if each.name == OURS)
    for endpoint, plain in zip(keyed.endpoints, ours.endpoints, strict=True):
        content, other = endpoint.write(image), plain.write(image)
        assert content.body == other.body
        assert content.headers["Authorization"].startswith("Bearer ")
        assert content.headers.items() > other.headers.items()
