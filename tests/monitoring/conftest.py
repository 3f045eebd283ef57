"""Fixtures: test images of the digits."""

import pytest

from tests.pictures import Pixels
from training.data.dataset import Split


@pytest.fixture(scope="session")
def digit(held_out: Split) -> Pixels:
    """One test image, uint8 [8, 8]."""
    image: Pixels = held_out.images[0, 0]
    return image
