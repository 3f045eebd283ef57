"""Decides whether a request may do what its route does, by the key in its headers.

Clients that guess are slowed: after a few wrong keys in a minute, further ones get 429, after which
the connection is not read for a while. Right keys are served whatever others at the same address
do, since that may be a proxy's.
"""

import base64
from typing import Final

from cachetools import TTLCache

from service.errors import InvalidKeyError, KeyRequiredError, KeyScopeError, TooManyAttemptsError
from service.keys.key_file import TOKEN_LENGTH, ApiKey
from service.keys.key_ring import KeyRing
from service.keys.scopes import Scope
from service.observability.metrics_recorder import Metrics

_BEARER, _BASIC = "bearer ", "basic "
_MAX_FAILURES, WINDOW_SECONDS = 10, 60
"""Wrong keys of one address in a window that are answered 401; further ones get 429."""
_MAX_ADDRESSES = 10_000
"""Addresses that are remembered; beyond, the one that has failed least recently is forgotten."""

NO_KEY: Final = "no_key"
WRONG_KEY: Final = "wrong_key"
WRONG_SCOPE: Final = "wrong_scope"
TOO_MANY: Final = "too_many"


class AccessControl:
    """Checks the keys of requests, and counts those that it refuses.

    Not thread-safe: only the event-loop thread may use it.
    """

    def __init__(self, keys: KeyRing, metrics: Metrics) -> None:
        self._keys = keys
        self._metrics = metrics
        self._failures: TTLCache[str, list[int]] = TTLCache(_MAX_ADDRESSES, WINDOW_SECONDS)
        """How many wrong keys an address has sent in its window; a list, to be changed in place."""
        self._refusals = {
            reason: metrics.access_refusals.labels(reason)
            for reason in (NO_KEY, WRONG_KEY, WRONG_SCOPE, TOO_MANY)
        }

    def authorize(
        self, authorization: str | None, api_key: str | None, address: str, needed: Scope
    ) -> ApiKey:
        """Return the key of a request.

        authorization, api_key: the headers Authorization and X-API-Key; a bearer token in the
        first counts, else the second, else a password of basic authentication that is as long
        as keys are; others are for a proxy.

        Raises:
            KeyRequiredError: the request has no key.
            InvalidKeyError: the key is not good.
            TooManyAttemptsError: so were too many before it from this address.
            KeyScopeError: the key may not do that.
        """
        token = _token(authorization or "", api_key)
        if not token:
            self._count(NO_KEY)
            raise KeyRequiredError
        key = self._keys.find(token.strip())
        if key is None:
            raise self._failure(address)
        if needed not in key.scopes:
            self._count(WRONG_SCOPE)
            raise KeyScopeError(needed)
        return key

    def _failure(self, address: str) -> InvalidKeyError | TooManyAttemptsError:
        """Count a wrong key of an address, and return how it is answered."""
        failures = self._failures.get(address)
        if failures is None:
            self._failures[address] = failures = [0]
        failures[0] += 1
        if failures[0] > _MAX_FAILURES:
            self._count(TOO_MANY)
            return TooManyAttemptsError(WINDOW_SECONDS)
        self._count(WRONG_KEY)
        return InvalidKeyError()

    def _count(self, reason: str) -> None:
        self._metrics.deferred.increment(self._refusals[reason])


def _token(authorization: str, api_key: str | None) -> str | None:
    """Return the key that the headers hold, which may be good or not; None: there is none."""
    scheme, value = authorization[: len(_BEARER)].lower(), authorization[len(_BEARER) :]
    if scheme == _BEARER:
        return value
    if api_key or not scheme.startswith(_BASIC):
        return api_key
    try:  # RFC 7617, for clients that have nowhere else to put a key
        pair = base64.b64decode(authorization[len(_BASIC) :], validate=True).decode("ascii")
    except ValueError:
        return None
    password = pair.partition(":")[2]
    return password if len(password) == TOKEN_LENGTH else None
