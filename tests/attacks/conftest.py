"""The service over the real bundle, with its limits as they come."""

from tests.service.conftest import digit, digits, plain_log

__all__ = ["digit", "digits", "plain_log"]
