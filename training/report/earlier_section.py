"""Writes what a report says of added images, and of the difference from an earlier bundle.

Markdown. Measures nothing.
"""

from collections.abc import Mapping
from typing import Any

from training.data.excluded_files import counted
from training.evaluation.metrics_schema import BundleMetrics, EarlierMetrics, HeldOutMetrics
from training.report.data_section import escaped

_LEVEL = 0.05


def earlier_section(data: Mapping[str, Any], metrics: BundleMetrics) -> str:
    """Return the section; empty where nothing was added and nothing is compared.

    Args:
        data: of the manifest.
        metrics: of the manifest.
    """
    added = _added(data["added"]) if "added" in data else ""
    compared = _compared(metrics["earlier"], metrics["test"]) if "earlier" in metrics else ""
    if not added and not compared:
        return ""
    title = "## What the added images brought" if added else "## Since the earlier version"
    return "\n" + "\n\n".join(part for part in (title, added, compared) if part) + "\n"


def sentence_of_difference(earlier: EarlierMetrics) -> str:
    """Return how many test images are answered otherwise, and whether that can be chance."""
    verdict = (
        "two equally good networks would seldom differ so much"
        if earlier["p_value"] <= _LEVEL
        else "two equally good networks may well differ so much"
    )
    return (
        f"{counted(earlier['right_now'], 'test image')} right now and wrong before, "
        f"{earlier['right_before']:,} the other way round: {verdict} "
        f"(p = {earlier['p_value']:.2g}, McNemar's exact test)"
    )


def _added(added: Mapping[str, Any]) -> str:
    classes = [f"{escaped(name)} {count:,}" for name, count in added["images_per_class"].items()]
    total = sum(added["images_per_class"].values())
    left_out = sum(added["left_out"].values())
    return (
        f"{counted(total, 'labelled image')} added to the training images, and to no others: "
        f"{', '.join(classes)}. Left out: {counted(left_out, 'file')}, of which "
        f"{added['left_out'].get('duplicate', 0):,} for showing the picture of a validation or "
        f"test image, and {added['left_out'].get('trained_on', 0):,} for being training images "
        "already."
    )


def _compared(earlier: EarlierMetrics, test: HeldOutMetrics) -> str:
    name = f"{escaped(earlier['name'])}, version {earlier['version']}"
    warning = "" if earlier["doubt"] is None else f" **Warning**: {earlier['doubt']}"
    return f"""| on the same test images | accuracy | NLL | ECE |
|---|---|---|---|
| before: {name} | {earlier["accuracy"]:.2%} | {earlier["nll"]:.4f} | {earlier["ece"]:.4f} |
| now | {test["accuracy"]:.2%} | {test["nll"]:.4f} | {test["ece"]:.4f} |

{sentence_of_difference(earlier)}.{warning}"""
