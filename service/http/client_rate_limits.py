"""Limits how many requests and images each client sends a second. Knows no route.

A client is whatever text identifies it, such as a key's id or an address. Each limit is the generic
cell rate algorithm (ITU-T I.371, Annex A), a token bucket that is kept as one number: the time at
which the client will have paid for all that it was served.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from service.errors import RateLimitError
from service.http.rate_table_of_all_workers import IMAGES, REQUESTS, RateTable
from service.observability.metrics_recorder import Metrics

ALLOWANCE = "dropserve.allowance"
"""The key of a request's scope with the `Allowance` that its images are charged to, if any."""
_REMEMBERED_TAGS = 1_024
_ROUNDING_SECONDS = 1e-6
"""How much later a client may have paid than exact numbers would say."""
_NAMES = {REQUESTS: "requests", IMAGES: "images"}


@dataclass(frozen=True, slots=True)
class RateLimits:
    """What each client may send; None: any number."""

    requests_per_second: float | None
    images_per_second: float | None
    burst_seconds: float
    """A client that has rested may send at once what it may send in this time, at least 1."""

    @property
    def by_field(self) -> dict[int, float]:
        """The limits that there are, by their field of the table."""
        limits = {REQUESTS: self.requests_per_second, IMAGES: self.images_per_second}
        return {field: rate for field, rate in limits.items() if rate is not None}


class ClientRates:
    """Admits and charges the requests and images of all clients.

    A request is admitted while its client has one left of each; its images are charged once their
    number is known, all of them, so that a batch may be larger than a burst and has to be paid for
    before the next one.
    """

    def __init__(self, limits: RateLimits, table: RateTable, metrics: Metrics) -> None:
        self._table = table
        self._tag = lru_cache(_REMEMBERED_TAGS)(table.tag)
        self._metrics = metrics
        self._limits = {
            field: (rate, max(0.0, limits.burst_seconds - 1 / rate) + _ROUNDING_SECONDS)
            for field, rate in limits.by_field.items()
        }
        """By field: the rate, and how long before it has paid for all a client has one left, s."""
        self._refusals = {
            field: metrics.rate_refusals.labels(name) for field, name in _NAMES.items()
        }

    def admit(self, client: str) -> "Allowance":
        """Charge a request, and return what its images will be charged to.

        Raises:
            RateLimitError: the client has sent too many requests or images.
        """
        tag = self._tag(client)
        slot = self._table.slot(tag)
        now = time.monotonic()
        for field in self._limits:
            self._require_one_left(slot, field, now)
        if REQUESTS in self._limits:
            self._charge(slot, REQUESTS, 1, now)
        return Allowance(self, tag)

    def charge_images(self, tag: int, count: int) -> None:
        """Charge images of an admitted request, before they are predicted.

        Raises:
            RateLimitError: other requests have used up what was left when it was admitted.
        """
        if IMAGES in self._limits:
            slot = self._table.slot(tag)
            now = time.monotonic()
            self._require_one_left(slot, IMAGES, now)
            self._charge(slot, IMAGES, count, now)

    def _require_one_left(self, slot: int, field: int, now: float) -> None:
        rate, tolerance = self._limits[field]
        wait = self._table.times[slot + field] - now - tolerance
        if wait > 0:
            self._metrics.deferred.increment(self._refusals[field])
            raise RateLimitError(_NAMES[field], rate, math.ceil(wait))

    def _charge(self, slot: int, field: int, count: int, now: float) -> None:
        times = self._table.times
        paid = times[slot + field]
        times[slot + field] = (max(now, paid)) + count / self._limits[field][0]


class Allowance(NamedTuple):
    """What the images of one request are charged to."""

    rates: ClientRates
    tag: int

    def charge_images(self, count: int) -> None:
        """Charge images; raises RateLimitError."""
        self.rates.charge_images(self.tag, count)


def charge_images(scope: Mapping[str, Any], count: int) -> None:
    """Charge the images of a request to its client, where clients are limited.

    Raises:
        RateLimitError: the client has sent too many images.
    """
    allowance: Allowance | None = scope.get(ALLOWANCE)
    if allowance is not None:
        allowance.charge_images(count)
