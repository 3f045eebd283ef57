"""Published results of OOD detection, as their authors give them; nothing is measured here."""

from typing import NamedTuple


class Published(NamedTuple):
    """One published result."""

    data: str
    """The data set that the networks were trained on."""
    ood: str
    """The kind of OOD images, as `benchmarks.ood.ood_images` names it."""
    method: str
    accuracy: float
    auroc: float
    source: str


PUBLISHED = (
    Published(
        data="fashion-mnist",
        ood="mnist",
        method="DUQ, one network trained for it",
        accuracy=0.924,
        auroc=0.955,
        source="van Amersfoort et al. 2020, arXiv:2003.02037",
    ),
)
