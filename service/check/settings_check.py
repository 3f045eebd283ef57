"""Checks settings against each other: those of which one takes the other's effect away.

Touches no file and no socket. What no service may start with is refused by the settings themselves.
"""

from collections.abc import Iterator

from service.check.findings import Finding, warning
from service.settings import ServiceSettings

_SUBJECT = "settings"


def check_settings(settings: ServiceSettings) -> Iterator[Finding]:
    """Yield a warning for each setting that has no effect, or another one than it seems."""
    for sentence in (*_unused(settings), *_limits(settings)):
        yield warning(_SUBJECT, sentence)


def _unused(settings: ServiceSettings) -> Iterator[str]:
    if settings.traffic_log_images and settings.traffic_log is None:
        yield "--traffic-log-images stores nothing without a log; give --traffic-log, too."
    if settings.control == "nobody":
        for option in ("control_socket", "control_port"):
            if getattr(settings, option) is not None:
                flag = "--" + option.replace("_", "-")
                yield f"{flag} has no effect with --control nobody; leave one of them out."
    pins = settings.pins
    default = settings.default_model
    if default is not None and pins and default not in pins:
        yield (
            f"--default-model: {default!r} is not among --models, so the service does not get "
            "ready; name it there, or make one of these the default."
        )


def _limits(settings: ServiceSettings) -> Iterator[str]:
    if settings.max_image_pixels > settings.max_request_pixels:
        yield (
            f"--max-image-pixels: an image of {settings.max_image_pixels} pixels is refused by "
            f"--max-request-pixels, {settings.max_request_pixels}; raise that, too."
        )
    if settings.max_body_bytes > settings.max_buffered_bytes:
        yield (
            f"--max-body-bytes: a body of {settings.max_body_bytes} bytes is refused by "
            f"--max-buffered-bytes, {settings.max_buffered_bytes}; raise that, too."
        )
