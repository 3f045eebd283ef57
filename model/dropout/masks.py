"""Dropout masks as a pure function of (seed, samples, layer). Knows no network and no image.

The design is a randomised digital net in base 2. A block of 2^m samples numbers them
t = 0 .. 2^m - 1, read as elements of the finite field GF(2^m). Each unit j owns a different
nonzero element a_j, drawn by the seed, and a random 32-bit shift s_j. Sample t puts unit j at the
point

    u_tj = (a_j * t, as the leading m of 32 bits) XOR s_j,      kept where u_tj >= p * 2^32

- The shift alone makes each single mask an exact draw of independent Bernoulli(1 - p) bits (p
  rounded to 2^-32), so every estimate made from masks is unbiased.
- Over a block each unit's points are evenly spread: it is kept in (1 - p) 2^m samples, to within
  one.
- At p = 0.5 only the leading bit counts, and the block is a Hadamard (Sylvester) array with random
  signs and order: every pair of units is kept together equally often while the layer has fewer
  units than the block has samples (strength 2), and every triple too while it has at most half as
  many (strength 3: elements with the leading bit set are used first, which makes samples t and
  t XOR 1 complements of each other). In a wider layer elements repeat, with fresh shifts.
- Any number of samples is a sum of powers of two: one block each, randomised independently.

That is the design `orthogonal`. Its samples depend on one another; two other designs serve where
that is not allowed. `paired` is a sequence of blocks of two, each unit's point and the opposite
point (at p = 0.5 a mask and its complement, antithetic sampling): the pairs are independent, and a
smaller number of samples is a prefix of a larger one. `independent` is plain MC dropout, kept for
comparison.

Sources: Hedayat, Sloane & Stufken 1999 (orthogonal arrays as linear codes); Niederreiter 1992
(digital nets); Owen 1995 (randomised nets). Bits come from SHAKE-256, so they depend on no
library's generator.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from threading import Lock
from typing import Literal

import numpy as np
from cachetools import LRUCache, cached
from numpy.typing import NDArray

from model.bundle.architecture_description import DropoutLayer

MAX_SAMPLES = 1 << 16
"""The size of the largest block for which `_PRIMITIVE` has a field."""
MAX_SEED = 2**63 - 1
_CACHE_BYTES = 64 * 2**20
_CHUNK_WORDS = 2**18
"""Random words drawn at once. They take about 6 ms, in which no other Python thread runs."""

# Primitive polynomials over GF(2), by degree; bit i is the coefficient of x^i.
_PRIMITIVE = {
    1: 0x3,
    2: 0x7,
    3: 0xB,
    4: 0x13,
    5: 0x25,
    6: 0x43,
    7: 0x83,
    8: 0x11D,
    9: 0x211,
    10: 0x409,
    11: 0x805,
    12: 0x1053,
    13: 0x201B,
    14: 0x4443,
    15: 0x8003,
    16: 0x1100B,
}

_OPPOSITE = np.uint32(1 << 31)
"""A point XOR this is the point half of the unit interval away."""

Design = Literal["orthogonal", "paired", "independent"]
Masks = tuple[NDArray[np.float32], ...]


def _cache_key(
    seed: int, samples: int, layers: Sequence[DropoutLayer], design: Design = "orthogonal"
) -> object:
    return seed, samples, tuple((layer.p, layer.width) for layer in layers), design


def _total_bytes(masks: Masks) -> int:
    return sum(mask.nbytes for mask in masks)


@cached(
    cache=LRUCache(_CACHE_BYTES, getsizeof=_total_bytes),
    key=_cache_key,
    lock=Lock(),
)
def draw(
    seed: int, samples: int, layers: Sequence[DropoutLayer], design: Design = "orthogonal"
) -> Masks:
    """Draw one mask array per dropout layer; cached, so the arrays are read-only.

    Args:
        seed: 0 .. 2^63 - 1.
        samples: T, 1 .. 65,536.
        layers: p (probability of zeroing) and width F of each dropout layer.
        design: how the samples depend on one another. In all designs each single mask is a
            Bernoulli draw.

    Returns:
        For each layer float32 [T, F] of values 0 or 1/(1-p).

    Raises:
        ValueError: seed or samples out of range.
    """
    if not 0 <= seed <= MAX_SEED or not 1 <= samples <= MAX_SAMPLES:
        raise ValueError(f"seed must be 0..2^63-1 and samples 1..{MAX_SAMPLES}")
    points = {"orthogonal": _orthogonal, "paired": _paired, "independent": _independent}[design]
    return tuple(
        _mask(points(seed, samples, index, layer.width), layer.p)
        for index, layer in enumerate(layers)
    )


def _mask(points: NDArray[np.uint32], p: float) -> NDArray[np.float32]:
    kept = points >= np.uint64(round(p * 2**32))  # p rounded up to 1 would be 2^32
    mask: NDArray[np.float32] = kept * np.float32(1 / (1 - p))
    mask.setflags(write=False)
    return mask


def _orthogonal(seed: int, samples: int, layer: int, width: int) -> NDArray[np.uint32]:
    """Return the points of all blocks: uint32 [T, width], as for the other designs."""
    return np.concatenate([_points(seed, layer, order, width) for order in _blocks(samples)])


def _paired(seed: int, samples: int, layer: int, width: int) -> NDArray[np.uint32]:
    pairs = -(-samples // 2)
    first = _random_points(f"{seed}/{layer}/paired", pairs, width)
    return np.stack([first, first ^ _OPPOSITE], axis=1).reshape(2 * pairs, width)[:samples]


def _independent(seed: int, samples: int, layer: int, width: int) -> NDArray[np.uint32]:
    return _random_points(f"{seed}/{layer}/independent", samples, width)


def _random_points(purpose: str, count: int, width: int) -> NDArray[np.uint32]:
    words = _words(purpose, count * width) >> np.uint64(32)
    return words.astype(np.uint32).reshape(count, width)


def _blocks(samples: int) -> Iterator[int]:
    """Yield the exponents of the powers of two whose sum is `samples`, largest first."""
    for order in reversed(range(samples.bit_length())):
        if samples >> order & 1:
            yield order


def _points(seed: int, layer: int, order: int, width: int) -> NDArray[np.uint32]:
    """Return one block: the points of `width` units in 2^order samples, uint32 [2^order, width]."""
    shifts = _random_points(f"{seed}/{layer}/{order}/shift", 1, width)
    if order == 0:
        return shifts
    products = _multiply(np.arange(2**order), _elements(seed, layer, order, width), order)
    return (products.astype(np.uint32) << np.uint32(32 - order)) ^ shifts


def _elements(seed: int, layer: int, order: int, width: int) -> NDArray[np.int64]:
    """Draw a nonzero field element per unit, distinct until all have been used: int64 [width]."""
    candidates = np.arange(1, 2**order)
    in_low_half = candidates < 2 ** (order - 1)
    sets = -(-width // len(candidates))
    keys = _words(f"{seed}/{layer}/{order}/order", sets * len(candidates))
    orders = [np.lexsort((key, in_low_half)) for key in keys.reshape(sets, -1)]
    return np.concatenate([candidates[order] for order in orders])[:width]


def _multiply(
    samples: NDArray[np.int64], elements: NDArray[np.int64], order: int
) -> NDArray[np.int64]:
    """Return the outer product in GF(2^order): int64 [len(samples), len(elements)]."""
    powers, logarithms = _field(order)
    exponents = logarithms[samples][:, np.newaxis] + logarithms[elements][np.newaxis]
    products: NDArray[np.int64] = powers[exponents % len(powers)]
    products[samples == 0] = 0
    return products


@lru_cache(maxsize=len(_PRIMITIVE))
def _field(order: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the powers of the generator, int64 [2^order - 1], and the logarithms to its base."""
    powers = [1]
    while len(powers) < 2**order - 1:
        power = powers[-1] << 1
        powers.append(power ^ _PRIMITIVE[order] if power >> order else power)
    logarithms = np.zeros(2**order, dtype=np.int64)
    logarithms[powers] = np.arange(len(powers))
    return np.array(powers, dtype=np.int64), logarithms


def _words(purpose: str, count: int) -> NDArray[np.uint64]:
    """Draw random words that depend only on `purpose`: uint64 [count].

    They are drawn in chunks, since hashing holds the GIL and other threads wait.
    """
    starts = range(0, max(count, 1), _CHUNK_WORDS)
    chunks = [_chunk(purpose, start, min(_CHUNK_WORDS, count - start)) for start in starts]
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)


def _chunk(purpose: str, start: int, count: int) -> NDArray[np.uint64]:
    name = f"{purpose}/from {start}" if start else purpose
    key = f"dropserve masks 1/{name}".encode()
    return np.frombuffer(hashlib.shake_256(key).digest(8 * count), dtype="<u8").astype(np.uint64)
