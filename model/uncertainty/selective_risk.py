"""Selective prediction: the confidence above which an error rate is kept. Knows no bundle."""

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

RISK_STARTS = 10
"""How many starting points the search for a confidence threshold uses."""


def confidence_threshold(
    confidences: Float64Array, correct: BoolArray, max_risk: float, failure: float
) -> float | None:
    """Return the confidence below which to abstain, or None if no threshold keeps the risk.

    Selection with guaranteed risk (Geifman & El-Yaniv 2017): with probability 1 - `failure` over
    the draw of the n images, at most `max_risk` of the predictions at least as confident are wrong.
    Their binary search fails where half of the images are too few for a bound. Here fixed-sequence
    testing (Angelopoulos et al. 2022) starts at each of RISK_STARTS shares of the images, which
    divide `failure` among them, and accepts one image after the other, by falling confidence, until
    the upper bound on the error rate exceeds `max_risk`. Both methods assume that the risk falls as
    the confidence rises.

    The bound itself is not computed: the upper Clopper-Pearson bound of their lemma 3.1 is at most
    `max_risk` exactly if `binomial_tails` is at most the allowed failure.

    Args:
        confidences: [n] descending.
        correct: bool [n], whether each prediction is correct, in the same order.
        max_risk: 0 < max_risk < 1.
        failure: 0 < failure < 1.
    """
    count = len(confidences)
    last = np.searchsorted(-confidences, -confidences, side="right") - 1  # of equal confidences
    exceeded = np.append(binomial_tails(correct, max_risk)[last] > failure / RISK_STARTS, True)
    starts = [count * (part + 1) // RISK_STARTS - 1 for part in range(RISK_STARTS)]
    ends = [start + int(exceeded[start:].argmax()) for start in starts if not exceeded[start]]
    return float(confidences[max(ends) - 1]) if ends else None


def binomial_tails(correct: BoolArray, risk: float) -> Float64Array:
    """Return P(Binomial(i, risk) <= errors among the first i predictions), i = 1..n: float64 [n].

    One more correct prediction lowers the probability by `risk` times that of exactly so many
    errors among the predictions before it; one more error raises it by 1 - `risk` times the same.
    So all of them are one cumulative sum, which is exact to about 1e-10 for a million predictions.

    Args:
        correct: bool [n], whether each prediction is correct.
        risk: 0 < risk < 1.
    """
    errors = np.cumsum(~correct)
    before = np.arange(len(correct))
    others = before - errors
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, len(correct) + 1)))])
    log_probabilities = (
        log_factorials[before] - log_factorials[errors] - log_factorials[np.maximum(others, 0)]
    )
    log_probabilities += errors * np.log(risk) + others * np.log1p(-risk)
    steps = np.where(others >= 0, np.exp(log_probabilities), 0.0)  # not more errors than before
    steps *= np.where(correct, -risk, 1 - risk)
    tails: Float64Array = np.clip(1 + np.cumsum(steps), 0, 1)
    return tails
