"""Conversion of decoded images to opaque grey or sRGB: colour profiles, CMYK, depth, transparency.

Works in strips, to save memory. Knows no file and no size that a network takes.
"""

from collections.abc import Iterator
from functools import lru_cache
from io import BytesIO
from typing import Literal

import numpy as np
from PIL import Image, ImageChops, ImageCms, ImageStat

from model.errors import ImageDecodeError

Mode = Literal["L", "RGB"]

_STRIP_PIXELS = 2**20
"""Size of the strips in which a large image is converted."""
_SIXTEEN_TO_EIGHT_BITS = 257  # 65535 / 255; Pillow's own conversion clips instead of scaling
_SIXTEEN_BIT_WHITE = 65535
_MOST_BITS = 16
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
"""Tags of a TIFF, and a value of the second (TIFF 6.0, section 8)."""
_DARK_LUMA = 48
"""Up to this mean luma, 0..255, what is visible of an image would vanish over black."""
_SRGB_NAMES = (b"sRGB", "sRGB".encode("utf-16-be"))
"""What the description of an sRGB profile contains, as ASCII or UTF-16."""
_PROFILE_SPACES = {"L": b"GRAY", "RGB": b"RGB ", "CMYK": b"CMYK"}
"""Pillow mode -> the colour space that its profile declares (ICC.1:2022, 7.2.6)."""


def to_opaque(image: Image.Image, mode: Mode, profile: bytes = b"") -> Image.Image:
    """Make a decoded image grey (ITU-R 601 luma) or sRGB, 8 bits, and opaque.

    Transparent pixels are laid over black, or over white where the mean luma of what is visible
    is at most 48 of 255, so that black ink on a transparent ground can be seen. A profile that is
    broken, or of another colour space than the image, is ignored.

    Raises:
        ImageDecodeError: the pixels are floats or have more than 16 bits: their range is unknown.
    """
    if image.mode == "F":
        raise ImageDecodeError("The image has float pixels; save it with 8 or 16 bits a channel.")
    if image.mode == "I" and np.abs(image.getextrema()).max() > _SIXTEEN_BIT_WHITE:
        raise ImageDecodeError(
            "The image has values beyond 16 bits, and nothing says which one is white; save it "
            "with 8 or 16 bits a channel."
        )
    if image.mode == mode and not profile and not image.has_transparency_data:
        return image
    _correct_file_conventions(image)
    whole = Image.new(mode, image.size)
    light = opacity = 0.0
    for box, strip in _strips(image):
        flat = _flat(strip, mode, profile)
        whole.paste(flat, box)
        if strip.has_transparency_data:
            light += ImageStat.Stat(flat.convert("L")).sum[0]
            opacity += ImageStat.Stat(_alpha(strip)).sum[0] / 255
    if opacity and light <= _DARK_LUMA * opacity:
        _put_white_below(whole, image)
    return whole


def _strips(image: Image.Image) -> Iterator[tuple[tuple[int, int, int, int], Image.Image]]:
    """Yield boxes of whole rows, and the parts of the image in them."""
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        yield box, image if image.height <= rows else image.crop(box)


def _correct_file_conventions(image: Image.Image) -> None:
    """Change in place what programs write otherwise than Pillow reads it.

    Many write 32-bit BMPs with an unused fourth byte of 0, and CMYK is stored inverted in a JPEG
    only where Adobe's marker is present. White is the highest value of 12 bits in a TIFF of 12
    bits, and 0 where the TIFF says so.
    """
    if image.format == "BMP" and image.mode == "RGBA" and not image.getchannel("A").getbbox():
        image.putalpha(255)
    if image.format == "JPEG" and image.mode == "CMYK" and "adobe" not in image.info:
        image.paste(ImageChops.invert(image))
    if image.mode.startswith("I;16"):
        bits = _tiff_value(image, _BITS_PER_SAMPLE) or _MOST_BITS
        if bits < _MOST_BITS:
            scale = _SIXTEEN_BIT_WHITE / (2**bits - 1)
            image.paste(image.point(lambda value: value * scale))
        if _tiff_value(image, _PHOTOMETRIC) == _WHITE_IS_ZERO:
            image.paste(image.point(lambda value: value * -1 + _SIXTEEN_BIT_WHITE))


def _tiff_value(image: Image.Image, tag: int) -> int | None:
    """Return the first value of a tag of a TIFF; None: it is no TIFF, or has no such tag."""
    value = getattr(image, "tag_v2", {}).get(tag)
    return value[0] if isinstance(value, tuple) else value


def _flat(image: Image.Image, mode: Mode, profile: bytes) -> Image.Image:
    """Convert an image to sRGB or grey, its transparent pixels over black."""
    if image.mode.startswith("I"):
        image = _with_eight_bits(image)
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, (0, 0, 0, 255))
        colours = Image.alpha_composite(opaque, image.convert("RGBA"))
        image = colours.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    elif image.mode not in _PROFILE_SPACES:  # palettes, one bit, YCbCr
        image = image.convert("L" if image.mode == "1" else "RGB")
    if profile and (transform := _transform_to_srgb(profile, image.mode)) is not None:
        image = transform.apply(image)
    return image.convert(mode)


def _with_eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16 bits a pixel (I;16, I;16B or I) to 8; one transparent value becomes alpha."""
    wide = np.asarray(image).astype(np.int64).clip(0, _SIXTEEN_BIT_WHITE)
    grey = Image.fromarray((wide // _SIXTEEN_TO_EIGHT_BITS).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is None:
        return grey
    alpha = Image.fromarray(np.where(wide == transparent, 0, 255).astype(np.uint8))
    return Image.merge("LA", (grey, alpha))


def _alpha(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = _with_eight_bits(image)
    return image.convert("RGBA").getchannel("A")


def _put_white_below(flat: Image.Image, image: Image.Image) -> None:
    """Change, in place, an image that lies over black into one that lies over white."""
    for box, strip in _strips(image):
        background = ImageChops.invert(_alpha(strip)).convert(flat.mode)
        flat.paste(ImageChops.add(flat.crop(box), background), box)


@lru_cache(maxsize=16)
def _transform_to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Build the transform from a profile to sRGB; None if there is nothing to transform."""
    is_srgb = any(name in profile for name in _SRGB_NAMES)
    if is_srgb or profile[16:20] != _PROFILE_SPACES.get(mode):
        return None
    try:
        return ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
