import numpy as np
import pytest

from model.images.image_region_that_is_seen import WHOLE_IMAGE, visible_region
from model.images.preprocessing import InputSpec, decode
from tests.pictures import encode


def gradient(width: int, height: int) -> bytes:
    """Encode an image whose red is the share of the width, and whose green that of the height."""
    across = (np.arange(width) + 0.5) / width * 255
    down = (np.arange(height) + 0.5) / height * 255
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, :, 0], pixels[:, :, 1] = np.round(across), np.round(down)[:, np.newaxis]
    pixels[:, :, 2] = 255
    return encode(pixels)


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(96, 64), (64, 96), (640, 480), (50, 333), (32, 24), (24, 24)])
def test_region_is_what_the_pixels_of_the_input_show(resize: str, size: tuple[int, int]) -> None:
    spec = InputSpec.model_validate({"channels": 3, "height": 24, "width": 32, "resize": resize})
    shown = decode(gradient(*size), spec).astype(float) / 255
    region = visible_region(*size, spec)
    across = region.left + (np.arange(32) + 0.5) / 32 * region.width
    down = region.top + (np.arange(24) + 0.5) / 24 * region.height
    columns, rows = (
        np.flatnonzero((places > edge) & (places < 1 - edge))
        for places, edge in ((across, region.width / 32), (down, region.height / 24))
    )
    assert len(columns) > 1
    assert len(rows) > 10
    inside = shown[:, rows[:, np.newaxis], columns]
    tolerance = 0.1 * max(region.width / 32, region.height / 24) + 2 / 255
    np.testing.assert_allclose(inside[0], np.tile(across[columns], (len(rows), 1)), atol=tolerance)
    np.testing.assert_allclose(inside[1].T, np.tile(down[rows], (len(columns), 1)), atol=tolerance)
    outside = (across < -region.width / 32) | (across > 1 + region.width / 32)
    assert not shown[2][:, outside].any(), "borders are not outside of the image"


def test_image_of_the_right_size_is_seen_whole() -> None:
    for resize in ("crop", "pad", "stretch"):
        spec = InputSpec.model_validate(
            {"channels": 1, "height": 24, "width": 32, "resize": resize}
        )
        assert visible_region(32, 24, spec) == WHOLE_IMAGE
