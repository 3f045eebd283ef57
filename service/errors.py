"""The one table from error to status and code. Elsewhere no error knows HTTP.

Every error leaves the service as `{"error": "a sentence that says what to do", "code": "word"}`.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from model import errors as model_errors
from model.errors import DropserveError


class ServiceError(DropserveError):
    """Base of the service's own errors."""


class EmptyBodyError(ServiceError):
    """The request has no body, or no image in it."""


class InvalidJsonError(ServiceError):
    """The body is not JSON, or nested too deep."""


class InvalidRequestError(ServiceError):
    """The JSON or form is not of the shape that is taken here."""


class InvalidBase64Error(ServiceError):
    """A `b64` field is not base64."""


class InvalidQueryError(ServiceError):
    """A query parameter is unknown, repeated or out of range."""


class TooManyImagesError(ServiceError):
    """More images than one request may hold."""


class BodyTooLargeError(ServiceError):
    """More bytes than one request may hold."""


class BodyTimeoutError(ServiceError):
    """The client took too long to send its body."""


class CompressionError(ServiceError):
    """The body is not the compressed stream that its encoding promises."""


class InvalidTensorError(ServiceError):
    """A tensor of the Open Inference Protocol cannot be used."""


class UnsupportedMediaTypeError(ServiceError):
    """The content type or encoding is not one that is taken here."""


class ModelRequiredError(ServiceError):
    """Several models are loaded, none is the default, and the request names none."""


class UnknownModelError(ServiceError):
    """No model of that name is loaded."""


class UnknownVersionError(ServiceError):
    """The model is loaded, but not in that version."""


class VersionRefusedError(ServiceError):
    """A version that was asked for cannot be put into service."""


class ReleaseError(ServiceError):
    """A model's release cannot be changed this way."""


class ControlDisabledError(ServiceError):
    """Models may not be loaded, unloaded or released by this client."""


class UnsupportedError(ServiceError):
    """A part of the protocol that is not offered."""


class UncertaintyDisabledError(ServiceError):
    """POST /uncertainty is switched off."""


class NotReadyError(ServiceError):
    """No bundle is loaded (yet)."""


class OverloadedError(ServiceError):
    """Too many requests or images are waiting."""


class DeadlineError(ServiceError):
    """The answer took longer than allowed."""


STATUS_AND_CODE: dict[type[DropserveError], tuple[int, str]] = {
    EmptyBodyError: (400, "empty_body"),
    InvalidJsonError: (400, "invalid_json"),
    InvalidRequestError: (400, "invalid_request"),
    InvalidBase64Error: (400, "invalid_base64"),
    InvalidTensorError: (400, "invalid_tensor"),
    CompressionError: (400, "invalid_compression"),
    InvalidQueryError: (400, "invalid_query"),
    ModelRequiredError: (400, "model_required"),
    model_errors.MethodError: (400, "method_unavailable"),
    model_errors.ImageDecodeError: (400, "image_unreadable"),
    model_errors.ImageShapeError: (400, "image_shape"),
    model_errors.PixelValueError: (400, "pixel_value"),
    ControlDisabledError: (403, "control_disabled"),
    UnknownModelError: (404, "unknown_model"),
    UnknownVersionError: (404, "unknown_version"),
    UncertaintyDisabledError: (404, "uncertainty_disabled"),
    BodyTimeoutError: (408, "body_timeout"),
    ReleaseError: (409, "release_impossible"),
    VersionRefusedError: (409, "version_refused"),
    BodyTooLargeError: (413, "body_too_large"),
    TooManyImagesError: (413, "too_many_images"),
    model_errors.ImageTooLargeError: (413, "image_too_large"),
    UnsupportedMediaTypeError: (415, "unsupported_media_type"),
    UnsupportedError: (501, "unsupported"),
    NotReadyError: (503, "not_ready"),
    OverloadedError: (503, "overloaded"),
    DeadlineError: (504, "deadline_exceeded"),
}
ROUTING_CODES = {404: "not_found", 405: "method_not_allowed"}
HTTP_CODES = {400: "invalid_http", 431: "head_too_large"}
"""Of what is no request yet."""
INTERNAL_CODE = "internal_error"

_RETRY_AFTER_SECONDS = "1"


def error_response(
    status: int, code: str, sentence: str, more: Mapping[str, Any] | None = None
) -> Response:
    """Build the one shape every error has; `more` is what a protocol wants besides."""
    headers = {"Retry-After": _RETRY_AFTER_SECONDS} if status == 503 else None
    body = orjson.dumps({"error": sentence, "code": code, **(more or {})})
    return Response(body, status, headers=headers, media_type="application/json")


def domain_error_response(error: DropserveError, more: Mapping[str, Any] | None = None) -> Response:
    """Build the answer that the table gives `error`; raise one that is none of a request's."""
    for kind in type(error).__mro__:
        if kind in STATUS_AND_CODE:
            status, code = STATUS_AND_CODE[kind]
            return error_response(status, code, str(error), more)
    raise error


def http_error(status: int) -> Response:
    """Build the answer to what is no request."""
    sentences = {
        400: "This is no request of HTTP/1.1 that can be read; send one with a client for HTTP.",
        431: "The request's path and headers are longer than 64 KiB; send less in them.",
    }
    return error_response(status, HTTP_CODES[status], sentences[status])


def internal_error() -> Response:
    """Build the answer to an error nobody foresaw; the log has the traceback."""
    return error_response(
        500, INTERNAL_CODE, "The server failed; its log has the reason under this X-Request-ID."
    )


def add_handlers(app: FastAPI) -> None:
    """Make every error of `app` leave it in the one shape."""
    app.add_exception_handler(DropserveError, _on_domain_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_query)
    app.add_exception_handler(HTTPException, _on_routing_error)
    app.add_exception_handler(Exception, _on_unforeseen_error)


async def _on_domain_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, DropserveError)
    return domain_error_response(error)


async def _on_unforeseen_error(_request: Request, _error: Exception) -> Response:
    return internal_error()  # FastAPI raises it again, to whoever writes it down


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
    response.headers.update(error.headers or {})
    return response
