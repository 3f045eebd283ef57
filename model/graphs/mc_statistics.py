"""What T sampled logits say, as nodes of a graph. Knows no weights and no mask.

Some sixty small steps on a few hundred numbers: ONNX Runtime takes about a microsecond for one,
NumPy more, and behind the head's own nodes they need no call of their own. So samples become
figures here and nowhere else; `model.uncertainty.summary` turns these few numbers into an answer.

All is float32: several times faster, and about as exact as the logits. Samples enter every moment
as differences from the first one: what is equal has a spread of exactly 0.

Rows must not influence each other. ONNX Runtime was seen to round a sum over another axis than the
last one, a product of all rows with a single column, and a reciprocal, differently in batches of
another size; there is none of these here (tests/model/test_figures.py). A product from the left, as
with a row of ones, is one of its own for each row.

How wrong a mean of T samples may be: most probabilities are tiny in nearly every sample and large
in a rare one, so the spread of 64 samples misses most of what makes their mean wrong: intervals
built on it cover half of what they claim. A probability's logit has no such tail. It is close to
normal, so T samples tell its mean and variance well, and the variance of the probability follows by
Gauss-Hermite quadrature over that normal distribution (the logit-normal: Atchison & Shen 1980).
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.graphs.encoding import Graph

Feeds = dict[str, NDArray[Any]]

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(24)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
_CENTRING = (np.eye(len(NODES)) - WEIGHTS[:, np.newaxis]) * np.sqrt(WEIGHTS)
"""From values at the nodes to their differences from the mean, so weighted that the sum of their
squares is the variance."""
_WIDENING = 3.0
"""Few samples know the deviation itself poorly, and the tail depends on it exponentially: widened
by 1 + 3/T, stated 95 % intervals covered as much from 8 samples on (python -m benchmarks.sampling).
"""
_LEAST_EXPONENT = -80.0
"""Of a power beside the largest, so that neither it nor its reciprocal leaves float32, and no
probability is 0."""
_FIRST = 1 + 1e-6
"""Times a power beside the largest, 1 and more is a first place."""

_PREFIX = "figures/"


def _names(*names: str) -> tuple[str, ...]:
    return tuple(_PREFIX + name for name in names)


LOGITS, SCALE, STEPS = _names("logits", "scale", "steps")
_UNBIASED, _SHARE, _BIAS = _names("unbiased", "share", "bias")

BY_CLASS = ("mean_probabilities", "probability_std", "standard_error")
BY_IMAGE = ("predictive_entropy", "expected_entropy", "mutual_information", "variation_ratio")

MAIN = _names("summary", "labels")
"""Outputs: of N rows, K classes, T >= 2 samples.

summary: those of BY_CLASS, K of each, then those of BY_IMAGE, float32 [N, 3K + 4, 1], as
    `model.uncertainty.summary.Uncertainty` has them.
labels: int64 [N, 1, 1], the first of the highest mean probability.
"""
DETAILS = _names("means", "spreads", "probabilities", "surprises")
"""Further outputs, all float32.

means: of the probabilities p, then of ln (1 - p)/p, exact also where p rounds to 1: [N, 2K, 1].
spreads: variances of the same, divisor T, [N, 2K, 1].
probabilities, surprises: p and -p ln p of each sample, [N, K, T].
"""

BLOCK = 4
"""Numbers of which ONNX Runtime computes some functions, and sums, at once; what is left over from
them it rounds differently. So other numbers of samples must be run row by row."""


@lru_cache(maxsize=64)
def rule(count: int, random: bool = True) -> Feeds:
    """Return the inputs that depend on the number of samples alone, T >= 2.

    random: whether they were drawn, and another draw would differ: only then there are errors, NaN
        else, and a bias of the entropy of their mean.
    """
    widened = NODES * np.sqrt(count / (count - 1)) * (1 + _WIDENING / count)
    numbers = {
        _UNBIASED: count / (count - 1),
        _SHARE: 1 / count if random else np.nan,
        _BIAS: 0.5 / (count - 1) if random else 0,
    }
    singles = {name: np.array([number], np.float32) for name, number in numbers.items()}
    return {STEPS: widened.astype(np.float32), **singles}


def scaling(temperature: float) -> Feeds:
    """Return the input that the logits are multiplied by."""
    return {SCALE: np.array([1 / temperature], np.float32)}


def behind(logits: str, classes: int) -> bytes:
    """Encode what is put behind a model's bytes to summarise its value `logits` [N, T, K]."""
    graph = Graph(_PREFIX)
    _Figures(graph, classes).add(logits)
    return graph.appended()


def alone(classes: int) -> bytes:
    """Encode a model of its own: an input LOGITS, float32 [N, T, K]."""
    graph = Graph(_PREFIX)
    logits = graph.input("logits", ["batch", "samples", classes])
    _Figures(graph, classes).add(logits)
    return graph.model()


def _below(bound: float) -> float:
    """Return the next lower number of float32."""
    return float(np.nextafter(np.float32(bound), np.float32(0)))


