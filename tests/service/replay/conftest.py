"""Fixtures of the tests of replay."""

from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(autouse=True)
def log_configuration() -> Iterator[None]:
    """Restore how this process logs, which the command changes for itself."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)
