"""Statistics of T sampled logits, as nodes that are appended to the head's graph (MC dropout).

They are some sixty small operations on a few hundred numbers. ONNX Runtime takes about a
microsecond for one, NumPy takes longer, and behind the nodes of the head they need no call of their
own. So all statistics of samples are computed here; `model.uncertainty.uncertainty_measures`
converts the few outputs into an `Uncertainty`. This module knows no weights and no mask.

All values are float32, which is several times faster than float64 and about as exact as the logits
are. Every moment is computed from the differences to the first sample, so equal samples have a
variance of exactly 0.

Rows must not influence each other. ONNX Runtime was seen to round these differently in batches of
another size: a sum over another axis than the last one, a product of all rows with a single column,
and a reciprocal. None of these is used here (tests/model/graphs/test_mc_statistics.py). A product
from the left, for example with a row of ones, is computed for each row separately.

The standard error of a mean of T samples: most probabilities are tiny in nearly every sample and
large in a rare one, so the standard deviation of 64 samples misses most of what makes their mean
wrong, and intervals built on it cover half of what they claim. The logit of a probability has no
such tail. It is close to normal, so T samples estimate its mean and variance well, and the variance
of the probability follows by Gauss-Hermite quadrature over that normal distribution (the
logit-normal: Atchison & Shen 1980).
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.graphs.onnx_encoding import Graph

Feeds = dict[str, NDArray[Any]]

QUADRATURE_NODES, QUADRATURE_WEIGHTS = np.polynomial.hermite_e.hermegauss(24)
QUADRATURE_WEIGHTS = QUADRATURE_WEIGHTS / QUADRATURE_WEIGHTS.sum()
_CENTRING = (np.eye(len(QUADRATURE_NODES)) - QUADRATURE_WEIGHTS[:, np.newaxis]) * np.sqrt(
    QUADRATURE_WEIGHTS
)
"""Maps values at the nodes to their differences from the mean, weighted so that the sum of the
squares is the variance."""
_WIDENING = 3.0
"""The nodes are widened by a factor of 1 + 3/T. Few samples estimate the standard deviation poorly,
and the tail depends on it exponentially. With this factor, stated 95 % intervals covered as much
from 8 samples on (python -m benchmarks.sampling).
"""
_MIN_EXPONENT = -80.0
"""Smallest exponent relative to the largest one: neither exp nor its reciprocal leaves the range of
float32, and no probability is 0."""
_TIE_FACTOR = 1 + 1e-6
"""A class whose power times this is at least the largest power counts as a first place."""

_PREFIX = "mc_statistics/"


def _names(*names: str) -> tuple[str, ...]:
    return tuple(_PREFIX + name for name in names)


LOGITS, SCALE, WIDENED_NODES = _names("logits", "scale", "widened_nodes")
_BESSEL_FACTOR, _VARIANCE_FACTOR, _ENTROPY_BIAS = _names(
    "bessel_factor", "variance_factor", "entropy_bias"
)

PER_CLASS_COLUMNS = ("mean_probabilities", "probability_std", "standard_error")
PER_IMAGE_COLUMNS = (
    "predictive_entropy",
    "expected_entropy",
    "mutual_information",
    "variation_ratio",
)

SUMMARY_OUTPUTS = _names("summary", "labels")
"""Outputs for N rows, K classes and T >= 2 samples.

summary: float32 [N, 3K + 4, 1]: the PER_CLASS_COLUMNS, K values each, then the PER_IMAGE_COLUMNS;
    `model.uncertainty.uncertainty_measures.Uncertainty` defines them.
