"""Reads the tree of files below a folder: without system folders, each linked folder once.

Opens no file, and knows neither classes nor data splits.
"""

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from training.data.excluded_files import LeftOut

_SYSTEM_FOLDERS = {
    "__macosx",
    "__pycache__",
    "lost+found",
    "#recycle",
    "$recycle.bin",
    "system volume information",
    "thumbnails",
    "thumbs",
}
_SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
_TRASH_FOLDERS = {"trash", "recycled", "recycler"}

FolderId = tuple[int, int]
"""Device and inode."""


@dataclass
class Folder:
    """A folder with its files and sub-folders, both sorted by name."""

    path: Path
    files: list[Path] = field(default_factory=list)
    folders: list["Folder"] = field(default_factory=list)

    def walk(self) -> Iterator["Folder"]:
        """Yield this folder and all that are below it."""
        waiting = [self]
        while waiting:
            folder = waiting.pop()
            yield folder
            waiting += reversed(folder.folders)

    def file_count(self) -> int:
        """Return the number of files in this folder and below it."""
        return sum(len(folder.files) for folder in self.walk())


def is_trash(name: str) -> bool:
    """Return whether a folder inside a class holds trash; a class itself may have this name."""
    return name.casefold() in _TRASH_FOLDERS


def read_tree(root: Path, left_out: LeftOut) -> Folder:
    """Read the names of all files and folders below `root`.

    Links to folders are followed after all others, in the order of their paths, and only to folders
    that were not read before and that do not contain `root`. So a loop ends, and no image is read
    twice.

    Args:
        root: an existing folder.
        left_out: records the files and folders that are not in the tree.
    """
    return _TreeReader(root, left_out).read()


class _TreeReader:
    def __init__(self, root: Path, left_out: LeftOut) -> None:
        self._root = root
        self._left_out = left_out
        self._visited: set[FolderId] = set()
        self._links: deque[tuple[Folder, Path]] = deque()

    def read(self) -> Folder:
        tree = Folder(self._root)
        self._read_below(tree)
        while self._links:
            parent, link = self._links.popleft()
            if self._may_follow(link):
                linked = Folder(link)
                self._read_below(linked)
                parent.folders = sorted([*parent.folders, linked], key=lambda each: each.path)
        return tree

    def _read_below(self, top: Folder) -> None:
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            try:
                self._visited.add(_folder_id(folder.path))
                with os.scandir(folder.path) as entries:
                    ordered = sorted(entries, key=lambda entry: entry.name)
            except OSError as error:
                self._left_out.add("unreadable", folder.path, error.strerror or "")
                continue
            for entry in ordered:
                self._add_entry(folder, entry)
            waiting += reversed(folder.folders)

    def _add_entry(self, folder: Folder, entry: os.DirEntry[str]) -> None:
        path = Path(entry.path)
        try:
            if entry.is_dir():
                self._add_folder(folder, path, entry.is_symlink())
            elif _is_system_file(entry.name):
                self._left_out.add("hidden", path)
            elif entry.is_file():
                folder.files.append(path)
            elif entry.is_symlink() and not path.exists():
                self._left_out.add("link", path, "leads nowhere")
            else:
                self._left_out.add("special", path)
        except OSError as error:  # also a link that leads to itself
            self._left_out.add("unreadable", path, error.strerror or "")

    def _add_folder(self, folder: Folder, path: Path, is_link: bool) -> None:
        if _is_system_folder(path.name):
            self._left_out.add("system_folder", path, files=0 if is_link else _count_files(path))
        elif is_link:
            self._links.append((folder, path))
        else:
            folder.folders.append(Folder(path))

    def _may_follow(self, link: Path) -> bool:
        try:
            if self._root.resolve().is_relative_to(link.resolve()):
                self._left_out.add("link", link, "leads back up")
                return False
            visited = _folder_id(link) in self._visited
        except OSError as error:
            self._left_out.add("unreadable", link, error.strerror or "")
            return False
        if visited:
            self._left_out.add("link", link, "leads to a folder that is read elsewhere")
        return not visited


def _folder_id(path: Path) -> FolderId:
    status = path.stat()
    return status.st_dev, status.st_ino


def _is_system_folder(name: str) -> bool:
    return name.startswith((".", "@")) or name.casefold() in _SYSTEM_FOLDERS


def _is_system_file(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _SYSTEM_FILES


def _count_files(path: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(path))
