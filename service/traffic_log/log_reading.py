"""Reads a traffic log: whole lines, finished or not. Changes no file."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from model.errors import DropserveError
from service.traffic_log.log_segment import IMAGES, LINES, PART, PREFIX


class TrafficLogError(DropserveError):
    """A folder is no traffic log that can be read."""


def read_lines(folder: Path) -> Iterator[tuple[bytes, Path]]:
    """Yield each line, oldest segment first, and the folder of its image.

    What a process is writing just now, and what a kill has cut, is left out.

    Raises:
        TrafficLogError: there is no traffic log in the folder.
    """
    try:
        names = [each.name for each in folder.iterdir()]
    except OSError as error:
        raise TrafficLogError(
            f"{folder} cannot be read ({error.strerror}); name the folder of --traffic-log."
        ) from None
    stems = {
        name.removesuffix(suffix)
        for suffix in (PART, LINES)
        for name in names
        if name.startswith(PREFIX) and name.endswith(suffix)
    }
    if not stems:
        raise TrafficLogError(
            f"There is no traffic log in {folder}; name the folder of --traffic-log."
        )
    for stem in sorted(stems):
        try:
            with _open(folder, stem) as file:
                for line in file:
                    if line.endswith(b"\n"):
                        yield line, folder / f"{stem}{IMAGES}"
        except FileNotFoundError:
            continue  # the service has removed it, as too old
        except OSError as error:
            raise TrafficLogError(f"{folder / stem} cannot be read ({error.strerror}).") from None


def _open(folder: Path, stem: str) -> BinaryIO:
    """Open the lines of a segment, which may have been finished since its folder was read.

    Raises:
        FileNotFoundError: it has been removed.
        OSError: it cannot be read.
    """
    with suppress(FileNotFoundError):
        return (folder / f"{stem}{PART}").open("rb")
    return (folder / f"{stem}{LINES}").open("rb")
