"""Adds the statistics of T sampled logits behind the logits of `head.onnx` (MC dropout).

They are some sixty small operations on a few hundred numbers. ONNX Runtime takes about a
microsecond for one, NumPy takes longer, and behind the nodes of the head they need no call of their
own. So all statistics of samples are computed here. This module knows no weights and no mask.

All values are float32, which is several times faster than float64 and about as exact as the logits
are. Every moment is computed from the differences to the first sample, so equal samples have a
variance of exactly 0.

Rows must not influence each other. ONNX Runtime was seen to round these differently in batches of
another size: a sum over another axis than the last one, a product of all rows with a single column,
and a reciprocal. None of these is used here
(tests/training/export/test_mc_statistics_graph.py). A product from the left, for example with a row
of ones, is computed for each row separately.

The standard error of a mean of T samples: most probabilities are tiny in nearly every sample and
large in a rare one, so the standard deviation of 64 samples misses most of what makes their mean
wrong, and intervals built on it cover half of what they claim. The logit of a probability has no
such tail. It is close to normal, so T samples estimate its mean and variance well, and the variance
of the probability follows by Gauss-Hermite quadrature over that normal distribution (the
logit-normal: Atchison & Shen 1980).
"""

from functools import lru_cache

import numpy as np
import onnx
from onnx import helper

from model.graphs.mc_statistics import (
    BESSEL_FACTOR,
    ENTROPY_BIAS,
    ENTROPY_TERMS,
    LABELS,
    LOGITS,
    MEANS,
    PER_CLASS_COLUMNS,
    PER_IMAGE_COLUMNS,
    PREFIX,
    QUADRATURE_NODES,
    QUADRATURE_WEIGHTS,
    SAMPLE_PROBABILITIES,
    SCALE,
    SUMMARY,
    VARIANCE_FACTOR,
    VARIANCES,
    VECTOR_WIDTH,
    WIDENED_NODES,
    MCStatistics,
    sample_count_inputs,
    temperature_input,
)
from training.export.onnx_nodes import HEAD_OPSET, IR_VERSION, Nodes

_DEFAULTS = {**sample_count_inputs(2, random=False), **temperature_input(1.0)}
"""Where the inputs are not fed, the standard errors are NaN, and all else holds for any number of
samples."""

_CENTRING = (np.eye(len(QUADRATURE_NODES)) - QUADRATURE_WEIGHTS[:, np.newaxis]) * np.sqrt(
    QUADRATURE_WEIGHTS
)
"""Maps values at the nodes to their differences from the mean, weighted so that the sum of the
squares is the variance."""
_MIN_EXPONENT = -80.0
"""Smallest exponent relative to the largest one: neither exp nor its reciprocal leaves the range of
float32, and no probability is 0."""
_TIE_FACTOR = 1 + 1e-6
"""A class whose power times this is at least the largest power counts as a first place."""


def add_mc_statistics(graph: onnx.GraphProto, logits: str, classes: int) -> None:
    """Add the outputs of `model.graphs.mc_statistics` of a value `logits`, float32 [N, T, K]."""
    _StatisticsNodes(graph, classes).add(logits)


def mc_statistics_model(classes: int) -> onnx.ModelProto:
    """Return the statistics alone: LOGITS, float32 [N, T, K], -> all outputs."""
    logits = helper.make_tensor_value_info(
        LOGITS, onnx.TensorProto.FLOAT, ["batch", "samples", classes]
    )
    graph = helper.make_graph([], "mc_statistics", [logits], [])
    add_mc_statistics(graph, LOGITS, classes)
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", HEAD_OPSET)],
        ir_version=IR_VERSION,
        producer_name="dropserve",
    )


@lru_cache(maxsize=16)
def mc_statistics_of(classes: int) -> MCStatistics:
    """Return the statistics of logits of no bundle, such as those of cross-fitted networks."""
    return MCStatistics(mc_statistics_model(classes).SerializeToString())


def _next_below(bound: float) -> float:
    """Return the largest float32 below `bound`."""
    return float(np.nextafter(np.float32(bound), np.float32(0)))


