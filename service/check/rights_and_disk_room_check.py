"""Checks the folders of the service, without writing: rights, and room on the disk."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from service.check.findings import Finding, error, fine, warning
from service.feedback.feedback_file import why_unusable
from service.registry.wanted_versions import rollouts_of
from service.settings import ServiceSettings

_MIB = 2**20


def check_folders(settings: ServiceSettings) -> Iterator[Finding]:
    """Yield what is wrong with the folders of models, rollouts, traffic log, feedback, /tmp."""
    for name in _unreadable_models(settings.bundles_folder):
        yield warning(
            "models",
            f"{name} cannot be read, so the service does not know of it; give this user access to "
            "it, if it is a model.",
        )
    folder = settings.control_folder
    problem = None if folder is None else why_not_writable(folder)
    if problem is not None:
        yield error("control folder", f"--control-folder: {problem}")
    if problem is None or settings.rollouts is not None:
        yield from _check_rollouts(settings)
    if settings.traffic_log is not None:
        yield from _check_traffic_log(settings.traffic_log, settings.traffic_log_max_bytes)
    if settings.feedback is not None:
        yield from _check_feedback(settings.feedback, settings.feedback_max_bytes)
    try:
        tempfile.gettempdir()
    except OSError:
        yield error(
            "temporary folder",
            "none can be written; mount one at /tmp, or name one in the variable TMPDIR.",
        )


def _unreadable_models(folder: Path) -> Iterator[Path]:
    """Yield what may be models, but leads nowhere or may not be read.

    The service knows of the versions of a model without reading them, and refuses these.
    """
    with suppress(OSError):  # another check says so
        for model in sorted(folder.iterdir()):
            leads_nowhere = model.is_symlink() and not model.exists()
            if model.name.startswith(".") or not (model.is_dir() or leads_nowhere):
                continue
            if leads_nowhere or not os.access(model, os.R_OK | os.X_OK):
                yield model


def _check_rollouts(settings: ServiceSettings) -> Iterator[Finding]:
    """Yield why the wanted versions cannot be read."""
    rollouts = rollouts_of(settings)
    rollouts.read()
    place = settings.rollouts or settings.control_folder
    if rollouts.unread_reason is not None:
        yield error("rollouts", f"{place}: {rollouts.unread_reason}")
    elif settings.rollouts is not None:
        yield fine("rollouts", f"{place} is valid; commands that would change it are refused.")


def _check_traffic_log(folder: Path, max_bytes: int) -> Iterator[Finding]:
    problem = why_not_writable(folder)
    if problem is not None:
        yield error("traffic log", f"--traffic-log: {problem}")
        return
    free = shutil.disk_usage(_nearest_existing(folder)).free
    room = free + _size(folder)
    if room < max_bytes:
        yield warning(
            "traffic log",
            f"the disk of {folder} has {room / _MIB:,.0f} MiB for it, less than "
            f"--traffic-log-max-bytes, {max_bytes / _MIB:,.0f} MiB, so lines would be dropped; "
            "free space, or lower that.",
        )
        return
    yield fine(
        "traffic log", f"{folder} can be written, and {free / _MIB:,.0f} MiB are free there."
    )


def _check_feedback(file: Path, max_bytes: int) -> Iterator[Finding]:
    problem = why_not_writable(file.parent) or why_unusable(file)
    if problem is not None:
        yield error("feedback", f"--feedback: {problem}")
        return
    free = shutil.disk_usage(_nearest_existing(file.parent)).free
    room = free + (file.stat().st_size if file.exists() else 0)
    if room < max_bytes:
        yield warning(
            "feedback",
            f"the disk of {file} has {room / _MIB:,.0f} MiB for it, less than "
            f"--feedback-max-bytes, {max_bytes / _MIB:,.0f} MiB, so labels would be refused; free "
            "space, or lower that.",
        )
        return
    yield fine("feedback", f"{file} can be written, and {free / _MIB:,.0f} MiB are free there.")


def why_not_writable(folder: Path) -> str | None:
    """Return in one sentence why a folder cannot be used, or made; None if it can be."""
    nearest = _nearest_existing(folder)
    if not nearest.is_dir():
        return f"{nearest} is no folder; name another one."
    if not os.access(nearest, os.R_OK | os.W_OK | os.X_OK):
        unmade = "" if nearest == folder.absolute() else f", so {folder} cannot be made"
        return f"{nearest} cannot be written{unmade}; give this user access to it, or name another."
    return None


def _nearest_existing(folder: Path) -> Path:
    """Return the folder or, where it does not exist, the nearest one above it."""
    folder = folder.absolute()
    return next(each for each in (folder, *folder.parents) if os.path.lexists(each))


def _size(folder: Path) -> int:
    """Return the bytes of the files in a folder and those below it."""
    size = 0
    for file in folder.rglob("*"):
        with suppress(OSError):  # it is rotated at this moment
            size += file.lstat().st_size
    return size
