"""The self-test data of a bundle, `golden.npz`: a few real images and their expected outputs."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from model.images.preprocessing import InputSpec
from model.npz_arrays import ArchiveError, ArraySpec, read_arrays

MAX_GOLDEN_IMAGES = 64
MAX_GOLDEN_SAMPLES = 64

Float32Array = NDArray[np.float32]


@dataclass(frozen=True)
class Golden:
    """N images and their expected outputs over K classes, without dropout and with T samples."""

    images: Float32Array
    """float32 [N, C, H, W] in 0..1."""
    logits: Float32Array
    """float32 [N, K], without dropout."""
    seed: int
    """Seed of the samples."""
    samples: int
    """T, the number of samples."""
    sampled_logits: Float32Array
    """float32 [N, T, K]."""

    @classmethod
    def read(cls, data: bytes, spec: InputSpec, classes: int) -> Self:
        """Read the bytes of the file, for images of `spec` and K = `classes`.

        Raises:
            ArchiveError: the file is damaged, has other or larger arrays than expected, or outputs
                that are not finite, which any others would equal within a tolerance.
        """
        max_images, max_samples = MAX_GOLDEN_IMAGES, MAX_GOLDEN_SAMPLES
        image = spec.channels, spec.height, spec.width
        arrays = read_arrays(
            data,
            {
                "images": ArraySpec(np.float32, (max_images, *image)),
                "logits": ArraySpec(np.float32, (max_images, classes)),
                "seed": ArraySpec(np.int64),
                "samples": ArraySpec(np.int64),
                "sampled_logits": ArraySpec(np.float32, (max_images, max_samples, classes)),
            },
        )
        samples = int(arrays["samples"])
        if not 1 <= samples <= max_samples:
            raise ArchiveError(f"it has {samples} samples, but 1 to {max_samples} are allowed")
        golden = cls(
            arrays["images"].astype(np.float32),
            arrays["logits"].astype(np.float32),
            int(arrays["seed"]),
            samples,
            arrays["sampled_logits"].astype(np.float32),
        )
        if not all(np.isfinite(each).all() for each in (golden.logits, golden.sampled_logits)):
            raise ArchiveError("not all of its logits are finite numbers")
        return golden
