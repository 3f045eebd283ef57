import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.images.occlusion import MAX_CELLS, OcclusionGrid, mean_colour, occluded

SIDES = st.integers(1, 300)


@pytest.mark.parametrize(
    ("size", "cells", "patch"),
    [
        ((8, 8), (8, 8), 2),
        ((28, 28), (14, 14), 6),
        ((32, 32), (14, 14), 7),
        ((224, 224), (8, 8), 50),
        ((120, 160), (6, 8), 36),
        ((1, 1), (1, 1), 1),
    ],
)
def test_default_grid_suits_the_size_of_the_image(
    size: tuple[int, int], cells: tuple[int, int], patch: int
) -> None:
    grid = OcclusionGrid.of(*size)
    assert (grid.rows, grid.columns, grid.patch) == (*cells, patch)


@given(SIDES, SIDES, st.integers(1, MAX_CELLS))
def test_patches_as_long_as_a_cell_or_longer_cover_every_pixel(
    height: int, width: int, cells: int
) -> None:
    cells = min(cells, height, width)
    longest = -(-max(height, width) // cells)
    grid = OcclusionGrid.of(height, width, cells, 2 * longest)
    covered = np.zeros((height, width), np.bool_)
    for index in range(len(grid)):
        box = grid.box(index)
        assert covered[box].size > 0
        covered[box] = True
    assert covered.all()


@given(SIDES, st.integers(1, MAX_CELLS), st.integers(1, 80))
def test_patches_lie_in_the_middle_of_their_cells(side: int, cells: int, patch: int) -> None:
    cells, patch = min(cells, side), min(patch, side)
    grid = OcclusionGrid.of(side, side, cells, patch)
    for index in range(len(grid)):
        row, _ = divmod(index, grid.columns)
        rows, columns = grid.box(index)
        middle = (row + 0.5) * side / cells
        assert max(0, middle - patch / 2 - 1) <= rows.start <= max(0, middle - patch / 2)
        assert rows.stop - rows.start <= patch
        if index % grid.columns == row:
            assert rows == columns


def test_occluded_copies_differ_under_their_patch_alone_and_have_the_mean_colour_there() -> None:
    image = np.random.default_rng(0).random((3, 9, 12), dtype=np.float32)
    grid = OcclusionGrid.of(9, 12, 4, 5)
    assert (grid.rows, grid.columns) == (3, 4)
    copies = occluded(image, grid, 2, 11)
    assert copies.shape == (9, 3, 9, 12)
    assert copies.dtype == np.float32
    for copy, index in zip(copies, range(2, 11), strict=True):
        box = (slice(None), *grid.box(index))
        np.testing.assert_allclose(copy[box].mean(axis=(1, 2)), mean_colour(image), rtol=1e-6)
        copy[box] = image[box]
        np.testing.assert_array_equal(copy, image)