labels: int64 [N, 1, 1], the first class with the highest mean probability.
"""
SAMPLE_PROBABILITIES = _PREFIX + "probabilities"
DETAIL_OUTPUTS = (
    *_names("means", "variances"),
    SAMPLE_PROBABILITIES,
    *_names("entropy_terms"),
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
        _BESSEL_FACTOR: count / (count - 1),
        _VARIANCE_FACTOR: 1 / count if random else np.nan,
        _ENTROPY_BIAS: 0.5 / (count - 1) if random else 0,
    }
    inputs = {name: np.array([factor], np.float32) for name, factor in factors.items()}
    return {WIDENED_NODES: widened.astype(np.float32), **inputs}


def temperature_input(temperature: float) -> Feeds:
    """Return the input by which the logits are multiplied: 1 / temperature, float32 [1]."""
    return {SCALE: np.array([1 / temperature], np.float32)}


def encode_nodes(logits: str, classes: int) -> bytes:
    """Encode the nodes that summarise the value `logits`, float32 [N, T, K].

    The bytes are appended to those of the model that has this value.
    """
    graph = Graph(_PREFIX)
    _MCStatistics(graph, classes).add(logits)
    return graph.encode_nodes()


def encode_model(classes: int) -> bytes:
    """Encode the nodes as a complete model with an input LOGITS, float32 [N, T, K]."""
    graph = Graph(_PREFIX)
    logits = graph.input("logits", ["batch", "samples", classes])
    _MCStatistics(graph, classes).add(logits)
    return graph.encode_model()


def _next_below(bound: float) -> float:
    """Return the largest float32 below `bound`."""
    return float(np.nextafter(np.float32(bound), np.float32(0)))


class _MCStatistics:
    """Adds the nodes of the statistics of K classes to a graph."""

    def __init__(self, graph: Graph, classes: int) -> None:
        self._graph = graph
        self._node = graph.node
        self._classes = classes
        self._zero, self._one = self._float32([0]), self._float32([1])
        self._last_axis = graph.constant([-1])

    def add(self, logits: str) -> None:
        """Add all nodes and outputs behind the value `logits`, float32 [N, T, K]."""
        node, graph, k = self._node, self._graph, self._classes
        powers = node("Exp", self._exponents(logits))
        # Equal probabilities may have powers that differ by rounding.
        first_places = node("Floor", node("Mul", powers, self._float32([_TIE_FACTOR])))
        probabilities, ratios = self._samples(powers)
        both = node("Concat", probabilities, ratios, axis=1)
        first = node("Gather", both, graph.constant([0]), axis=2)
        differences = node("Sub", both, first)
        shift = self._mean(differences)
        centred = node("Sub", differences, shift)
        node(
            "ReduceMean",
            node("Mul", centred, centred),
            self._last_axis,
            keepdims=1,
            name="variances",
        )
        variances = f"{_PREFIX}variances"
        means = node("Add", first, shift, name="means")
        mean, logit_mean = graph.split_in_two(means, axis=1)
        variance, logit_variance = graph.split_in_two(variances, axis=1)
        normal_variance = self._logit_normal_variance(logit_mean, logit_variance)
        self._summary(mean, variance, normal_variance, self._mean(first_places))
        shapes: dict[str, list[int | str]] = {
            "summary": [len(PER_CLASS_COLUMNS) * k + len(PER_IMAGE_COLUMNS), 1],
            "means": [2 * k, 1],
            "variances": [2 * k, 1],
            "probabilities": [k, "samples"],
            "entropy_terms": [k, "samples"],
        }
        for name, shape in shapes.items():
            graph.output(name, ["batch", *shape])
        graph.output("labels", ["batch", 1, 1], np.int64)

    def _exponents(self, logits: str) -> str:
        """Logits over the temperature minus the largest of each sample: [N, K, T]."""
        node = self._node
        classes_first = node("Transpose", logits, perm=[0, 2, 1])
        scaled = node("Mul", classes_first, self._graph.input("scale", [1]))
        largest = node("ReduceMax", scaled, self._graph.constant([1]), keepdims=1)
        return node("Max", node("Sub", scaled, largest), self._float32([_MIN_EXPONENT]))

    def _samples(self, powers: str) -> tuple[str, str]:
        """Probabilities p and ln (1 - p)/p of each sample, [N, K, T] each."""
        node, k = self._node, self._classes
        # Sums over the other classes; total minus own power would lose small summands.
        ratios = node("Div", node("MatMul", self._float32(1 - np.eye(k)), powers), powers)
        reciprocals = node("Add", ratios, self._one)
        probabilities = node("Div", self._one, reciprocals, name="probabilities")
        # ln (1 + r) >= r/(1 + r), and about equal where 1 + r rounds to 1.
        lower_bound = node("Mul", probabilities, ratios)
        logarithms = node("Max", node("Log", reciprocals), lower_bound)
        node("Mul", probabilities, logarithms, name="entropy_terms")
        return probabilities, node("Log", ratios)

    def _logit_normal_variance(self, logit_mean: str, logit_variance: str) -> str:
        """Variance of each probability if its logit is normal: [N, K, 1]."""
        node = self._node
        # p and 1 - p have the same variance, and it is more exact from the smaller one.
        steps = node(
            "Mul",
            node("Sqrt", logit_variance),
            self._graph.input("widened_nodes", [len(QUADRATURE_NODES)]),
        )
        points = node("Add", steps, node("Abs", logit_mean))
        probabilities = node("Div", self._one, node("Add", node("Exp", points), self._one))
        centred = node("MatMul", probabilities, self._float32(_CENTRING))
        variance = node("ReduceSumSquare", centred, self._last_axis, keepdims=1)
        # The slope of p is at most 1/4, so this has an effect only where the logit's variance is 0.
        return node("Min", variance, logit_variance)

    def _summary(
        self, rounded_mean: str, variance: str, normal_variance: str, vote_shares: str
    ) -> None:
        node, graph = self._node, self._graph
        mean = node("Min", rounded_mean, self._one)
        labels = node("ArgMax", mean, axis=1, keepdims=1, name="labels")
        entropy, information = self._entropies(mean, variance)
        unbiased = node("Mul", variance, graph.input("bessel_factor", [1]))
        likely = node("Max", unbiased, normal_variance)
        error = node("Sqrt", node("Mul", likely, graph.input("variance_factor", [1])))
        ratio = node("Sub", self._one, node("GatherElements", vote_shares, labels, axis=1))
        expected = node("Sub", entropy, information)
        columns = mean, node("Sqrt", variance), error, entropy, expected, information, ratio
        node("Concat", *columns, axis=1, name="summary")

    def _entropies(self, mean: str, variance: str) -> tuple[str, str]:
        """Predictive entropy and mutual information, [N, 1, 1] each."""
        node = self._node
        # Repeated so that the row of each image begins at a multiple of VECTOR_WIDTH.
        repeated = node("Expand", mean, self._graph.constant([1, 1, VECTOR_WIDTH]))
        negative_entropy = self._total(node("Mul", repeated, node("Log", repeated)))
        entropy = node("Mul", negative_entropy, self._float32([-1 / VECTOR_WIDTH]))
        entropy = node("Min", entropy, self._float32([_next_below(np.log(self._classes))]))
        ones = self._float32(np.ones((1, self._classes)))
        expected = node("MatMul", ones, self._mean(f"{_PREFIX}entropy_terms"))
        scatter = node("MatMul", ones, node("Div", variance, mean))
        # The KL divergence is at most Pearson's, so it is exactly 0 where the samples are equal.
        information = node("Min", node("Max", node("Sub", entropy, expected), self._zero), scatter)
        information = node(
            "Add", information, node("Mul", scatter, self._graph.input("entropy_bias", [1]))
        )
        return entropy, node("Min", information, entropy)

    def _total(self, values: str) -> str:
        """Sum over all classes and the last axis: [N, 1, 1]."""
        return self._node("ReduceSum", values, self._graph.constant([1, 2]), keepdims=1)

    def _mean(self, values: str) -> str:
        return self._node("ReduceMean", values, self._last_axis, keepdims=1)

    def _float32(self, values: object) -> str:
        return self._graph.constant(np.asarray(values, np.float32))
