"""The rollouts as a file that somebody else writes: its schema, its changes, its mistakes."""

import json
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from service.errors import RolloutError
from service.registry.rollout_spec import RolloutSpec
from service.registry.rollouts_file import RolloutsFile
from tests.service.serving import check_sentence

EVERYTHING = {
    "default": "digits",
    "models": {
        "digits": {
            "version": 3,
            "canary": 4,
            "canary_share": 0.25,
            "shadow": 5,
            "shadow_share": 0.5,
            "unloaded": False,
        },
        "letters": {},
        "fashion-mnist": {"unloaded": True},
    },
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rollouts.json"


def read(file: Path, content: Any) -> RolloutsFile:
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    rollouts = RolloutsFile(file)
    rollouts.read()
    return rollouts


def test_rollouts_file_names_every_field_as_get_models_does(file: Path) -> None:
    rollouts = read(file, EVERYTHING)
    assert rollouts.unread_reason is None
    assert rollouts.is_valid
    assert rollouts.default_model == "digits"
    assert rollouts.get("digits") == RolloutSpec(
        held=3, canary=4, share=0.25, shadow=5, shadow_share=0.5
    )
    assert rollouts.get("letters") == rollouts.get("not named") == RolloutSpec()
    assert rollouts.get("fashion-mnist").unloaded


def test_empty_rollouts_file_follows_the_newest_versions(file: Path) -> None:
    rollouts = read(file, {})
    assert rollouts.is_valid
    assert (rollouts.models, rollouts.default_model) == ({}, None)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "Invalid JSON: EOF …"),
        ("[]", "Input should be an object"),
        ({"models": {"digits": {"held": 3}}}, "models.digits.held: Extra inputs are not permitted"),
        ({"models": {"digits": {"version": "3"}}}, "models.digits.version: …integer"),
        ({"models": {"digits": {"version": 0}}}, "models.digits.version: …greater than or equal…"),
        ({"models": {"../x": {}}}, "models: …"),
        (
            {"models": {"d": {"version": 3, "canary": 4}}},
            "models.d: canary and canary_share need …",
        ),
        ({"models": {"d": {"version": 3, "canary_share": 0.5}}}, "models.d: canary and …"),
        (
            {"models": {"d": {"canary": 4, "canary_share": 1}}},
            "models.d: a canary or shadow needs …",
        ),
        ({"models": {"d": {"version": 3, "shadow": 3}}}, "models.d: version, canary and shadow …"),
        (" " * 2**20 + "{}", "it is larger than 1,048,576 bytes"),
    ],
)
def test_mistake_in_a_rollouts_file_is_one_sentence(file: Path, content: Any, reason: str) -> None:
    rollouts = read(file, content)
    assert not rollouts.is_valid
    check_sentence(
        rollouts.unread_reason or "", f"rollouts.json (--rollouts) cannot be followed ({reason})."
    )


def test_invalid_file_keeps_the_last_good_state_and_is_logged_once(file: Path) -> None:
    rollouts = read(file, EVERYTHING)
    with capture_logs() as log:
        for content in ("{", "{", json.dumps(EVERYTHING)):
            file.write_text(content)
            rollouts.read()
            assert rollouts.get("digits").held == 3
            assert rollouts.is_valid == (content != "{")
            assert rollouts.unread_reason is None
        file.unlink()
        rollouts.read()
    assert [line["event"] for line in log] == ["rollouts file invalid"] * 2
    assert (rollouts.is_valid, rollouts.generation) == (False, 1)


def test_missing_rollouts_file_is_waited_for(file: Path) -> None:
    rollouts = RolloutsFile(file)
    assert rollouts.unread_reason == "rollouts.json has not been read yet."
    rollouts.read()
    assert "No such file" in (rollouts.unread_reason or "")
    file.write_text("{}")
    rollouts.read()
    assert rollouts.unread_reason is None


def test_rollouts_file_follows_the_swap_of_a_mounted_config_map(tmp_path: Path) -> None:
    """The kubelet points the link `..data` at another folder; the file is a link into it."""
    for version in (3, 4):
        folder = tmp_path / f"..2026_11_29_{version}"
        folder.mkdir()
        content = {"models": {"digits": {"version": version}}}
        (folder / "rollouts.json").write_text(json.dumps(content))
    (tmp_path / "..data").symlink_to("..2026_11_29_3")
    (tmp_path / "rollouts.json").symlink_to("..data/rollouts.json")
    rollouts = RolloutsFile(tmp_path / "rollouts.json")
    for version, generation in ((3, 1), (4, 2)):
        (tmp_path / "..data_tmp").symlink_to(f"..2026_11_29_{version}")
        (tmp_path / "..data_tmp").replace(tmp_path / "..data")
        for _ in range(2):
            rollouts.read()
            assert (rollouts.get("digits").held, rollouts.generation) == (version, generation)


def test_command_is_refused_and_told_the_file(file: Path) -> None:
    rollouts = read(file, {})
    with pytest.raises(RolloutError, match=r"The file rollouts\.json \(--rollouts\) says which"):
        rollouts.change("digits", RolloutSpec.as_unloaded)
