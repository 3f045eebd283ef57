"""The list of the chosen images: one line each, as CSV or JSON. Chooses nothing."""

import csv
import io
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from training.selection.choose_images import Chosen

_DIGITS = 6
"""Digits of a number; the float32 that it was computed in has no more."""


class SelectedImage(BaseModel):
    """One chosen image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(ge=1, description="1 for the image that is most worth labelling")
    path: str = Field(description="file, or row of a data set")
    value: float = Field(description="acquisition value, by the method")
    label: str = Field(description="class of the highest mean probability")
    confidence: float = Field(description="its mean probability")
    mutual_information: float = Field(description="nats")
    predictive_entropy: float = Field(description="nats")
    variation_ratio: float = Field(description="share of samples with another label")
    typicality: float | None = Field(description="conformal p-value; null: uncalibrated")


def list_chosen(
    chosen: Chosen, names: Sequence[str], class_names: Sequence[str]
) -> list[SelectedImage]:
    """Return what the list says of each chosen image.

    Args:
        chosen: the images.
        names: of all images of the pool.
        class_names: of the bundle.
    """
    scores = chosen.scores
    return [
        SelectedImage(
            rank=place + 1,
            path=names[scores.rows[place]],
            value=_round(chosen.values[place]),
            label=class_names[scores.labels[place]],
            confidence=_round(scores.confidences[place]),
            mutual_information=_round(scores.mutual_information[place]),
            predictive_entropy=_round(scores.predictive_entropy[place]),
            variation_ratio=_round(scores.variation_ratio[place]),
            typicality=None
            if np.isnan(scores.typicality[place])
            else _round(scores.typicality[place]),
        )
        for place in range(len(scores))
    ]


def encode_list(images: Sequence[SelectedImage], suffix: str) -> bytes:
    """Return the list as a file with this suffix: `.jsonl`, else CSV with a heading."""
    if suffix.lower() == ".jsonl":
        return "".join(image.model_dump_json() + "\n" for image in images).encode()
    text = io.StringIO()
    writer = csv.DictWriter(text, list(SelectedImage.model_fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(image.model_dump() for image in images)
    return text.getvalue().encode()


def _round(number: float) -> float:
    return float(f"{number:.{_DIGITS}g}")
