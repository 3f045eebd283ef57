"""Occluded copies of an image: a grid of places, each covered by a patch (Zeiler & Fergus 2014).

Whoever classifies the copies learns what an answer hangs on: where a class loses probability, the
covered part spoke for it. The patch has the mean colour of the image itself: a colour that means
nothing to every network does not exist (black is the ground of a digit), and of six that were
compared none gave clearly better maps (docs/experiments.md, "The colour of the patch"). Knows no
network.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]

MAX_CELLS = 16
"""Most cells along the longer side of an image."""
_SMALL_SIDE = 64
"""Images up to this size, in pixels, are cheap to classify, so they have more cells."""
_DEFAULT_CELLS, _DEFAULT_CELLS_SMALL = 8, 14
_PATCH_SHARE = 2 / 9
"""Side of the patch by that of the image; maps of it were the best that were compared, in the same
entry."""


@dataclass(frozen=True, slots=True)
class OcclusionGrid:
    """A division of an image into equal cells, and the patch that is laid over each.

    Attributes:
        height, width: of the image, pixels.
        rows, columns: of cells. They tile the image, also where the pixels do not divide evenly.
        patch: side of the patch in pixels. It is square, centred on its cell and cut at the border.
    """

    height: int
    width: int
    rows: int
    columns: int
    patch: int

    @classmethod
    def of(
        cls, height: int, width: int, cells: int | None = None, patch: int | None = None
    ) -> "OcclusionGrid":
        """Divide the longer side into `cells`, and the shorter one into cells about as long.

        cells: 1 to the longer side; None: 14, or 8 for an image of more than 64 pixels.
        patch: pixels, 1 to the longer side; None: 2/9 of it.
        """
        longer = max(height, width)
        if cells is None:
            few = longer > _SMALL_SIDE
            cells = min(longer, _DEFAULT_CELLS if few else _DEFAULT_CELLS_SMALL)
        if patch is None:
            patch = max(1, round(longer * _PATCH_SHARE))
        rows, columns = (max(1, round(cells * side / longer)) for side in (height, width))
        return cls(height, width, rows, columns, patch)

    def __len__(self) -> int:
        return self.rows * self.columns

    def box(self, index: int) -> tuple[slice, slice]:
        """Return the rows and the columns of pixels under patch `index`; row by row, from 0."""
        row, column = divmod(index, self.columns)
        return (
            self._span(row, self.rows, self.height),
            self._span(column, self.columns, self.width),
        )

    def _span(self, index: int, cells: int, side: int) -> slice:
        # Whole numbers, so that the patches lie as symmetrically as pixels allow.
        start = ((2 * index + 1) * side - self.patch * cells) // (2 * cells)
        return slice(max(0, start), min(side, start + self.patch))


def mean_colour(image: Float32Array) -> Float32Array:
    """Return the mean of each channel of an image [C, H, W]: float32 [C]."""
    colour: Float32Array = image.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)
    return colour


def occluded(image: Float32Array, grid: OcclusionGrid, start: int, stop: int) -> Float32Array:
    """Return copies of an image, float32 [C, H, W], with the patches `start` to `stop` on them.

    Returns:
        float32 [stop - start, C, H, W].
    """
    copies = np.repeat(image[np.newaxis], stop - start, axis=0)
    colour = mean_colour(image)[:, np.newaxis, np.newaxis]
    for copy, index in zip(copies, range(start, stop), strict=True):
        rows, columns = grid.box(index)
        copy[:, rows, columns] = colour
    return copies
