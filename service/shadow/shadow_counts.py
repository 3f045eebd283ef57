"""Counts what the comparison of a shadow with the stable version finds, for all workers."""

from collections.abc import Mapping
from typing import NamedTuple

from service.observability.metrics_recorder import Metrics
from service.shadow.difference_of_two_answers import AnswerDifference

_PREFIX = "dropserve_shadow_"


class VersionPair(NamedTuple):
    """A stable version of a model, and the shadow that is compared with it."""

    model: str
    version: str
    shadow: str


class ShadowCounts:
    """The Prometheus series of all pairs of versions."""

    def __init__(self, metrics: Metrics) -> None:
        """Use the series of `metrics`."""
        self._metrics = metrics

    def add(self, pair: VersionPair, difference: AnswerDifference) -> None:
        """Count one image that was compared."""
        metrics = self._metrics
        self._add(pair, "compared", 1)
        series = metrics.series_of_version(metrics.shadow_label_differences, *pair)
        series.inc(difference.label)
        if difference.abstention is not None:
            metrics.series_of_version(metrics.shadow_abstentions_compared, *pair).inc()
            series = metrics.series_of_version(metrics.shadow_abstention_differences, *pair)
            series.inc(difference.abstention)
        histogram = metrics.series_of_version(metrics.shadow_probability_difference, *pair)
        histogram.observe(difference.probability)

    def add_dropped(self, pair: VersionPair, images: int) -> None:
        """Count images that are not compared, since there was no room."""
        self._add(pair, "dropped", images)

    def add_failed(self, pair: VersionPair, images: int) -> None:
        """Count images that the shadow could not answer."""
        self._add(pair, "failed", images)

    def _add(self, pair: VersionPair, outcome: str, images: int) -> None:
        metrics = self._metrics
        metrics.series_of_version(metrics.shadow_images, *pair, outcome).inc(images)

    async def totals(self, pair: VersionPair) -> Mapping[str, float]:
        """Return the sums over all workers, by the name of a series without its prefix.

        Those of images are at `images.OUTCOME`; what was never counted is missing.
        """
        found: dict[str, float] = {}
        for sample in await self._metrics.samples_of(_PREFIX):
            labels = dict(sample.labels)
            if tuple(labels.pop(name) for name in pair._fields) == pair and "le" not in labels:
                key = ".".join([sample.name.removeprefix(_PREFIX), *labels.values()])
                found[key] = sample.value
        return found
