"""Writes checkpoints so that a full disk or a kill leaves the last good one, and finds it again.

Of several processes the first alone reads and writes them. Knows no network: a checkpoint is what
Lightning's trainer collects.
"""

import fcntl
import io
import logging
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from model.atomic_file_writing import write_whole
from model.errors import RunError, SettingsError
from training.distributed.process_group import ALONE, Processes

logger = logging.getLogger(__name__)

LAST_CHECKPOINT = "last.ckpt"
BEST_CHECKPOINT = "best.ckpt"

_LOCK_FILE = ".lock"
_CHECKPOINT_BYTES = 12
"""Bytes of a checkpoint for each parameter: the weight and two moments of AdamW, float32."""
_BUNDLE_BYTES = 4
"""Bytes of a bundle for each parameter, at least."""
_FILES_AT_ONCE = 3
"""The last checkpoint, the best one, and the one that is being written."""


class CheckpointFiles(TorchCheckpointIO):
    """Writes each checkpoint beside its place, flushes it and renames it; reads it once for all."""

    def __init__(self, processes: Processes = ALONE) -> None:
        """Take the processes that go on from a checkpoint together."""
        super().__init__()
        self._processes = processes

    def load_checkpoint(self, path: str | os.PathLike[str], *_: Any, **__: Any) -> dict[str, Any]:
        """Return the checkpoint that the first process finds in `path`, on the CPU."""
        content = io.BytesIO(self._processes.read_once(Path(path)))
        loaded: dict[str, Any] = torch.load(content, weights_only=True, map_location="cpu")
        return loaded

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any | None = None,
    ) -> None:
        """Replace the checkpoint in `path`, or raise OSError and leave it as it was."""
        content = io.BytesIO()  # torch's own writer would raise RuntimeError for a full disk
        torch.save(checkpoint, content)
        write_whole(Path(path), content.getbuffer())


def load_checkpoint(file: Path) -> dict[str, Any] | None:
    """Load a checkpoint onto the CPU; return None if it is damaged or is none.

    Raises:
        OSError: the file cannot be read.
    """
    content = io.BytesIO(file.read_bytes())
    try:
        loaded = torch.load(content, weights_only=True, map_location="cpu")
    except Exception:  # torch raises errors of many kinds for damaged files
        return None
    return loaded if isinstance(loaded, dict) and "state_dict" in loaded else None


def checkpoint_to_resume(run: Path) -> Path:
    """Return the checkpoint that a run goes on from: the last one, or the best if that is damaged.

    Raises:
        SettingsError: the run cannot go on, since its best checkpoint is missing or damaged, which
            would be exported in the end if no epoch is better.
    """
    last, best = run / LAST_CHECKPOINT, run / BEST_CHECKPOINT
    if not best.is_file() or load_checkpoint(best) is None:
        state = "damaged" if best.is_file() else "missing"
        raise SettingsError(f"--resume: {best} is {state}; start without --resume.")
    if last.is_file() and load_checkpoint(last) is not None:
        return last
    logger.warning(
        "Warning: %s is %s; going on from the best epoch so far.",
        *(last, "damaged" if last.is_file() else "missing"),
    )
    return best


@contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Keep other processes from training in the same run folder meanwhile.

    Raises:
        SettingsError: another process trains there.
        OSError: the lock file cannot be made.
    """
    with (run / _LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(
                f"{run} is being trained by another process; wait for its end, or start without "
                "--resume."
            ) from None
        except OSError:  # a network disk without locks
            pass
        yield


def require_space(run: Path, output: Path, parameters: int) -> None:
    """Raise RunError if the disks have no room for the checkpoints and the bundle of a training.

    Args:
        run: folder of the checkpoints.
        output: folder of the bundles; it need not exist.
        parameters: learnt numbers of the network.
    """
    needs = {
        run: _FILES_AT_ONCE * _CHECKPOINT_BYTES * parameters,
        output: _BUNDLE_BYTES * parameters,
    }
    places = {each: _existing(each) for each in needs}
    if places[run].stat().st_dev == places[output].stat().st_dev:
        needs = {run: sum(needs.values())}
    for folder, needed in needs.items():
        free = shutil.disk_usage(places[folder]).free
        if free < needed:
            option = "--runs" if folder == run else "--output"
            raise RunError(
                f"The disk of {folder} has {free / 2**20:,.0f} MiB free, but this training needs "
                f"{math.ceil(needed / 2**20):,} MiB; free space or choose another folder with "
                f"{option}."
            )


def _existing(folder: Path) -> Path:
    return next(each for each in (folder, *folder.absolute().parents) if each.exists())
