"""Chooses validation images that show what a bundle is sure of and what not, and writes them.

They become files of the bundle, which the service shows to people who want to try the model.
"""

import io
import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.bundle.example_images import MAX_EXAMPLE_BYTES, MAX_EXAMPLE_PIXELS
from training.data.dataset import Dataset
from training.evaluation.metrics import Evaluation

logger = logging.getLogger(__name__)

_LOSSLESS_BYTES = 4 * 2**10
"""An image that takes no more is stored as it is: those of a few thousand pixels."""
_LOSSLESS_EFFORT = 80
"""Of 100, which takes 13 times as long on a photograph for a file that is 2 % smaller."""
_QUALITIES = (80, 60, 40, 20)
_WANTED_BYTES = 16 * 2**10
"""A larger file is compressed more strongly."""


def write_examples(
    folder: Path, data: Dataset, validation: Evaluation, count: int
) -> list[dict[str, str]]:
    """Write up to `count` validation images into a bundle, and return its manifest's `examples`.

    Args:
        folder: of the bundle.
        data: its validation images are what `validation` was measured on.
        validation: the answers of the bundle.
        count: how many images; 0 for none.
    """
    rows = choose_examples(validation, count)
    if len(rows) == 0:
        return []
    logger.info(
        "The bundle carries %d validation images, which its service shows to every client; "
        "--examples 0 leaves them out.",
        len(rows),
    )
    (folder / "examples").mkdir()
    entries = []
    for number, row in enumerate(rows.tolist()):
        file = f"examples/{number}.webp"
        (folder / file).write_bytes(encode_example(data.validation.images[row]))
        label = data.class_names[validation.labels[row]]
        entries.append({"file": file, "label": label})
    return entries


def choose_examples(validation: Evaluation, count: int) -> NDArray[np.int64]:
    """Choose rows, int64 [at most count], in the order of their predictive entropy.

    The surest image comes first and the least sure one last. Between them are the surest of the
    wrong ones, if there is any, and images spread over the ranks, of classes that are not shown yet
    where there are such. Equal answers give equal rows.
    """
    labels, uncertainty = validation.labels, validation.answers.uncertainty
    order = np.argsort(uncertainty.predictive_entropy, kind="stable")
    labels = labels[order]
    is_wrong = uncertainty.mean_probabilities.argmax(axis=1)[order] != labels
    ends = (0, len(order) - 1, *np.flatnonzero(is_wrong)[:1].tolist())
    chosen = list(dict.fromkeys(ends))[:count]
    rest = min(count, len(order)) - len(chosen)
    # More of them where the model is unsure, since most images are sure ones.
    for share in 1 - (1 - np.linspace(0, 1, rest + 2)[1:-1]) ** 2:
        free = np.setdiff1d(np.arange(len(order)), chosen)
        unseen = free[~np.isin(labels[free], labels[chosen])]
        candidates = unseen if len(unseen) else free
        distance = np.abs(candidates - share * (len(order) - 1))
        chosen.append(int(candidates[distance.argmin()]))
    return order[np.sort(chosen).astype(np.int64)]


def encode_example(image: NDArray[np.uint8]) -> bytes:
    """Encode an image, uint8 [C, H, W], as a WebP file of at most MAX_EXAMPLE_PIXELS a side.

    A small one keeps every pixel, so that it gets the very answer of the validation image.
    """
    pixels = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
    picture = Image.fromarray(pixels).convert("RGB")
    picture.thumbnail((MAX_EXAMPLE_PIXELS, MAX_EXAMPLE_PIXELS))
    lossless = _encode(picture, lossless=True, quality=_LOSSLESS_EFFORT)
    if len(lossless) <= _LOSSLESS_BYTES:
        return lossless
    for quality in _QUALITIES:
        encoded = _encode(picture, lossless=False, quality=quality)
        if len(encoded) <= _WANTED_BYTES:
            break
    assert len(encoded) <= MAX_EXAMPLE_BYTES
    return encoded


def _encode(picture: Image.Image, *, lossless: bool, quality: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, "WEBP", lossless=lossless, quality=quality, method=6)
    return file.getvalue()
