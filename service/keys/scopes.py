"""The scopes of keys, and how an endpoint declares the one that it needs. Knows no key."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args

Scope = Literal["predict", "read", "metrics", "control"]
"""predict: send images. read: see models, versions and reports. metrics: see the service's
metrics. control: change what serves."""
SCOPES: tuple[Scope, ...] = get_args(Scope)

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
_SCOPE = "required_scope"


def requires(scope: Scope) -> Callable[[Endpoint], Endpoint]:
    """Declare that an endpoint needs a key with a scope, where the service has keys."""

    def declare(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _SCOPE, scope)
        return endpoint

    return declare


def public(endpoint: Endpoint) -> Endpoint:
    """Declare that an endpoint needs no key."""
    setattr(endpoint, _SCOPE, None)
    return endpoint


def required_scope(endpoint: Callable[..., Any]) -> Scope | None:
    """Return the scope that an endpoint has declared; None: it needs no key.

    Raises:
        AttributeError: it has declared nothing.
    """
    scope: Scope | None = getattr(endpoint, _SCOPE)
    return scope
