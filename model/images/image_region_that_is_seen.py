"""The part of an image file that a network sees, after the resizing rule of its input.

What lies on the network's input, such as a map, can be laid over the file by it. Knows no pixel.
"""

from typing import NamedTuple

from model.images.preprocessing import InputSpec


class Region(NamedTuple):
    """A rectangle in shares of the width and height of the upright image; `top` is its first row.

    It begins below 0 and is larger than 1 where the rule `pad` adds borders.
    """

    left: float
    top: float
    width: float
    height: float


WHOLE_IMAGE = Region(0.0, 0.0, 1.0, 1.0)


def visible_region(width: int, height: int, spec: InputSpec) -> Region:
    """Return the region of an upright image of width x height pixels that the input shows.

    A JPEG that is reduced while it is decoded may be off by a pixel of the input.
    """
    if spec.resize == "stretch" or (width, height) == (spec.width, spec.height):
        return WHOLE_IMAGE
    if spec.resize == "crop":
        return _cropped(width, height, spec.width / spec.height)
    return _padded(width, height, spec)


def _cropped(width: int, height: int, ratio: float) -> Region:
    """As `PIL.ImageOps.fit` crops, to this ratio of width to height."""
    if width / height >= ratio:
        share = ratio * height / width
        return Region((1 - share) / 2, 0.0, share, 1.0)
    share = width / ratio / height
    return Region(0.0, (1 - share) / 2, 1.0, share)


def _padded(width: int, height: int, spec: InputSpec) -> Region:
    """As `PIL.ImageOps.pad` adds borders: the image is resized, then laid in the middle."""
    if width / height > spec.width / spec.height:
        rows = round(height / width * spec.width)
        first = round((spec.height - rows) / 2)
        return Region(0.0, -first / rows, 1.0, spec.height / rows)
    columns = round(width / height * spec.height)
    first = round((spec.width - columns) / 2)
    return Region(-first / columns, 0.0, spec.width / columns, 1.0)
