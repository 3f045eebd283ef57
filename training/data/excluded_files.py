"""Records what a folder of images has that is not trained on, and why.

Reads no file and decides nothing.
"""

import logging
import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import Literal, get_args

logger = logging.getLogger(__name__)

Reason = Literal[
    "hidden",
    "system_folder",
    "outside",
    "link",
    "special",
    "unreadable",
    "empty",
    "not_image",
    "unsupported",
    "too_large",
    "too_small",
    "damaged",
    "duplicate",
    "trained_on",
]

DESCRIPTIONS: dict[Reason, str] = {
    "hidden": "hidden or system files",
    "system_folder": "files in hidden, system, thumbnail or trash folders",
    "outside": "files outside the class folders",
    "link": "links that are broken or lead to what is read elsewhere",
    "special": "neither files nor folders",
    "unreadable": "files or folders that cannot be read",
    "empty": "empty files",
    "not_image": "files that are no image",
    "unsupported": "images of a format that cannot be read",
    "too_large": "images that are too large",
    "too_small": "images that are too small or too narrow",
    "damaged": "damaged images",
    "duplicate": "duplicates of validation or test images",
    "trained_on": "images that are training images already",
}
"""What is left out for each reason, as the log and the report write it."""

MAX_NAMES = 20
"""Most names that are kept for each reason; all are counted."""


class LeftOut:
    """Counts what is left out of a folder, by reason, and keeps the first names of each reason."""

    def __init__(self, root: Path) -> None:
        """Start an empty record; names are relative to the folder `root` where they are in it."""
        self._root = root
        self._counts: Counter[Reason] = Counter()
        self._names: defaultdict[Reason, list[str]] = defaultdict(list)

    def add(self, reason: Reason, path: Path, detail: str = "", files: int = 1) -> None:
        """Record one path.

        Args:
            reason: why it is left out.
            path: of the file or folder.
            detail: what else the user should know of it.
            files: number of files that it stands for.
        """
        self._counts[reason] += files
        if len(self._names[reason]) < MAX_NAMES:
            name = self.name(path)
            self._names[reason].append(f"{name} ({printable(detail)})" if detail else name)

    def name(self, path: Path) -> str:
        """Return a path below the root as text that can be printed and written as UTF-8."""
        inside = path.is_relative_to(self._root)
        return printable(str(path.relative_to(self._root) if inside else path))

    def counts(self) -> dict[str, int]:
        """Return the number of files by reason, without reasons that did not occur."""
        return {reason: self._counts[reason] for reason in get_args(Reason) if self._counts[reason]}

    def names(self) -> dict[str, list[str]]:
        """Return at most MAX_NAMES names by reason, each with its detail in brackets."""
        return {reason: list(self._names[reason]) for reason in self.counts()}  # type: ignore[index]

    def log(self) -> None:
        """Log one line for each reason: how many, and the first names."""
        for reason, count in self.counts().items():
            names = self._names[reason]  # type: ignore[index]
            more = ", ..." if len(names) == MAX_NAMES else ""
            description = DESCRIPTIONS[reason]  # type: ignore[index]
            logger.warning("Left out, %s (%d): %s%s", description, count, ", ".join(names), more)


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, as in `1 image` and `2 images`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def printable(text: str) -> str:
    """Escape with a backslash what cannot be printed, or is not UTF-8, as in some file names."""
    shown = os.fsencode(text).decode("utf-8", "backslashreplace")
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in shown
    )
