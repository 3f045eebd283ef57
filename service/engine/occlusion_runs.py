"""Runs the occluded copies of an image through a batcher, in parts. Knows no HTTP and no file.

Between the parts, and between the slices into which the batcher cuts a long part, other requests
run.
"""

import asyncio
import time

import numpy as np
from numpy.typing import NDArray

from model.images.occlusion import OcclusionGrid, occluded
from service.engine.batcher import Batcher
from service.errors import DeadlineError, TooCostlyError

MAX_PART_BYTES = 2**23
"""The copies are made and predicted in parts of this size, so that few are in memory."""
_MAX_INLINE_BYTES = 2**20
"""More bytes of copies than this are written in a thread, so as not to block the event loop."""

Floats = NDArray[np.float32]


def require_affordable(batcher: Batcher, grid: OcclusionGrid, timeout_seconds: float) -> None:
    """Refuse a map that takes too long even where nothing else runs, before its body is read."""
    row_seconds = batcher.min_row_seconds
    seconds = row_seconds * (1 + len(grid))
    if seconds > timeout_seconds:
        cells = max(1, int((timeout_seconds / 2 / row_seconds) ** 0.5))
        raise TooCostlyError(
            f"This map of {grid.rows} x {grid.columns} cells would take about {seconds:.2g} "
            f"seconds, and {timeout_seconds:g} are allowed; ask for grid={cells} or less."
        )


async def predict_occluded(
    batcher: Batcher, image: Floats, grid: OcclusionGrid, timeout_seconds: float
) -> NDArray[np.float64]:
    """Predict an image, float32 [C, H, W], then each of its occluded copies.

    Returns:
        probabilities, float64 [1 + rows x columns, K].

    Raises:
        DeadlineError: the parts together took too long; and what `Batcher.predict` raises.
    """
    deadline = time.perf_counter() + timeout_seconds
    part = max(1, MAX_PART_BYTES // image.nbytes)
    results = []
    for start in range(0, len(grid), part):
        stop = min(start + part, len(grid))
        remaining = deadline - time.perf_counter()
        if remaining <= 0:
            raise DeadlineError(
                f"No answer within {timeout_seconds:g} seconds; try again later, or with fewer "
                "cells (grid)."
            )
        copies = await _occluded(image, grid, start, stop)
        if not start:
            copies = np.concatenate([image[np.newaxis], copies])
        prediction = await batcher.predict(copies, remaining)
        results.append(prediction.probabilities)
    return np.concatenate(results)


async def _occluded(image: Floats, grid: OcclusionGrid, start: int, stop: int) -> Floats:
    if image.nbytes * (stop - start) <= _MAX_INLINE_BYTES:
        return occluded(image, grid, start, stop)
    return await asyncio.to_thread(occluded, image, grid, start, stop)