class _StatisticsNodes(Nodes):
    """Adds the nodes of the statistics of K classes to a graph."""

    def __init__(self, graph: onnx.GraphProto, classes: int) -> None:
        super().__init__(graph, PREFIX)
        for name, default in _DEFAULTS.items():
            self.input(name, default)
        self._classes = classes
        self._zero, self._one = self.float32([0]), self.float32([1])
        self._last_axis = self.integers(-1)

    def add(self, logits: str) -> None:
        """Add all nodes and outputs behind the value `logits`, float32 [N, T, K]."""
        node, k = self.node, self._classes
        powers = node("Exp", self._exponents(logits))
        # Equal probabilities may have powers that differ by rounding.
        first_places = node("Floor", node("Mul", powers, self.float32([_TIE_FACTOR])))
        probabilities, ratios = self._samples(powers)
        both = node("Concat", probabilities, ratios, axis=1)
        first = node("Gather", both, self.integers(0), axis=2)
        differences = node("Sub", both, first)
        shift = self._mean(differences)
        centred = node("Sub", differences, shift)
        squares = node("Mul", centred, centred)
        variances = node("ReduceMean", squares, self._last_axis, keepdims=1, output=VARIANCES)
        means = node("Add", first, shift, output=MEANS)
        mean, logit_mean = self.split(means, [k, k])
        variance, logit_variance = self.split(variances, [k, k])
        normal_variance = self._logit_normal_variance(logit_mean, logit_variance)
        self._add_summary(mean, variance, normal_variance, self._mean(first_places))
        self._declare_outputs()

    def _declare_outputs(self) -> None:
        k = self._classes
        shapes: dict[str, list[int | str]] = {
            SUMMARY: [len(PER_CLASS_COLUMNS) * k + len(PER_IMAGE_COLUMNS), 1],
            MEANS: [2 * k, 1],
            VARIANCES: [2 * k, 1],
            SAMPLE_PROBABILITIES: [k, "samples"],
            ENTROPY_TERMS: [k, "samples"],
        }
        for name, shape in shapes.items():
            self.output(name, ["batch", *shape])
        self.output(LABELS, ["batch", 1, 1], np.int64)

    def _exponents(self, logits: str) -> str:
        """Logits over the temperature minus the largest of each sample: [N, K, T]."""
        node = self.node
        classes_first = node("Transpose", logits, perm=[0, 2, 1])
        scaled = node("Mul", classes_first, SCALE)
        largest = node("ReduceMax", scaled, self.integers(1), keepdims=1)
        return node("Max", node("Sub", scaled, largest), self.float32([_MIN_EXPONENT]))

    def _samples(self, powers: str) -> tuple[str, str]:
        """Probabilities p and ln (1 - p)/p of each sample, [N, K, T] each."""
        node = self.node
        # Sums over the other classes; total minus own power would lose small summands.
        ratios = node("Div", node("MatMul", self._other_classes(), powers), powers)
        reciprocals = node("Add", ratios, self._one)
        probabilities = node("Div", self._one, reciprocals, output=SAMPLE_PROBABILITIES)
        # ln (1 + r) >= r/(1 + r), and about equal where 1 + r rounds to 1.
        lower_bound = node("Mul", probabilities, ratios)
        logarithms = node("Max", node("Log", reciprocals), lower_bound)
        node("Mul", probabilities, logarithms, output=ENTROPY_TERMS)
        return probabilities, node("Log", ratios)

    def _other_classes(self) -> str:
        """The matrix that sums over the other classes: ones, 0 on the diagonal, [K, K].

        ONNX Runtime computes it when it loads the graph, so it takes no room in the file.
        """
        zeros = self.node("ConstantOfShape", self.integers(self._classes, self._classes))
        return self.node("Sub", self._one, self.node("EyeLike", zeros))

    def _logit_normal_variance(self, logit_mean: str, logit_variance: str) -> str:
        """Variance of each probability if its logit is normal: [N, K, 1]."""
        node = self.node
        # p and 1 - p have the same variance, and it is more exact from the smaller one.
        steps = node("Mul", node("Sqrt", logit_variance), WIDENED_NODES)
        points = node("Add", steps, node("Abs", logit_mean))
        probabilities = node("Div", self._one, node("Add", node("Exp", points), self._one))
        centred = node("MatMul", probabilities, self.float32(_CENTRING))
        variance = node("ReduceSumSquare", centred, self._last_axis, keepdims=1)
        # The slope of p is at most 1/4, so this has an effect only where the logit's variance is 0.
        return node("Min", variance, logit_variance)

    def _add_summary(
        self, rounded_mean: str, variance: str, normal_variance: str, vote_shares: str
    ) -> None:
        node = self.node
        mean = node("Min", rounded_mean, self._one)
        labels = node("ArgMax", mean, axis=1, keepdims=1, output=LABELS)
        entropy, information = self._entropies(mean, variance)
        unbiased = node("Mul", variance, BESSEL_FACTOR)
        likely = node("Max", unbiased, normal_variance)
        error = node("Sqrt", node("Mul", likely, VARIANCE_FACTOR))
        ratio = node("Sub", self._one, node("GatherElements", vote_shares, labels, axis=1))
        expected = node("Sub", entropy, information)
        columns = mean, node("Sqrt", variance), error, entropy, expected, information, ratio
        node("Concat", *columns, axis=1, output=SUMMARY)

    def _entropies(self, mean: str, variance: str) -> tuple[str, str]:
        """Predictive entropy and mutual information, [N, 1, 1] each."""
        node = self.node
        # Repeated so that the row of each image begins at a multiple of VECTOR_WIDTH.
        repeated = node("Expand", mean, self.integers(1, 1, VECTOR_WIDTH))
        negative_entropy = self._total(node("Mul", repeated, node("Log", repeated)))
        entropy = node("Mul", negative_entropy, self.float32([-1 / VECTOR_WIDTH]))
        entropy = node("Min", entropy, self.float32([_next_below(np.log(self._classes))]))
        ones = self.float32(np.ones((1, self._classes)))
        expected = node("MatMul", ones, self._mean(ENTROPY_TERMS))
        scatter = node("MatMul", ones, node("Div", variance, mean))
        # The KL divergence is at most Pearson's, so it is exactly 0 where the samples are equal.
        information = node("Min", node("Max", node("Sub", entropy, expected), self._zero), scatter)
        information = node("Add", information, node("Mul", scatter, ENTROPY_BIAS))
        return entropy, node("Min", information, entropy)

    def _total(self, values: str) -> str:
        """Sum over all classes and the last axis: [N, 1, 1]."""
        return self.node("ReduceSum", values, self.integers(1, 2), keepdims=1)

    def _mean(self, values: str) -> str:
        return self.node("ReduceMean", values, self._last_axis, keepdims=1)
