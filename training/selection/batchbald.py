"""BatchBALD: chooses images whose labels tell most about the network together, not each alone.

The gain of an image is the mutual information of its label and the weights, given the labels of the
images that were chosen before (Kirsch, van Amersfoort & Gal 2019). T samples cannot hold more than
ln T nats, and after a few images they are used up: every gain is then 0 or noise. So the chosen
images are divided into blocks that hold at most half of that, and an image's gain is the least of
its gains given each block. Labels are independent given the weights, so more of them never add
information about one more label: the gain given one block is an upper bound of the gain given all
of them. With a single block it is the paper's.

For the same reason a gain never rises. An old one is an upper bound, and only the images with the
highest bounds are computed again (Minoux 1978). Knows no network and no files.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from model.container_resources import available_processors
from model.uncertainty.uncertainty_measures import entropy
from training.selection.joint_label_configurations import LabelConfigurations, Probabilities

MAX_CONFIGURATIONS = 1024
"""Configurations of the labels of a block: all where there are fewer, else so many are drawn."""
_BLOCK_SHARE = 0.5
"""Share of ln T that a block may hold, so that sqrt(T) samples are still told apart on average."""
_PIECE = 32
"""Images of one product of matrices. It does not depend on the number of threads, as another size
may round differently."""
_PIECES_AT_ONCE = 4
_TINY = float(np.finfo(np.float64).tiny)

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


def bald(probabilities: Probabilities) -> Floats:
    """Return the mutual information of each image's label and the samples (Houlsby et al. 2011).

    probabilities: float32 [S, K, T]. Returns: float64 [S], nats, 0..ln K, without a correction for
    the number of samples.
    """
    return _by_pieces(probabilities, lambda piece: entropy(_mean(piece)) - _expected(piece))


def choose_batch(
    probabilities: Probabilities,
    count: int,
    seed: int,
    threads: int | None = None,
    block_share: float = _BLOCK_SHARE,
) -> Iterator[tuple[int, float]]:
    """Choose images one by one, each with the highest gain given those before it.

    Equal inputs give equal bytes, with any number of threads.

    Args:
        probabilities: float32 [S, K, T], of S images in the same T samples; of images with equal
            gains the first is chosen.
        count: how many to choose, at most S.
        seed: of the configurations that are drawn.
        threads: that compute gains; one for each processor that this process may use if left out.
        block_share: share of ln T nats that one block may hold; inf for a single block.

    Yields:
        the row of an image, and its gain: the nats that its label tells beyond those before it.
    """
    # BLAS divides a product by its number of threads, which may round differently.
    with (
        threadpool_limits(1, "blas"),
        ThreadPoolExecutor(threads or available_processors()) as pool,
    ):
        greedy = _LazyGreedy(probabilities, np.random.default_rng(seed), block_share, pool)
        for _ in range(count):
            yield greedy.choose()


class _LazyGreedy:
    """The state of a greedy choice: an upper bound of the gain of each image."""

    def __init__(
        self,
        probabilities: Probabilities,
        generator: np.random.Generator,
        block_share: float,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._probabilities = probabilities
        self._generator = generator
        self._pool = pool
        self._samples = probabilities.shape[2]
        self._max_information = block_share * max(float(np.log(self._samples)), _TINY)
        self._expected_entropies = _by_pieces(probabilities, _expected)
        self._alone = bald(probabilities)
        self._gains = self._alone.copy()  # given the open block alone, as last computed
        self._bounds = self._alone.copy()
        self._closed: list[LabelConfigurations] = []
        self._open = self._new_block()
        self._information = 0.0
        self._chosen = 0
        # Of each image: choices made, and blocks closed, when its bound was last computed.
        self._computed_at = np.zeros(len(probabilities), np.int64)
        self._computed_blocks = np.zeros(len(probabilities), np.int64)

    def choose(self) -> tuple[int, float]:
        """Choose an image; return its row and its gain."""
        while True:
            best = np.argsort(-self._bounds, kind="stable")[: _PIECE * _PIECES_AT_ONCE]
            row = int(best[0])
            if self._computed_at[row] == self._chosen:
                break
            self._compute(best[self._computed_at[best] < self._chosen])
        gain = float(self._bounds[row])
        self._add(row)
        return row, gain

    def _add(self, row: int) -> None:
        """Add an image to the open block, or to a new one where that would hold too much."""
        self._information += float(self._gains[row])  # by the chain rule
        if self._information > self._max_information and len(self._open):
            self._closed.append(self._open)
            self._open = self._new_block()
            self._information = float(self._alone[row])
        self._open.add(self._probabilities[row])
        self._bounds[row] = -np.inf
        self._chosen += 1

    def _compute(self, rows: Rows) -> None:
        """Lower the bounds of images to their gains given each block."""
        for number, block in enumerate(self._closed):
            pending = rows[self._computed_blocks[rows] <= number]
            self._lower(pending, block)
        self._computed_blocks[rows] = len(self._closed)
        self._lower(rows, self._open)
        self._computed_at[rows] = self._chosen

    def _lower(self, rows: Rows, block: LabelConfigurations) -> None:
        pieces = [rows[start : start + _PIECE] for start in range(0, len(rows), _PIECE)]
        entropies = self._pool.map(
            lambda piece: block.conditional_entropies(self._probabilities[piece]), pieces
        )
        for piece, conditional in zip(pieces, entropies, strict=True):
            gains = np.maximum(conditional - self._expected_entropies[piece], 0)
            self._gains[piece] = gains
            self._bounds[piece] = np.minimum(self._bounds[piece], gains)

    def _new_block(self) -> LabelConfigurations:
        return LabelConfigurations(self._samples, MAX_CONFIGURATIONS, self._generator)


def _by_pieces(probabilities: Probabilities, function: Callable[[Floats], Floats]) -> Floats:
    """Apply a function to a few images at a time, in float64, which would not fit for all."""
    pieces: Sequence[Floats] = [
        function(probabilities[start : start + _PIECE].astype(np.float64))
        for start in range(0, len(probabilities), _PIECE)
    ]
    return np.concatenate(pieces)


def _mean(probabilities: Floats) -> Floats:
    mean: Floats = probabilities.mean(axis=2)
    return mean


def _expected(probabilities: Floats) -> Floats:
    """Return the mean entropy over the samples: [S, K, T] -> [S]."""
    expected: Floats = entropy(probabilities.transpose(0, 2, 1)).mean(axis=1)
    return expected
