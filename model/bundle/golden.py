"""The self-test of a bundle, `golden.npz`: a few real images, and the outputs they must give."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from model.images.preprocessing import InputSpec
from model.npz import ArchiveError, Expected, read_arrays

MAX_GOLDEN_IMAGES = 64
MAX_GOLDEN_SAMPLES = 64

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Golden:
    """N images, and what they must give with T samples of K classes."""

    images: Floats
    """[N, C, H, W]."""
    logits: Floats
    """[N, K]."""
    seed: int
    samples: int
    """T."""
    sampled_logits: Floats
    """[N, T, K]."""

    @classmethod
    def read(cls, data: bytes, spec: InputSpec, classes: int) -> Self:
        """Read the file's bytes.

        Raises:
            ArchiveError: it is damaged, or holds other arrays, or larger ones, than it may.
        """
        most, samples = MAX_GOLDEN_IMAGES, MAX_GOLDEN_SAMPLES
        image = spec.channels, spec.height, spec.width
        arrays = read_arrays(
            data,
            {
                "images": Expected(np.float32, (most, *image)),
                "logits": Expected(np.float32, (most, classes)),
                "seed": Expected(np.int64),
                "samples": Expected(np.int64),
                "sampled_logits": Expected(np.float32, (most, samples, classes)),
            },
        )
        number = int(arrays["samples"])
        if not 1 <= number <= samples:
            raise ArchiveError(f"it asks for {number} samples; 1 to {samples} are taken")
        return cls(
            arrays["images"].astype(np.float32),
            arrays["logits"].astype(np.float32),
            int(arrays["seed"]),
            number,
            arrays["sampled_logits"].astype(np.float32),
        )
