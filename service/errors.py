"""The service's errors, and the table that gives each error its HTTP status and code.

Imports no web framework: `service.http.error_responses` builds the responses.
"""

from model import errors as model_errors
from model.errors import DropserveError


class ServiceError(DropserveError):
    """Base of the service's own errors."""


class EmptyBodyError(ServiceError):
    """The request has no body, or no image in it."""


class InvalidJsonError(ServiceError):
    """The body is not JSON, or is nested too deeply."""


class InvalidRequestError(ServiceError):
    """The JSON or form does not have the expected structure."""


class InvalidBase64Error(ServiceError):
    """A `b64` field is not base64."""


class InvalidQueryError(ServiceError):
    """A query parameter is unknown, repeated or out of range."""


class TooManyImagesError(ServiceError):
    """The request has more images than are allowed."""


class TooCostlyError(ServiceError):
    """The prediction would take longer to compute than a request may take."""


class BodyTooLargeError(ServiceError):
    """The body has more bytes than are allowed."""


class BodyTooCostlyError(ServiceError):
    """Reading the body takes more time or memory than a request may use."""


class BodyTimeoutError(ServiceError):
    """The client took too long to send its body."""


class CompressionError(ServiceError):
    """The body is not a valid stream of its Content-Encoding."""


class InvalidTensorError(ServiceError):
    """A tensor of an Open Inference Protocol request cannot be used."""


class UnsupportedMediaTypeError(ServiceError):
    """The content type or encoding is not supported."""


class ModelRequiredError(ServiceError):
    """Several models are loaded, none of them is the default, and the request names none."""


class UnknownModelError(ServiceError):
    """No model of that name is loaded."""


class UnknownVersionError(ServiceError):
    """The model is loaded, but not in the requested version."""


class UnknownExampleError(ServiceError):
    """The bundle carries no example image of that number."""


class NoReportError(ServiceError):
    """The bundle has no report that can be shown."""


class VersionRefusedError(ServiceError):
    """The requested version failed to load, so it cannot be activated."""


class RolloutError(ServiceError):
    """The model's rollout cannot be changed as requested."""


class ControlDisabledError(ServiceError):
    """This client may not load, unload or roll out models."""


_CHALLENGE = 'Bearer realm="dropserve"'
"""The header WWW-Authenticate, to which an error may add (RFC 6750, 3)."""


class KeyRequiredError(ServiceError):
    """The route needs a key, and the request has none."""

    challenge = _CHALLENGE

    def __init__(self) -> None:
        super().__init__(
            "This needs a key; send it as Authorization: Bearer KEY, or as X-API-Key: KEY."
        )


class InvalidKeyError(ServiceError):
    """The request's key is not known, or no longer."""

    challenge = f'{_CHALLENGE}, error="invalid_token"'

    def __init__(self) -> None:
        super().__init__(
            "This key is not known here, has expired or was revoked; ask the operator for another."
        )


class KeyScopeError(ServiceError):
    """The request's key is good for other routes only."""

    def __init__(self, needed: str) -> None:
        super().__init__(
            f"This key may not do that, which needs the scope {needed!r}; ask the operator for a "
            "key with it."
        )
        self.challenge = f'{_CHALLENGE}, error="insufficient_scope", scope="{needed}"'


class TooManyAttemptsError(ServiceError):
    """Too many wrong keys came from the request's address."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(
            "Too many wrong keys came from this address; try again in a minute, with the right one."
        )
        self.retry_after_seconds = retry_after_seconds


class RateLimitError(ServiceError):
    """The client has sent more requests or images a second than it may."""

    def __init__(self, what: str, rate: float, retry_after_seconds: int) -> None:
        super().__init__(
            f"This client may send {rate:g} {what} a second and has sent more; send the next in "
            f"{retry_after_seconds} s, or ask the operator for more."
        )
        self.retry_after_seconds = retry_after_seconds


class CrossOriginError(ServiceError):
    """A browser asked for leave to send a request of another origin's page, and gets none."""


class WrongHostError(ServiceError):
    """The request names a host that the service, or its control listener, does not answer for."""

    def __init__(self, *, is_control: bool = False) -> None:
        super().__init__(
            "The control listener is for this machine alone; name it localhost, 127.0.0.1 or [::1]."
            if is_control
            else "This service does not answer for the host that the request names; use its public "
            "name, or add the name with --allowed-hosts."
        )


class UnsupportedError(ServiceError):
    """The request needs a part of the protocol that is not supported."""


class UncertaintyDisabledError(ServiceError):
    """POST /uncertainty is switched off."""