class _Figures:
    def __init__(self, graph: Graph, classes: int) -> None:
        self.graph = graph
        self.node = graph.node
        self.classes = classes
        self.zero, self.one = self.single([0]), self.single([1])
        self.last = graph.constant([-1])

    def add(self, logits: str) -> None:
        node, graph, k = self.node, self.graph, self.classes
        powers = node("Exp", self._exponents(logits))
        # Probabilities that are rounded to the same have powers a little apart.
        first_places = node("Floor", node("Mul", powers, self.single([_FIRST])))
        probabilities, ratios = self._samples(powers)
        both = node("Concat", probabilities, ratios, axis=1)
        first = node("Gather", both, graph.constant([0]), axis=2)
        differences = node("Sub", both, first)
        shift = self._mean(differences)
        centred = node("Sub", differences, shift)
        node("ReduceMean", node("Mul", centred, centred), self.last, keepdims=1, name="spreads")
        spreads = f"{_PREFIX}spreads"
        means = node("Add", first, shift, name="means")
        mean, centre = graph.halves(means, axis=1)
        variance, width = graph.halves(spreads, axis=1)
        tails = self._tails(centre, width)
        self._summary(mean, variance, tails, self._mean(first_places))
        shapes: dict[str, list[int | str]] = {
            "summary": [len(BY_CLASS) * k + len(BY_IMAGE), 1],
            "means": [2 * k, 1],
            "spreads": [2 * k, 1],
            "probabilities": [k, "samples"],
            "surprises": [k, "samples"],
        }
        for name, shape in shapes.items():
            graph.output(name, ["batch", *shape])
        graph.output("labels", ["batch", 1, 1], np.int64)

    def _exponents(self, logits: str) -> str:
        """Logits over the temperature, less the largest of each sample: [N, K, T]."""
        node = self.node
        classes_first = node("Transpose", logits, perm=[0, 2, 1])
        scaled = node("Mul", classes_first, self.graph.input("scale", [1]))
        most = node("ReduceMax", scaled, self.graph.constant([1]), keepdims=1)
        return node("Max", node("Sub", scaled, most), self.single([_LEAST_EXPONENT]))

    def _samples(self, powers: str) -> tuple[str, str]:
        """Probabilities p, and ln (1 - p)/p, of each sample, [N, K, T]."""
        node, k = self.node, self.classes
        # A class's rivals are added up without it: a difference would round them off.
        ratios = node("Div", node("MatMul", self.single(1 - np.eye(k)), powers), powers)
        reciprocals = node("Add", ratios, self.one)
        probabilities = node("Div", self.one, reciprocals, name="probabilities")
        # ln (1 + r) >= r/(1 + r), and nearly that where 1 + r rounds to 1.
        least = node("Mul", probabilities, ratios)
        logarithms = node("Max", node("Log", reciprocals), least)
        node("Mul", probabilities, logarithms, name="surprises")
        return probabilities, node("Log", ratios)

    def _tails(self, centre: str, width: str) -> str:
        """Variance of each probability as far as its normal logit tells it: [N, K, 1]."""
        node = self.node
        # The variance is that of 1 - p, too, and of the smaller one it is the more exact.
        steps = node("Mul", node("Sqrt", width), self.graph.input("steps", [len(NODES)]))
        points = node("Add", steps, node("Abs", centre))
        chances = node("Div", self.one, node("Add", node("Exp", points), self.one))
        centred = node("MatMul", chances, self.single(_CENTRING))
        tails = node("ReduceSumSquare", centred, self.last, keepdims=1)
        # As p's slope is at most 1/4 this changes nothing, but where the width is 0.
        return node("Min", tails, width)

    def _summary(self, rounded: str, variance: str, tails: str, votes: str) -> None:
        node, graph = self.node, self.graph
        mean = node("Min", rounded, self.one)
        labels = node("ArgMax", mean, axis=1, keepdims=1, name="labels")
        entropy, information = self._entropies(mean, variance)
        likely = node("Max", node("Mul", variance, graph.input("unbiased", [1])), tails)
        error = node("Sqrt", node("Mul", likely, graph.input("share", [1])))
        others = node("Sub", self.one, node("GatherElements", votes, labels, axis=1))
        expected = node("Sub", entropy, information)
        parts = mean, node("Sqrt", variance), error, entropy, expected, information, others
        node("Concat", *parts, axis=1, name="summary")

    def _entropies(self, mean: str, variance: str) -> tuple[str, str]:
        """Predictive entropy and mutual information, [N, 1, 1]."""
        node = self.node
        # Repeated, as rows have to begin where logarithms and sums do, see BLOCK.
        fourfold = node("Expand", mean, self.graph.constant([1, 1, BLOCK]))
        surprises = self._total(node("Mul", fourfold, node("Log", fourfold)))
        entropy = node("Mul", surprises, self.single([-1 / BLOCK]))
        entropy = node("Min", entropy, self.single([_below(np.log(self.classes))]))
        ones = self.single(np.ones((1, self.classes)))
        expected = node("MatMul", ones, self._mean(f"{_PREFIX}surprises"))
        scatter = node("MatMul", ones, node("Div", variance, mean))
        # A divergence is at most that of Pearson: so it is exactly 0 where the samples are equal.
        gain = node("Min", node("Max", node("Sub", entropy, expected), self.zero), scatter)
        gain = node("Add", gain, node("Mul", scatter, self.graph.input("bias", [1])))
        return entropy, node("Min", gain, entropy)

    def _total(self, values: str) -> str:
        """Add up all classes: [N, 1, 1]."""
        return self.node("ReduceSum", values, self.graph.constant([1, 2]), keepdims=1)

    def _mean(self, values: str) -> str:
        return self.node("ReduceMean", values, self.last, keepdims=1)

    def single(self, values: object) -> str:
        return self.graph.constant(np.asarray(values, np.float32))
