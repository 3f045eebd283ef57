"""What a full disk, a kill or a second process may do to the checkpoints of a run."""

import errno
import io
from pathlib import Path
from typing import Any

import pytest
import torch

from model.errors import RunError, SettingsError
from training.fitting.checkpoints import (
    BEST_CHECKPOINT,
    LAST_CHECKPOINT,
    CheckpointFiles,
    checkpoint_to_resume,
    load_checkpoint,
    lock_run,
    require_space,
)


def checkpoint(value: float) -> dict[str, Any]:
    return {"state_dict": {"weight": torch.full((64,), value)}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with two sound checkpoints, of 1 (best) and 2 (last)."""
    CheckpointFiles().save_checkpoint(checkpoint(1), tmp_path / BEST_CHECKPOINT)
    CheckpointFiles().save_checkpoint(checkpoint(2), tmp_path / LAST_CHECKPOINT)
    return tmp_path


def test_full_disk_keeps_the_last_good_checkpoint(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        CheckpointFiles().save_checkpoint(checkpoint(3), run / LAST_CHECKPOINT)
    kept = load_checkpoint(run / LAST_CHECKPOINT)
    assert kept is not None
    assert kept["state_dict"]["weight"][0] == 2
    assert {file.name for file in run.iterdir()} == {BEST_CHECKPOINT, LAST_CHECKPOINT}


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"no checkpoint"])
def test_damaged_last_checkpoint_is_replaced_by_the_best(run: Path, damage: bytes) -> None:
    assert checkpoint_to_resume(run) == run / LAST_CHECKPOINT
    (run / LAST_CHECKPOINT).write_bytes(damage)
    assert checkpoint_to_resume(run) == run / BEST_CHECKPOINT


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_cut_best_checkpoint_is_refused_in_one_sentence(run: Path, share: float) -> None:
    file = run / BEST_CHECKPOINT
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(SettingsError, match=r"best\.ckpt is damaged; start without --resume"):
        checkpoint_to_resume(run)


def test_missing_best_checkpoint_is_refused_in_one_sentence(run: Path) -> None:
    (run / BEST_CHECKPOINT).unlink()
    with pytest.raises(SettingsError, match=r"best\.ckpt is missing; start without --resume"):
        checkpoint_to_resume(run)


def test_file_of_another_content_is_no_checkpoint(tmp_path: Path) -> None:
    other = io.BytesIO()
    torch.save([1], other)
    (tmp_path / "list.ckpt").write_bytes(other.getvalue())
    assert load_checkpoint(tmp_path / "list.ckpt") is None


def test_second_process_cannot_train_in_the_same_run(tmp_path: Path) -> None:
    with (
        lock_run(tmp_path),
        pytest.raises(SettingsError, match="is being trained by another process"),
        lock_run(tmp_path),
    ):
        pass
    with lock_run(tmp_path):  # free again
        pass


def test_small_disk_is_refused_before_the_training(tmp_path: Path) -> None:
    require_space(tmp_path, tmp_path / "models" / "later", parameters=1)
    with pytest.raises(RunError, match=r"MiB free, but this training needs .* --runs\."):
        require_space(tmp_path, tmp_path, parameters=10**15)