class FeedbackDisabledError(ServiceError):
    """The service takes no true labels."""

    def __init__(self) -> None:
        super().__init__("This server takes no true labels; start it with --feedback FILE.")


class UnknownAnswerError(ServiceError):
    """No answer to a request of that id is remembered, or not any more."""


class InvalidLabelError(ServiceError):
    """A true label is of an image that the answer does not have, or is no class of the model."""


class FeedbackUnavailableError(ServiceError):
    """The file of feedback cannot be used now."""


class FeedbackFullError(ServiceError):
    """The file of feedback has no room for another label."""


class LabelStudioDisabledError(ServiceError):
    """The service is no backend of a Label Studio."""


class InvalidLabelConfigError(ServiceError):
    """The label config of a Label Studio project cannot be read, or asks for no class."""


class NotReadyError(ServiceError):
    """No bundle is loaded, or none is loaded yet."""


class StoppingError(NotReadyError):
    """The service is stopping, so what was asked of it was abandoned."""

    def __init__(self) -> None:
        super().__init__("The server is stopping; send the request to another.")


class OverloadedError(ServiceError):
    """Too many requests are in flight, or too many images are waiting."""


class DeadlineError(ServiceError):
    """The prediction took longer than the timeout."""


STATUS_AND_CODE: dict[type[DropserveError], tuple[int, str]] = {
    EmptyBodyError: (400, "empty_body"),
    InvalidJsonError: (400, "invalid_json"),
    InvalidRequestError: (400, "invalid_request"),
    InvalidBase64Error: (400, "invalid_base64"),
    InvalidTensorError: (400, "invalid_tensor"),
    CompressionError: (400, "invalid_compression"),
    InvalidQueryError: (400, "invalid_query"),
    InvalidLabelError: (400, "invalid_label"),
    InvalidLabelConfigError: (400, "invalid_label_config"),
    ModelRequiredError: (400, "model_required"),
    model_errors.MethodError: (400, "method_unavailable"),
    model_errors.ImageDecodeError: (400, "image_unreadable"),
    model_errors.ImageShapeError: (400, "image_shape"),
    model_errors.PixelValueError: (400, "pixel_value"),
    CrossOriginError: (400, "cross_origin"),
    KeyRequiredError: (401, "key_required"),
    InvalidKeyError: (401, "invalid_key"),
    ControlDisabledError: (403, "control_disabled"),
    KeyScopeError: (403, "key_scope"),
    UnknownModelError: (404, "unknown_model"),
    UnknownVersionError: (404, "unknown_version"),
    UnknownExampleError: (404, "unknown_example"),
    NoReportError: (404, "no_report"),
    UncertaintyDisabledError: (404, "uncertainty_disabled"),
    FeedbackDisabledError: (404, "feedback_disabled"),
    LabelStudioDisabledError: (404, "label_studio_disabled"),
    UnknownAnswerError: (404, "unknown_answer"),
    BodyTimeoutError: (408, "body_timeout"),
    RolloutError: (409, "release_impossible"),
    VersionRefusedError: (409, "version_refused"),
    BodyTooLargeError: (413, "body_too_large"),
    BodyTooCostlyError: (413, "body_too_costly"),
    TooManyImagesError: (413, "too_many_images"),
    TooCostlyError: (413, "too_costly"),
    model_errors.ImageTooLargeError: (413, "image_too_large"),
    UnsupportedMediaTypeError: (415, "unsupported_media_type"),
    WrongHostError: (421, "wrong_host"),
    RateLimitError: (429, "rate_limited"),
    TooManyAttemptsError: (429, "too_many_attempts"),
    UnsupportedError: (501, "unsupported"),
    NotReadyError: (503, "not_ready"),
    OverloadedError: (503, "overloaded"),
    FeedbackUnavailableError: (503, "feedback_unavailable"),
    DeadlineError: (504, "deadline_exceeded"),
    FeedbackFullError: (507, "feedback_full"),
}
"""Error class -> HTTP status and the `code` of the body; subclasses have their base class's."""
ROUTING_CODES = {404: "not_found", 405: "method_not_allowed"}
"""Status -> code, where no route matches."""
HTTP_PROTOCOL_CODES = {
    400: "invalid_http",
    408: "head_timeout",
    431: "head_too_large",
    501: "unsupported",
    503: "overloaded",
    505: "http_version",
}
"""Status -> code, where a connection or head is refused before there is a request."""
HTTPS_REQUIRED = 400, "https_required"
"""Status and code, where plain HTTP is sent to a port that takes TLS alone."""
INTERNAL_CODE = "internal_error"
"""Code of status 500."""
