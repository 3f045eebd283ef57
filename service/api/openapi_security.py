"""Describes in OpenAPI which routes need a key, and how one is sent. No request runs this code."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from service.codecs.body_to_images import JSON_TYPE
from service.keys.scopes import required_scope

_SCHEMES = {
    "bearerKey": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer KEY"},
    "headerKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_STATUSES = (401, 403, 429)
_ERROR_SCHEMA = {"$ref": "#/components/schemas/Error"}


def describe_keys(description: dict[str, Any], routes: Sequence[BaseRoute]) -> dict[str, Any]:
    """Add to a complete description what a service with keys asks of its clients.

    description: changed in place, and returned. routes: all routes of the service.
    """
    description["components"]["securitySchemes"] = _SCHEMES
    for route in routes:
        assert isinstance(route, APIRoute)
        scope = required_scope(route.endpoint)
        for method in route.methods or ():
            operation = description["paths"].get(route.path, {}).get(method.lower())
            if operation is None:
                continue
            if scope is None:
                operation["security"] = []
                continue
            # A scheme of this type has no scopes, but may list the roles that it takes (4.8.30).
            operation["security"] = [{name: [scope]} for name in _SCHEMES]
            for status in _STATUSES:
                operation["responses"].setdefault(str(status), _response(status))
    return description


def _response(status: int) -> dict[str, Any]:
    return {
        "description": HTTPStatus(status).phrase,
        "content": {JSON_TYPE: {"schema": _ERROR_SCHEMA}},
    }
