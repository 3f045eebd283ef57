"""Names the outputs of a network, and finds the classes of a folder among them."""

import difflib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.errors import DataError

_MAX_FILE_BYTES = 2**24


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read a file with the name of one class a line, in the order of the network's outputs.

    A name that occurs twice gets the number of its line, counted from 0.

    Raises:
        DataError: the file cannot be read, or has an empty line between names.
    """
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise DataError(f"{path} is too large for a list of class names; name another file.")
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); name another file.") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8; save it as such.") from None
    names = [" ".join(line.split()) for line in lines]
    if "" in names:
        raise DataError(
            f"{path} has no name in line {names.index('') + 1}; write the name of one class a line."
        )
    counts = Counter(names)
    return tuple(
        name if counts[name] == 1 else f"{name} ({index})" for index, name in enumerate(names)
    )


def match_classes(folder: Sequence[str], network: Sequence[str]) -> NDArray[np.int64]:
    """Return the output of the network for each class of a folder: int64 [classes of the folder].

    Names are equal if they differ in case, in `_` and `-` for a space, or in the ending of the
    plural; a class of the network may have several names with commas between them, as ImageNet's
    have.

    Raises:
        DataError: a class of the folder is none of the network's, or may be several.
    """
    by_name: dict[str, set[int]] = {}
    for index, names in enumerate(network):
        for name in {names, *names.split(",")}:
            by_name.setdefault(_normalised(name), set()).add(index)
    found: list[int] = []
    for name in folder:
        exact = [index for index, each in enumerate(network) if each == name]
        places = set(exact) or by_name.get(_normalised(name), set())
        if len(places) > 1:
            likely = ", ".join(repr(network[index]) for index in sorted(places))
            raise DataError(
                f"The folder's class {name!r} may be {likely}; rename the folder to one of them."
            )
        if not places:
            raise DataError(_unknown(name, network))
        found += places
    doubled = [network[index] for index, count in Counter(found).items() if count > 1]
    if doubled:
        raise DataError(f"Several folders mean the class {doubled[0]!r}; put them together.")
    return np.array(found, np.int64)


def _normalised(name: str) -> str:
    words = name.casefold().replace("_", " ").replace("-", " ").split()
    return " ".join([*words[:-1], *(_singular(word) for word in words[-1:])])


def _singular(word: str) -> str:
    for plural, ending in (("ies", "y"), ("sses", "ss"), ("ss", "ss"), ("s", "")):
        if word.endswith(plural) and len(word) > len(plural) + 1:
            return word.removesuffix(plural) + ending
    return word


def _unknown(name: str, network: Sequence[str]) -> str:
    similar = difflib.get_close_matches(name, network, n=3, cutoff=0.5)
    remedy = f"the nearest are {', '.join(map(repr, similar))}; " if similar else ""
    return (
        f"The folder's class {name!r} is none of the network's {len(network):,} classes; {remedy}"
        "rename the folder, or correct the file of class names."
    )
