import io
from typing import Any

import pytest
from PIL import Image

from model.bundle.example_images import is_example


def picture(side: tuple[int, int], kind: str = "WEBP", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", side, (10, 200, 30)).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("lossless", [True, False])
def test_still_webp_is_an_example_up_to_224_pixels_a_side(lossless: bool) -> None:
    assert is_example(picture((8, 8), lossless=lossless))
    assert is_example(picture((224, 100), lossless=lossless))
    assert not is_example(picture((225, 8), lossless=lossless))
    assert not is_example(picture((8, 225), lossless=lossless))


def test_animation_metadata_other_formats_and_cut_files_are_no_examples() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    animated = picture((8, 8), save_all=True, append_images=frames)
    described = picture((8, 8), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0")
    whole = picture((8, 8), lossless=True)
    cut = [whole[:length] for length in range(25)]
    for data in (animated, described, picture((8, 8), "PNG"), b"<html>", *cut):
        assert not is_example(data)
