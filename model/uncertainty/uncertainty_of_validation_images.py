"""How uncertain the validation images were: what later images are compared with.

It is measured at the export and kept in the manifest, as quantiles, so that it is small and fits
any histogram. The typicality of validation images needs no measurement: it is spread evenly.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.uncertainty.calibration import Calibrator
from model.uncertainty.uncertainty_measures import Uncertainty
from model.uncertainty.whole_ranks import rank_up_to

METRIC = "distributions"
"""The key in the manifest's `metrics`. Bundles that were exported earlier lack it."""
COVERAGE = 0.9
"""Of the prediction sets that are counted here, of kind `thr`, and that reports measure."""
_LEVELS = np.linspace(0, 1, 101)
_SIGNIFICANT_DIGITS = 5

Floats = NDArray[np.float64]
Quantiles = Annotated[
    tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...],
    Field(min_length=len(_LEVELS), max_length=len(_LEVELS)),
]


class ValidationDistributions(BaseModel):
    """The distributions over the validation images, with the samples of the calibration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: int = Field(ge=1)
    predictive_entropy: Quantiles = Field(description="nats, at 0, 1, …, 100 per cent")
    mutual_information: Quantiles = Field(description="the same")
    set_sizes: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        description="number of images whose prediction set has 1, 2, … classes; null: uncalibrated"
    )
    coverage: float = Field(gt=0, lt=1, description="of the prediction sets")

    @classmethod
    def measure(cls, uncertainty: Uncertainty, calibrator: Calibrator | None) -> Self:
        """Measure the distributions over N validation images.

        Args:
            uncertainty: of the images.
            calibrator: of the same bundle; None: it is uncalibrated.
        """
        sizes = None
        if calibrator is not None:
            sets = calibrator.prediction_sets(
                uncertainty.mean_probabilities, COVERAGE, "thr", uncertainty.set_draws
            )
            sizes = tuple(np.bincount(sets.sum(axis=1))[1:].tolist())
        return cls(
            images=len(uncertainty.labels),
            predictive_entropy=_quantiles(uncertainty.predictive_entropy),
            mutual_information=_quantiles(uncertainty.mutual_information),
            set_sizes=sizes,
            coverage=COVERAGE,
        )

    @classmethod
    def read(cls, metrics: Mapping[str, Any]) -> Self | None:
        """Read them from the `metrics` of a manifest; None if they are not there, or damaged."""
        try:
            return cls.model_validate(metrics.get(METRIC))
        except ValidationError:
            return None

    def set_size_shares(self, edges: Sequence[float]) -> Floats | None:
        """Return the share of set sizes in each bucket, see `bucket_shares`."""
        if not self.set_sizes or not sum(self.set_sizes):
            return None
        counts = np.array(self.set_sizes, np.float64)
        sizes = np.arange(1, len(counts) + 1)
        below = [counts[sizes <= edge].sum() for edge in edges]
        shares: Floats = np.diff([0, *below, counts.sum()]) / counts.sum()
        return shares


def bucket_shares(quantiles: Sequence[float], edges: Sequence[float]) -> Floats:
    """Return the share of a distribution that lies in each bucket of a histogram.

    Args:
        quantiles: of the distribution, as in `ValidationDistributions`.
        edges: the upper ends of E buckets, rising. One more bucket follows the last.

    Returns:
        [E + 1], with the sum 1.
    """
    below = np.interp(edges, quantiles, _LEVELS, left=0, right=1)
    return np.diff([0, *below, 1])


def typicality_shares(images: int, edges: Sequence[float]) -> Floats:
    """Return the share of typicalities in each bucket, for images like n validation images.

    Each of the values 1/(n + 1), 2/(n + 1), …, 1 is equally probable (Vovk et al. 2005).

    Args:
        images: n.
        edges: as for `bucket_shares`.
    """
    values = images + 1
    below = rank_up_to(edges, values) / values
    return np.diff([0, *below, 1])


def _quantiles(values: Floats) -> tuple[float, ...]:
    found = np.quantile(np.maximum(values, 0), _LEVELS)
    return tuple(float(f"{each:.{_SIGNIFICANT_DIGITS}g}") for each in found)
