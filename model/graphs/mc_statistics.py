"""Names, inputs and runs of the statistics of T sampled logits (MC dropout). Knows no nodes.

`training.export.mc_statistics_graph` adds the nodes behind those of `head.onnx`, and writes them
once more as `mc_statistics.onnx`, for logits that do not come out of the head.
`model.uncertainty.uncertainty_measures` converts the outputs into an `Uncertainty`.
"""

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.graphs.sessions import CancellationToken, Session, create_session

Feeds = dict[str, NDArray[Any]]

QUADRATURE_NODES, QUADRATURE_WEIGHTS = np.polynomial.hermite_e.hermegauss(24)
QUADRATURE_WEIGHTS = QUADRATURE_WEIGHTS / QUADRATURE_WEIGHTS.sum()
_WIDENING = 3.0
"""The nodes are widened by a factor of 1 + 3/T. Few samples estimate the standard deviation poorly,
and the tail depends on it exponentially. With this factor, stated 95 % intervals covered as much
from 8 samples on (python -m benchmarks.sampling).
"""

PREFIX = "mc_statistics/"
"""Begins every name, so that the nodes share none with those of a head."""


def _names(*names: str) -> tuple[str, ...]:
    return tuple(PREFIX + name for name in names)


LOGITS, SCALE, WIDENED_NODES = _names("logits", "scale", "widened_nodes")
BESSEL_FACTOR, VARIANCE_FACTOR, ENTROPY_BIAS = _names(
    "bessel_factor", "variance_factor", "entropy_bias"
)

PER_CLASS_COLUMNS = ("mean_probabilities", "probability_std", "standard_error")
PER_IMAGE_COLUMNS = (
    "predictive_entropy",
    "expected_entropy",
    "mutual_information",
    "variation_ratio",
)

SUMMARY, LABELS = SUMMARY_OUTPUTS = _names("summary", "labels")
"""Outputs for N rows, K classes and T >= 2 samples.

summary: float32 [N, 3K + 4, 1]: the PER_CLASS_COLUMNS, K values each, then the PER_IMAGE_COLUMNS;
    `model.uncertainty.uncertainty_measures.Uncertainty` defines them.
labels: int64 [N, 1, 1], the first class with the highest mean probability.
"""
MEANS, VARIANCES, SAMPLE_PROBABILITIES, ENTROPY_TERMS = DETAIL_OUTPUTS = _names(
    "means", "variances", "probabilities", "entropy_terms"
)
"""Further outputs, all float32.

means: means over the samples of p, then of ln (1 - p)/p, which is exact also where p rounds to 1:
    [N, 2K, 1].
variances: variances of the same, divisor T, [N, 2K, 1].
probabilities, entropy_terms: p and -p ln p of each sample, [N, K, T].
"""

VECTOR_WIDTH = 4
"""How many numbers ONNX Runtime processes at once in some functions and sums. It rounds the rest of
a row differently, so rows whose number of samples is no multiple of this must be run one by one."""


@lru_cache(maxsize=64)
def sample_count_inputs(count: int, random: bool = True) -> Feeds:
    """Return the inputs that depend only on the number of samples T = `count` >= 2.

    random: whether the samples are random draws. If not, the standard errors are NaN and no bias of
        the entropy of the mean is corrected.
    """
    widened = QUADRATURE_NODES * np.sqrt(count / (count - 1)) * (1 + _WIDENING / count)
    factors = {
        BESSEL_FACTOR: count / (count - 1),
        VARIANCE_FACTOR: 1 / count if random else np.nan,
        ENTROPY_BIAS: 0.5 / (count - 1) if random else 0,
    }
    inputs = {name: np.array([factor], np.float32) for name, factor in factors.items()}
    return {WIDENED_NODES: widened.astype(np.float32), **inputs}


@lru_cache(maxsize=128)
def scale_input(name: str, temperature: float) -> Feeds:
    """Return the input of a name by which logits are multiplied: 1 / temperature, float32 [1]."""
    return {name: np.array([1 / temperature], np.float32)}


def temperature_input(temperature: float) -> Feeds:
    """Return the input SCALE, see `scale_input`."""
    return scale_input(SCALE, temperature)


class MCStatistics:
    """The graph of the statistics alone, of a fixed number of classes K.

    It is loaded by the first run: most samples come out of a head, whose graph has the same nodes.
    """

    def __init__(self, graph: bytes, cancellation: CancellationToken | None = None) -> None:
        """Take an encoded graph; cancellation: cancels loading and runs; None: neither can be."""
        self._graph = graph
        self._cancellation = cancellation
        self._run_options = None if cancellation is None else cancellation.run_options

    @cached_property
    def _session(self) -> Session:
        return create_session(self._graph, threads=1, cancellation=self._cancellation)

    def run(
        self, logits: NDArray[np.float32], temperature: float, *, random: bool
    ) -> Sequence[Any]:
        """Compute the SUMMARY_OUTPUTS and, if `random` and T > 1, the DETAIL_OUTPUTS.

        Args:
            logits: float32 [N, T, K].
            temperature: divides the logits.
            random: as in `sample_count_inputs`.
        """
        count = logits.shape[1]
        if count == 1:  # counts as two equal ones, so it has a variance, of 0
            logits, count, random = np.repeat(logits, 2, axis=1), 2, False
        names = SUMMARY_OUTPUTS + DETAIL_OUTPUTS if random else SUMMARY_OUTPUTS
        feeds = {**sample_count_inputs(count, random), **temperature_input(temperature)}
        size = 1 if count % VECTOR_WIDTH else len(logits)
        runs = [
            self._session.run(
                names, {LOGITS: logits[start : start + size], **feeds}, self._run_options
            )
            for start in range(0, len(logits), size)
        ]
        if len(runs) == 1:
            return runs[0]
        return [np.concatenate(outputs) for outputs in zip(*runs, strict=True)]
