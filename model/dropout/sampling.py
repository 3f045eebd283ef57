"""What to ask of a head: how many dropout samples, of which design, or none at all."""

from dataclasses import dataclass
from typing import NamedTuple

from model.dropout.masks import Design

FIRST_BLOCK = 16
"""Samples of the first block where their number is automatic; each further one doubles them."""


class FixedSamples(NamedTuple):  # compared and hashed for every request: five times as fast
    """A number of samples that is named beforehand."""

    seed: int
    samples: int
    design: Design = "orthogonal"
    brief: bool = False
    """As `model.uncertainty.summary.Summary` has it."""


@dataclass(frozen=True, slots=True)
class AdaptiveSamples:
    """As many samples as settle each image's label, at most `most`."""

    seed: int
    most: int


@dataclass(frozen=True, slots=True)
class Analytic:
    """No samples: the normal distribution that dropout gives the logits, integrated."""


Sampling = FixedSamples | AdaptiveSamples | Analytic
