"""Writes what a report says of the image files: left out, duplicates, possibly in a wrong class.

Markdown. The card and the report have counts only, since the service shows them to its clients; the
names of files are for a page of their own in the bundle's folder.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from training.data.excluded_files import DESCRIPTIONS, MAX_NAMES
from training.data.folder_splits import FolderSplits
from training.evaluation.label_quality import NamedCandidate
from training.evaluation.metrics_schema import BundleMetrics


def data_section(data: Mapping[str, Any], metrics: BundleMetrics) -> str:
    """Return the section on the files of a folder, empty for any other data set.

    Args:
        data: of the manifest.
        metrics: of the manifest.
    """
    if "left_out" not in data:
        return ""
    descriptions: Mapping[str, str] = DESCRIPTIONS  # type: ignore[assignment]
    left_out = [f"- {descriptions[key]}: {count:,}" for key, count in data["left_out"].items()]
    found = data["duplicates"]
    removed = data["left_out"].get("duplicate", 0)
    kept = found["across_splits"] - removed
    repeated = (
        f"Pictures that the folder has more than once: {found['pictures']:,}, of which "
        f"{found['in_two_classes']:,} are in two classes. Images whose picture is also in a split "
        f"that is measured later: {found['across_splits']:,}, of which {removed:,} were left out "
        f"and {kept:,} were kept."
    )
    title = "Left out of the folder:\n" if left_out else "Nothing in the folder was left out."
    lines = [title, *left_out, "", repeated]
    if not found["near"]:
        lines.append("Only equal files were compared, as too many pictures are much alike.")
    candidates = metrics.get("label_candidates")
    if candidates is not None:
        lines.append(f"Held-out images that are possibly in the wrong class: {candidates:,}.")
    return "\n## Files\n\n" + "\n".join(lines) + "\n"


def files_section(folder: FolderSplits | None, candidates: Sequence[NamedCandidate]) -> str:
    """Return the sections that name image files, empty where there are none to name.

    Args:
        folder: the files of the data set; None where it is no folder.
        candidates: files that are possibly in the wrong class.
    """
    if folder is None:
        return ""
    parts = [_left_out(folder), _two_classes(folder), _candidates(candidates)]
    return "".join(f"\n{part}\n" for part in parts if part)


def _left_out(folder: FolderSplits) -> str:
    names = folder.left_out.names()
    if not names:
        return ""
    descriptions: Mapping[str, str] = DESCRIPTIONS  # type: ignore[assignment]
    counts = folder.left_out.counts()
    rows = "\n".join(
        f"| {descriptions[reason]} | {counts[reason]:,} | {', '.join(map(escaped, listed))} |"
        for reason, listed in names.items()
    )
    return f"""## Files that were left out

| why | files | at most {MAX_NAMES} of them |
|---|---|---|
{rows}"""


def _two_classes(folder: FolderSplits) -> str:
    pictures = folder.duplicates.two_classes
    if not pictures:
        return ""
    return "## Pictures in two classes\n\n" + "\n".join(f"- {escaped(each)}" for each in pictures)


def _candidates(candidates: Sequence[NamedCandidate]) -> str:
    if not candidates:
        return ""
    rows = "\n".join(
        f"| {escaped(each.file)} | {escaped(each.class_name)} | {escaped(each.predicted_class)} "
        f"| {each.label_probability:.3f} | {each.predicted_probability:.3f} |"
        for each in candidates
    )
    return f"""## Images that are possibly in the wrong class

| file | is in | looks like | probability of its class | of the other |
|---|---|---|---|---|
{rows}

The most confident mistakes (Northcutt et al. 2021) among predictions for images that were not \
trained on: look at them, the network can be wrong, too."""


def escaped(name: str) -> str:
    """Escape a text so that Markdown shows it unchanged, also in the cell of a table."""
    return re.sub(r"([\\`*_\[\]<>|!&#~])", r"\\\1", " ".join(name.split()))
