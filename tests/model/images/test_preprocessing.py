import io
import struct
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from model.errors import ImageDecodeError, ImageShapeError, ImageTooLargeError, PixelValueError
from model.images.images_from_numbers import from_numbers
from model.images.preprocessing import InputSpec, decode, decode_all, to_float

GREY = InputSpec(channels=1, height=8, width=8, resize="pad")
RGB = InputSpec(channels=3, height=6, width=4, resize="crop")


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "WEBP"])
def test_decode_keeps_every_pixel_of_a_lossless_image_of_the_right_size(kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(pixels), kind, **options)
    np.testing.assert_array_equal(decode(data, GREY), pixels[None])


def test_decode_keeps_the_order_of_rgb_channels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    image = decode(encoded(Image.fromarray(pixels)), RGB)
    np.testing.assert_array_equal(image, pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16", "I"])
@pytest.mark.parametrize("spec", [GREY, RGB])
def test_decode_accepts_every_colour_mode(mode: str, spec: InputSpec) -> None:
    image = Image.new("L", (20, 30), 255)
    if mode.startswith("I"):
        image = Image.fromarray(np.full((30, 20), 65_535, np.uint16))
    elif mode == "PA":
        image = image.convert("RGBA").convert("P")
        image.info["transparency"] = 3
    else:
        image = image.convert(mode)
    white = decode(encoded(image), spec)
    assert white.shape == (spec.channels, spec.height, spec.width)
    assert white[:, spec.height // 2, spec.width // 2].min() == 255


def test_decode_scales_sixteen_bits_without_clipping() -> None:
    ramp = np.linspace(0, 65_535, 64).astype(np.uint16).reshape(8, 8)
    image = decode(encoded(Image.fromarray(ramp)), GREY)
    np.testing.assert_array_equal(image[0], (ramp // 257).astype(np.uint8))


def test_decode_composites_transparency_over_black() -> None:
    image = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    assert decode(encoded(image), GREY).max() == 0


def test_decode_accepts_a_cmyk_jpeg() -> None:
    image = Image.new("CMYK", (4, 6), (0, 0, 0, 0))
    assert decode(encoded(image, "JPEG"), RGB).min() > 250


def test_decode_applies_the_exif_orientation() -> None:
    image = Image.new("L", (4, 6), 0)
    image.paste(255, (0, 0, 4, 3))  # the upper half is white
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    upright = decode(encoded(image, "JPEG", exif=exif, quality=95), RGB)
    assert upright[0, 0].max() < 30
    assert upright[0, 5].min() > 225


def test_decode_resizes_by_stretch_crop_or_pad() -> None:
    image = Image.new("L", (32, 16), 255)  # twice as wide as high
    data = encoded(image)
    stretched = decode(data, GREY.model_copy(update={"resize": "stretch"}))
    cropped = decode(data, GREY.model_copy(update={"resize": "crop"}))
    padded = decode(data, GREY)
    assert stretched.min() == cropped.min() == 255
    assert (padded[0, :2] == 0).all()
    assert (padded[0, 2:6] == 255).all()
    assert (padded[0, 6:] == 0).all()


def test_decode_uses_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("L", (8, 8), level) for level in (40, 200)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(data, GREY) == 40).all()


@pytest.mark.parametrize("data", [b"", b"not an image", b"%PDF-1.7", b"\x89PNG\r\n\x1a\n"])
def test_decode_refuses_bytes_that_are_not_an_image(data: bytes) -> None:
    with pytest.raises(ImageDecodeError, match=r"send a (whole )?PNG, JPEG, WebP"):
        decode(data, GREY)


def test_decode_refuses_other_formats_that_pillow_reads() -> None:
    with pytest.raises(ImageDecodeError, match="not an image that can be read"):
        decode(encoded(Image.new("L", (8, 8)), "ICO"), GREY)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_decode_refuses_a_truncated_image(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(ImageDecodeError):
        decode(data[: len(data) // 2], GREY)


@given(st.binary(max_size=60), st.integers(0, 200))
def test_decode_of_a_damaged_image_raises_only_input_errors(noise: bytes, place: int) -> None:
    whole = encoded(Image.new("L", (8, 8), 77))
    damaged = whole[:place] + noise + whole[place + len(noise) :]
    with suppress(ImageDecodeError, ImageTooLargeError):
        assert decode(damaged, GREY).shape == (1, 8, 8)


def test_decode_in_threads_leaves_the_filters_of_warnings_as_they_are() -> None:
    data = encoded(Image.new("L", (64, 64), 77))
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: decode(data, GREY), range(200)))
    assert warnings.filters == before


def test_decode_warns_of_no_odd_metadata() -> None:
    plain = encoded(Image.new("L", (8, 8), 77), "TIFF")
    one_value, two_values = (struct.pack("<HHII", 284, 3, count, 1) for count in (1, 2))
    assert one_value in plain
    program = (
        "import sys; from model.images.preprocessing import InputSpec, decode\n"
        "spec = InputSpec(channels=1, height=8, width=8, resize='pad')\n"
        "assert (decode(sys.stdin.buffer.read(), spec) == 77).all()"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    odd = plain.replace(one_value, two_values)
    done = subprocess.run(command, input=odd, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_decode_all_limits_the_pixels_of_each_image_and_of_all() -> None:
    data = encoded(Image.new("L", (50, 40)))
    assert decode_all([data, data], GREY, 2_000, 4_000).shape == (2, 1, 8, 8)
    with pytest.raises(ImageTooLargeError, match="50 x 40 pixels, more than the 1,999 allowed"):
        decode_all([data], GREY, max_pixels=1_999)
    with pytest.raises(ImageTooLargeError, match="4,000 pixels together, more than the 3,999"):
        decode_all([data, data], GREY, 2_000, 3_999)


def test_from_numbers_agrees_with_to_float() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    image = from_numbers((pixels / 255).tolist(), RGB)
    np.testing.assert_array_equal(image, to_float(pixels.transpose(2, 0, 1)))
    grey = (pixels[..., :1] / 255).tolist()
    spec = InputSpec(channels=1, height=6, width=4, resize="pad")
    flat = [[value[0] for value in row] for row in grey]
    np.testing.assert_array_equal(from_numbers(grey, spec), from_numbers(flat, spec))


@pytest.mark.parametrize(
    ("nested", "got"),
    [
        ([[0.5] * 8] * 7, "7 x 8"),
        ([[0.5] * 9] * 8, "8 x 9"),
        ([[[0.5] * 3] * 8] * 8, "8 x 8 x 3"),
        ([], "empty"),
        (0.5, "a single value"),
        ("text", "a single value"),
        (None, "a single value"),
    ],
)
def test_from_numbers_reports_the_expected_and_the_actual_shape(nested: Any, got: str) -> None:
    with pytest.raises(ImageShapeError) as caught:
        from_numbers(nested, GREY)
    assert f"The image is {got}, but" in str(caught.value)
    assert "height 8, width 8, grey" in str(caught.value)


def test_from_numbers_refuses_ragged_rows() -> None:
    with pytest.raises(ImageShapeError, match="rows differ in length"):
        from_numbers([[0.5] * 8] * 7 + [[0.5] * 7], GREY)


@pytest.mark.parametrize("value", [True, "0.5", None, {}, 10**30])
def test_from_numbers_refuses_a_pixel_that_is_not_a_number(value: Any) -> None:
    nested: list[list[Any]] = [[0.5] * 8 for _ in range(8)]
    nested[3][4] = value
    with pytest.raises(PixelValueError, match=r"not a number|outside 0\.\.1"):
        from_numbers(nested, GREY)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (255, "A pixel is 255, outside 0..1; divide 8-bit values by 255"),
        (-1, "A pixel is -1, outside 0..1; divide 8-bit values by 255"),
        (-0.01, "A pixel is -0.01, just outside 0..1; clip the values to 0..1"),
        (1 + 2**-40, "A pixel is 1.0000000000009095, just outside 0..1; clip the values"),
        (float("nan"), "NaN or infinite"),
        (float("inf"), "NaN or infinite"),
    ],
)
def test_from_numbers_refuses_a_value_outside_the_range(value: float, sentence: str) -> None:
    nested = [[0.5] * 8 for _ in range(8)]
    nested[7][7] = value
    with pytest.raises(PixelValueError) as caught:
        from_numbers(nested, GREY)
    assert sentence in str(caught.value)
