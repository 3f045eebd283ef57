"""What the attacks share is what the tests of the service share."""

from tests.service.conftest import digit, digits, plain_log, service

__all__ = ["digit", "digits", "plain_log", "service"]
