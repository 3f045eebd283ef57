"""Sequential test for drift: do the images that arrive still rank among the validation images?

While they are like the validation images, the rank of a score among the n validation scores takes
each of 0..n equally often. One fixed set of n validation images has a sampling error of its own,
though, and a test that takes the ranks for independent draws would find that error and call it
drift. Exact is this: the next image is equally likely to fall into each of the gaps between all
scores so far, the validation images' and the stream's. So if n validation images leave k gaps below
an edge, and s of the m images so far were below it, the next one is below it with probability
(k + s) / (n + 1 + m): a Polya urn. Nothing else is assumed than that validation images and stream
are exchangeable: that they could have come in any order (Vovk, Gammerman & Shafer 2005). Ranks that
count ties put an image that is tied with an edge above it, which can only delay an alarm.

A bettor starts with wealth 1 and multiplies it, at each image, by q / p: the probability of its bin
under a hypothesis of its own, over the urn's. That is a test martingale, and it ever reaches 1/a
with a probability of at most a (Ville 1939). A bettor here supposes that a share of the images,
from one image on, comes from elsewhere and scores below an edge. The wealth is the average over all
of SHARES, of EDGES and of the image at which the change happens, which again is a martingale:

    wealth after t images = sum over r <= t of prior(r) * (wealth of the bettors that began at r)
                            + the prior probability of changes after t.

A bettor that begins later has lost nothing on the images before. It does keep the urn's counts of
them: they are part of what makes its odds exact, and good images among them make the urn's odds
more precise. The price is that drifted images fill the urn too: the stream is compared with n
images, not with a known distribution, and where n is small, a small drift from the first image on
is never certain; docs/uncertainty.md has figures. A test that forgot the good images would have n
images to compare with after any number of them.

State and time do not grow with the stream. Knows no HTTP and no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.uncertainty.change_point_bets import (
    MAX_CHUNK,
    ContinuedBets,
    Moment,
    WealthOverTime,
    continue_bets,
    prepend,
)
from model.uncertainty.whole_ranks import rank_up_to

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

EDGES = (0.002, 0.01, 0.05, 0.2, 0.5)
"""The p-values below which bettors expect more images than the urn does. Images of another kind
fall below the first ones; the last ones show that all images have become a little different. Of
5,000 validation images 10 are below the first edge: about a finer one they would say too little."""
SHARES = (0.01, 0.03, 0.1, 0.3)
"""The shares of images from elsewhere that bettors suppose."""

_SHARES = np.array(SHARES)[:, np.newaxis]
_BETTORS = len(EDGES) * len(SHARES)
_STATE = np.dtype(
    [
        ("images", "f8"),
        ("below", "f8", (len(EDGES),)),
        ("log_wealths", "f8", (_BETTORS,)),
        ("log_largest", "f8", (_BETTORS,)),
        ("largest_image", "f8", (_BETTORS,)),
        ("largest_time", "f8", (_BETTORS,)),
        ("log_wealth", "f8"),
        ("highest_log_wealth", "f8"),
        ("alarm_event", "f8"),
        ("alarm_time", "f8"),
        ("since_event", "f8"),
        ("since_time", "f8"),
    ]
)
"""What is remembered of a stream: the images, and how many of them were below each edge; for each
bettor the log of its wealth over all changes so far, and the change that contributes most to it;
the log of the whole wealth now and at its highest; and the alarm (event 0: none)."""


@dataclass(frozen=True, slots=True)
class Tail:
    """How many images of the stream had a p-value that is at most `p_value`."""

    p_value: float
    share: float
    """Of the images of the stream; NaN: there is none yet."""
    expected: float
    """Of images like the validation images: `p_value` in whole ranks."""


class DriftTest(WealthOverTime):
    """Tests a stream of images against n validation images, by the ranks of one score."""

    def __init__(self, validation_images: int, level: float, state: bytes = b"") -> None:
        """Begin a test, or continue one.

        Args:
            validation_images: n, at least 1.
            level: 0 < level < 1, the largest probability that images like the validation images
                ever raise the alarm.
            state: of `to_bytes`; empty for a new test.
        """
        gaps = validation_images + 1
        self._edges = np.maximum(1, rank_up_to(EDGES, gaps))
        self._gaps = gaps
        super().__init__(level, _new_state(), state)

    def observe(self, ranks: Int64Array, times: Float64Array) -> None:
        """Continue with m images; the same as one call for each image.

        Args:
            ranks: int64 [m] in 0..n, how many validation images score at most as high.
            times: [m], when the images arrived, seconds since 1970.
        """
        for start in range(0, len(ranks), MAX_CHUNK):
            chunk = slice(start, start + MAX_CHUNK)
            self._observe(ranks[chunk], times[chunk])

    @property
    def images(self) -> int:
        """How many images have been observed."""
        return int(self._get("images"))

    @property
    def since(self) -> Moment | None:
        """The first image of the drift, by the bettor with the most wealth at the alarm."""
        return self._moment("since")

    def tails(self, p_values: Sequence[float]) -> list[Tail]:
        """Return the shares of images below some of EDGES."""
        images, below = self._get("images"), self._get("below")
        return [
            Tail(
                EDGES[index],
                float(below[index] / images) if images else np.nan,
                float(self._edges[index] / self._gaps),
            )
            for index in map(EDGES.index, p_values)
        ]

    def _observe(self, ranks: Int64Array, times: Float64Array) -> None:
        """Continue with m images at once.

        The largest contribution of a bettor's beginnings is a running maximum, as `continue_bets`
        has a running sum of all of them.
        """
        state = self._state[0]
        first = int(state["images"])
        below = ranks < self._edges[:, np.newaxis]
        bets = continue_bets(state["log_wealths"], self._log_factors(below), first)
        contributions = prepend(state["log_largest"], bets.begun)
        raised = self._raise_alarm(bets, first, times)
        if raised is not None:
            self._find_beginning(raised, bets, contributions, times)
        columns = contributions.argmax(axis=1)
        newer = columns > 0
        state["largest_image"][newer] = first + columns[newer]
        state["largest_time"][newer] = times[columns[newer] - 1]
        state["log_largest"] = bets.growth[:, -1] + contributions.max(axis=1)
        self._keep_wealth(bets)
        state["below"] += below.sum(axis=1)
        state["images"] += len(ranks)

    def _log_factors(self, below: BoolArray) -> Float64Array:
        """Return the logs of what each image multiplies each bettor's wealth by: [bettors, m].

        A bettor gives the share e of the images to the bins below its edge, in the urn's
        proportions, and the rest to all bins as the urn does.

        Args:
            below: [edges, m], whether each image is below each edge.
        """
        images, seen = self._get("images"), self._get("below")
        before = (self._edges + seen)[:, np.newaxis] + np.cumsum(below, axis=1) - below
        gaps = self._gaps + images + np.arange(below.shape[1])
        ratios = np.where(below, gaps / before, 0.0)
        factors = 1 + _SHARES * (ratios[:, np.newaxis] - 1)
        log_factors: Float64Array = np.log(factors).reshape(_BETTORS, -1)
        return log_factors

    def _find_beginning(
        self, index: int, bets: ContinuedBets, contributions: Float64Array, times: Float64Array
    ) -> None:
        """Record the first image of the drift, after the alarm.

        Args:
            index: of the image that raised it, among these m images.
            bets: after each of them.
            contributions: [bettors, m + 1], log of what each beginning contributes, without growth;
                the first column is the largest of those before these images.
            times: [m].
        """
        state = self._state[0]
        so_far = contributions[:, : index + 2]
        bettor = int((bets.growth[:, index] + so_far.max(axis=1)).argmax())
        column = int(so_far[bettor].argmax())
        if column:
            state["since_event"], state["since_time"] = state["images"] + column, times[column - 1]
        else:
            state["since_event"] = state["largest_image"][bettor]
            state["since_time"] = state["largest_time"][bettor]


def _new_state() -> NDArray[np.void]:
    state = np.zeros(1, _STATE)
    state["log_wealths"] = state["log_largest"] = -np.inf
    return state
