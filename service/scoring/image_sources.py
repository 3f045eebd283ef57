"""The arguments of the command -> the images that they name, in a fixed order.

Folders, archives and patterns are searched for images, and what is none is counted; single files
and the rows of tables are always taken, since somebody named them. Decodes nothing.
"""

import glob
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from model.errors import DropserveError
from model.images.file_formats import FIRST_BYTES
from service.scoring.csv_of_image_paths import read_paths
from service.scoring.image_file import ImageReference, display_name, unreadable
from service.scoring.image_file_filter import (
    begins_as_image,
    has_image_suffix,
    is_hidden,
)
from service.scoring.zip_archives import first_bytes, list_members


class ImageSourceError(DropserveError):
    """An argument names nothing that can be scored."""


@dataclass
class FoundImages:
    """What the arguments name."""

    images: list[ImageReference] = field(default_factory=list)
    left_out: int = 0
    """Files of folders, archives and patterns that are no images, and those of the output."""
    rows_without_path: int = 0
    """Of tables."""
    named_again: int = 0
    """Images that were named before."""
    _names: set[str] = field(default_factory=set)
    _files: set[tuple[str, int | None]] = field(default_factory=set)
    """Real path of each image's file, and its position in an archive."""

    def add(self, image: ImageReference) -> None:
        """Add an image, unless it was named before, by this path or another one."""
        file = os.path.realpath(image.path), image.member
        if image.name in self._names or file in self._files:
            self.named_again += 1
            return
        self._names.add(image.name)
        self._files.add(file)
        self.images.append(image)


def find_images(arguments: Sequence[str], outputs: Collection[Path] = ()) -> FoundImages:
    """Find the images that the arguments name, each once: in their order, sorted within each.

    outputs: the files that the run writes, which are left out.

    Raises:
        ImageSourceError: an argument does not exist or cannot be read, or there is no image.
        PathTableError, ZipArchiveError: a table or an archive cannot be read.
    """
    found = FoundImages()
    own = {os.path.realpath(output) for output in outputs}
    for argument in arguments:
        is_pattern = glob.has_magic(argument) and not os.path.lexists(argument)
        add = _add_match if is_pattern else _add_path
        for path in _expand_pattern(argument) if is_pattern else [Path(argument)]:
            if os.path.realpath(path) in own:
                found.left_out += 1
                continue
            try:
                add(path, found)
            except OSError as error:
                raise ImageSourceError(f"{display_name(str(path))}: {unreadable(error)}") from None
    if not found.images:
        names = ", ".join(display_name(argument) for argument in arguments)
        raise ImageSourceError(
            f"There is no image in {names}; name image files, or a folder, archive or table that "
            "has some."
        )
    return found


def _expand_pattern(argument: str) -> Sequence[Path]:
    matches = [Path(match) for match in sorted(glob.glob(argument, recursive=True))]  # noqa: PTH207
    if not matches:
        raise ImageSourceError(f"No file matches {display_name(argument)}; check the pattern.")
    return matches if "**" not in argument else _each_file_once(matches)


def _each_file_once(matches: Sequence[Path]) -> Sequence[Path]:
    """Leave out folders, and files that a link leads to again: "**" follows links in circles."""
    shortest: dict[Path, Path] = {}
    for match in sorted(matches, key=lambda path: len(path.parts)):
        if not match.is_dir():
            shortest.setdefault(match.resolve(), match)
    return sorted(shortest.values())


def _add_path(path: Path, found: FoundImages) -> None:
    mode = path.stat().st_mode
    suffix = path.suffix.lower()
    if stat.S_ISDIR(mode):
        _add_folder(path, found)
    elif not stat.S_ISREG(mode):
        raise ImageSourceError(
            f"{display_name(str(path))} is neither a file nor a folder; name one that has images."
        )
    elif suffix == ".zip":
        _add_archive(path, found)
    else:
        for each in read_paths(path) if suffix == ".csv" else [path]:
            if each is None:
                found.rows_without_path += 1
            else:
                found.add(ImageReference(str(each), display_name(str(each))))


def _add_match(path: Path, found: FoundImages) -> None:
    """Add what a pattern matches: a file only if a folder's search would find it, no table."""
    if path.is_dir() or path.suffix.lower() == ".zip":
        _add_path(path, found)
    elif _is_image_file(path):
        found.add(ImageReference(str(path), display_name(str(path))))
    else:
        found.left_out += 1


def _add_folder(folder: Path, found: FoundImages) -> None:
    for path, error in _walk(folder):
        if error is None and (is_hidden(path.name) or not _is_image_file(path)):
            found.left_out += 1
            continue
        problem = None if error is None else unreadable(error)
        found.add(ImageReference(str(path), display_name(str(path)), problem=problem))


def _walk(folder: Path) -> Iterator[tuple[Path, OSError | None]]:
    """Yield the files under a folder, sorted, then the folders in it that cannot be read.

    Links are followed; a folder that is reached twice is walked once.
    """
    errors: list[OSError] = []
    seen: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(folder, onerror=errors.append, followlinks=True):
        status = Path(parent).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(each for each in folders if not is_hidden(each))
        for name in sorted(files):
            yield Path(parent, name), None
    for error in errors:
        if Path(error.filename) == folder:
            raise error
        yield Path(error.filename), error


def _is_image_file(path: Path) -> bool:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
        if has_image_suffix(path.name):
            return True
        with path.open("rb") as file:
            return begins_as_image(file.read(FIRST_BYTES))
    except OSError:  # a link to nothing, or no permission to read
        return has_image_suffix(path.name)


def _add_archive(path: Path, found: FoundImages) -> None:
    for position, name in list_members(path):
        parts = PurePosixPath(name.replace("\\", "/")).parts
        is_image = has_image_suffix(name) or begins_as_image(
            first_bytes(path, position, FIRST_BYTES)
        )
        if is_image and not any(map(is_hidden, parts)):
            found.add(ImageReference(str(path), display_name(f"{path}/{name}"), position))
        else:
            found.left_out += 1
