"""Turns errors into HTTP responses. Knows no route.

The body of every error is `{"error": "a sentence that says what to do", "code": "word"}`.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from model.errors import DropserveError
from service.errors import (
    HTTP_PROTOCOL_CODES,
    HTTPS_REQUIRED,
    INTERNAL_CODE,
    ROUTING_CODES,
    STATUS_AND_CODE,
    InvalidKeyError,
    InvalidQueryError,
    KeyRequiredError,
    KeyScopeError,
    RateLimitError,
    TooManyAttemptsError,
)

_RETRY_AFTER_SECONDS = "1"


def error_response(
    status: int,
    code: str,
    sentence: str,
    extra_fields: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Build the response for an error; a protocol may add fields to the body."""
    if status == 503:
        headers = {"Retry-After": _RETRY_AFTER_SECONDS}
    body = orjson.dumps({"error": sentence, "code": code, **(extra_fields or {})})
    return Response(body, status, headers=headers, media_type="application/json")


def domain_error_response(
    error: DropserveError, extra_fields: Mapping[str, Any] | None = None
) -> Response:
    """Build the response for an error, with the status and code of `STATUS_AND_CODE`.

    Raises:
        DropserveError: `error` itself, if the table has no entry for it.
    """
    for kind in type(error).__mro__:
        if kind in STATUS_AND_CODE:
            status, code = STATUS_AND_CODE[kind]
            return error_response(status, code, str(error), extra_fields, _headers(error))
    raise error


def _headers(error: DropserveError) -> Mapping[str, str] | None:
    """Return the headers that the status of an error calls for (RFC 6750, 3; RFC 6585, 4)."""
    match error:
        case KeyRequiredError() | InvalidKeyError() | KeyScopeError():
            return {"WWW-Authenticate": error.challenge}
        case TooManyAttemptsError() | RateLimitError():
            return {"Retry-After": str(error.retry_after_seconds)}
    return None


_HTTP_ERROR_SENTENCES = {
    400: "This is no request of HTTP/1.1 that can be read; send one with a client for HTTP.",
    408: "The request's path and headers did not arrive in time; send them faster.",
    431: "The request's path and headers are longer than 64 KiB; send less in them.",
    501: "CONNECT and other transfer codings than chunked are not taken; ask for a path of this "
    "server, and send a body in chunks or with its length.",
    503: "The server has too many connections or bytes of this client; close some, or try again "
    "in a second.",
    505: "This is not HTTP/1.1; send the request with a client for HTTP/1.1.",
}


def http_error(status: int) -> Response:
    """Build the response to bytes that are no valid request, or that exceed a limit."""
    return error_response(status, HTTP_PROTOCOL_CODES[status], _HTTP_ERROR_SENTENCES[status])


def https_required() -> Response:
    """Build the response to plain HTTP where only TLS is taken."""
    status, code = HTTPS_REQUIRED
    return error_response(
        status, code, "This port takes https alone; write https:// instead of http://."
    )


def internal_error() -> Response:
    """Build the response to an unexpected error; the log has the traceback."""
    return error_response(
        500, INTERNAL_CODE, "The server failed; its log has the reason under this X-Request-ID."
    )


def add_handlers(app: FastAPI) -> None:
    """Make `app` answer every error with a response of this module."""
    app.add_exception_handler(DropserveError, _on_domain_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_query)
    app.add_exception_handler(HTTPException, _on_routing_error)
    app.add_exception_handler(Exception, _on_unexpected_error)


async def _on_domain_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, DropserveError)
    return domain_error_response(error)


async def _on_unexpected_error(_request: Request, _error: Exception) -> Response:
    return internal_error()  # FastAPI raises the error again, and the middleware logs it


async def _on_invalid_query(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = str(first["loc"][1])  # loc[0] is "query"
    if first["type"] == "extra_forbidden":
        sentence = f"{request.url.path} takes no query parameter {name!r}; leave it out."
    else:
        message = first["msg"][0].lower() + first["msg"][1:]
        sentence = f"Query parameter {name!r}: {message}, but got {first['input']!r}."
    return domain_error_response(InvalidQueryError(sentence))


async def _on_routing_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    sentences = {
        404: f"There is nothing at {path}; GET /docs lists what there is.",
        405: f"{path} does not take {method}; GET /docs lists what it takes.",
    }
    sentence = sentences.get(error.status_code, HTTPStatus(error.status_code).phrase)
    code = ROUTING_CODES.get(error.status_code, INTERNAL_CODE)
    response = error_response(error.status_code, code, sentence)
    for name, value in (error.headers or {}).items():
        response.headers[name] = _allowed_methods(value) if name.lower() == "allow" else value
    return response


def _allowed_methods(allow: str) -> str:
    """Return Starlette's list of a route's methods in order, which differs between runs there.

    What takes GET takes HEAD, too: the middleware sees to that.
    """
    methods = set(allow.split(", "))
    return ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))
