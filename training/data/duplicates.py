"""Finds images of a folder that are the same picture, saved again or changed a little.

Candidates have equal files or perceptual hashes of a small Hamming distance (pHash: the signs of
the lowest frequencies of a 32 x 32 thumbnail, Zauner 2010). A candidate counts only if the
thumbnails themselves agree, since many pictures of one plain kind share their lowest frequencies.
Mirrored, rotated and strongly cropped copies are not found. Knows no classes and no data splits.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from training.data.image_inspection import THUMBNAIL_SIZE, Inspected

HASH_SIDE = 8
"""The hash has 8 x 8 bits."""
MAX_DISTANCE = 6
"""Bits in which the hashes of two candidates may differ."""
MIN_CORRELATION = 0.99
"""Least correlation of the thumbnails of two images that are one picture."""
MIN_CONTRAST = 8.0
"""Least standard deviation, in levels of 0..255, of a thumbnail that is compared; nearly blank
images are one picture only if their files are equal."""
MAX_CANDIDATES = 2_000_000
"""Candidates above which the pictures are too much alike for perceptual hashes."""
_BLOCK = 4096  # thumbnails that are converted to float32 at a time
_MAX_DISTANCES = 2**24  # that are computed at a time

Hashes = NDArray[np.uint64]
Thumbnails = NDArray[np.uint8]
Pairs = NDArray[np.int64]


class TooAlikeError(Exception):
    """So many pictures have similar hashes that only equal files were compared."""


def perceptual_hashes(thumbnails: Thumbnails) -> Hashes:
    """Return the pHash of each thumbnail: uint8 [N, 32, 32] -> uint64 [N].

    A bit is set where a coefficient of the discrete cosine transform, of the 8 x 8 lowest
    frequencies, is above their median.
    """
    frequencies = dctn(thumbnails.astype(np.float32), type=2, axes=(1, 2), norm="ortho")
    lowest = frequencies[:, :HASH_SIDE, :HASH_SIDE].reshape(len(thumbnails), HASH_SIDE**2)
    bits = lowest > np.median(lowest, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def duplicate_groups(images: Sequence[Inspected], perceptual: bool = True) -> NDArray[np.int64]:
    """Return the number of the group of each image, int64 [N]; images of one picture share it.

    Args:
        images: the inspected files.
        perceptual: also compare thumbnails, not only files.

    Raises:
        TooAlikeError: the hashes of too many images are similar.
    """
    pairs = [_equal_files(images)]
    if perceptual:
        thumbnails = np.stack([image.thumbnail for image in images])
        pairs.append(similar_pairs(thumbnails))
    first, second = np.concatenate(pairs).T
    count = len(images)
    graph = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(count, count))
    groups: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return groups


def similar_pairs(thumbnails: Thumbnails) -> Pairs:
    """Return the pairs of images whose thumbnails show one picture: int64 [M, 2], first < second.

    Raises:
        TooAlikeError: there are more than MAX_CANDIDATES pairs with similar hashes.
    """
    blocks = np.array_split(thumbnails, 1 + len(thumbnails) // _BLOCK)
    rows = np.flatnonzero(
        np.concatenate([block.std(axis=(1, 2)) for block in blocks]) >= MIN_CONTRAST
    )
    hashes = np.concatenate([perceptual_hashes(block) for block in blocks])[rows]
    found = [np.empty((0, 2), np.int64)]
    candidates = 0
    for close in _close_hashes(hashes):
        candidates += len(close)
        if candidates > MAX_CANDIDATES:
            raise TooAlikeError
        found += [
            pairs[_correlations(thumbnails, pairs) >= MIN_CORRELATION]
            for pairs in np.array_split(rows[close], 1 + len(close) // _BLOCK)
        ]
    return np.concatenate(found)


def _close_hashes(hashes: Hashes) -> Iterator[Pairs]:
    """Yield the pairs of hashes of a distance of at most MAX_DISTANCE, block by block."""
    block = max(1, _MAX_DISTANCES // max(1, len(hashes)))
    for start in range(0, len(hashes), block):
        distances = np.bitwise_count(hashes[start : start + block, None] ^ hashes[None, start:])
        first, second = np.nonzero(distances <= MAX_DISTANCE)
        later = second > first
        yield start + np.stack([first[later], second[later]], axis=1)


def _correlations(thumbnails: Thumbnails, pairs: Pairs) -> NDArray[np.float64]:
    """Return the correlation of the pixels of each pair of thumbnails, [M]."""
    first, second = (
        thumbnails[column].reshape(len(pairs), THUMBNAIL_SIZE**2).astype(np.float32)
        for column in pairs.T
    )
    first -= first.mean(axis=1, keepdims=True)
    second -= second.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    correlations: NDArray[np.float64] = np.einsum("ij,ij->i", first, second) / norms
    return correlations


def _equal_files(images: Sequence[Inspected]) -> Pairs:
    first: dict[bytes, int] = {}
    pairs = [
        (first.setdefault(image.digest, row), row)
        for row, image in enumerate(images)
        if image.digest in first or first.setdefault(image.digest, row) != row
    ]
    return np.array(pairs, np.int64).reshape(-1, 2)
