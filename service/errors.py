"""The service's errors, and the one table from error to status and code.

Imports no web framework: `service.http.responses` makes the answers.
"""

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


class TooCostlyError(ServiceError):
    """The answer would take longer to compute than a request may take."""


class BodyTooLargeError(ServiceError):
    """More bytes than one request may hold."""


class BodyTooCostlyError(ServiceError):
    """To read the body takes more time or memory than one request may have."""


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


class RolloutError(ServiceError):
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
    RolloutError: (409, "release_impossible"),
    VersionRefusedError: (409, "version_refused"),
    BodyTooLargeError: (413, "body_too_large"),
    BodyTooCostlyError: (413, "body_too_costly"),
    TooManyImagesError: (413, "too_many_images"),
    TooCostlyError: (413, "too_costly"),
    model_errors.ImageTooLargeError: (413, "image_too_large"),
    UnsupportedMediaTypeError: (415, "unsupported_media_type"),
    UnsupportedError: (501, "unsupported"),
    NotReadyError: (503, "not_ready"),
    OverloadedError: (503, "overloaded"),
    DeadlineError: (504, "deadline_exceeded"),
}
ROUTING_CODES = {404: "not_found", 405: "method_not_allowed"}
HTTP_CODES = {
    400: "invalid_http",
    408: "head_timeout",
    431: "head_too_large",
    501: "unsupported",
    503: "overloaded",
    505: "http_version",
}
"""Of what is no request yet."""
INTERNAL_CODE = "internal_error"
