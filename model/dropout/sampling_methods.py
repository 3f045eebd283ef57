"""The sampling methods of MC dropout: a fixed number of samples, adaptive sampling, or analytic."""

from dataclasses import dataclass
from typing import NamedTuple

from model.dropout.masks import Design

FIRST_BLOCK = 16
"""Samples of the first block of adaptive sampling; each further block doubles their number."""


class FixedSamples(NamedTuple):  # every request compares and hashes it: five times as fast
    """MC dropout with a fixed number of samples."""

    seed: int
    samples: int
    design: Design = "orthogonal"
    summary_only: bool = False
    """Whether a `uncertainty_measures.Summary` is enough, which has no details."""
    keep_samples: bool = False
    """Whether the probabilities of each sample are kept beside their statistics."""


@dataclass(frozen=True, slots=True)
class AdaptiveSamples:
    """MC dropout with samples drawn until the label of each image is decided."""

    seed: int
    max_samples: int
    keep_samples: bool = False
    """As in `FixedSamples`."""


@dataclass(frozen=True, slots=True)
class Analytic:
    """No samples: the normal approximation of the logits under dropout, integrated."""


Sampling = FixedSamples | AdaptiveSamples | Analytic
