"""Makes the fixtures of tests/service available to the attacks."""

from tests.service.conftest import digit, digits, plain_log, service

__all__ = ["digit", "digits", "plain_log", "service"]
