"""Fixtures: the service over the real bundle, in this process, once for each test session."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import structlog

from service.observability import log_format
from tests.pictures import Pixels
from tests.service.serving import MAX_SAMPLES, Application, serving_models
from training.data.dataset import Split


@pytest.fixture(scope="session", autouse=True)
def plain_log() -> None:
    """Log as JSON lines without timestamps; structlog's default colours each traceback."""
    logging.getLogger("service").setLevel(logging.DEBUG)
    structlog.configure(
        processors=[
            log_format.add_ids,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    )


@pytest.fixture(scope="session")
def digits(held_out: Split) -> Pixels:
    """Held-out digits, uint8 [N, 8, 8]."""
    return held_out.images[:, 0]


@pytest.fixture(scope="session")
def digit(digits: Pixels) -> Pixels:
    """One held-out digit, uint8 [8, 8]."""
    return np.ascontiguousarray(digits[0])


@pytest.fixture(scope="session")
def service(models_folder: Path) -> Iterator[Application]:
    """A running application with small limits; shared, so no test relies on its metrics."""
    limits = {"max_images": 8, "max_body_bytes": 100_000, "max_request_pixels": 40_000}
    with serving_models(
        models_folder, max_image_pixels=30_000, max_samples=MAX_SAMPLES, **limits
    ) as application:
        yield application
