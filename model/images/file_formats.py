"""The formats of image files: which one a file has, and how its header is opened.

A file is opened by its first bytes with the one decoder of its format. Decodes no pixel.
"""

import io
import warnings
from collections.abc import Callable

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from model.errors import ImageDecodeError

FORMAT_NAMES = "PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF or HEIC"
FILE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".avif", ".heic", ".heif"),
)
"""Usual ends of the names of image files; what a file is, its first bytes say."""
FIRST_BYTES = 512
"""How many bytes of a file `file_format` looks at."""
_SIMPLE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Formats whose decoders are bounded by the declared pixels alone."""
_FORMATS_BY_MAGIC = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIF_BRANDS = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
)
_GREY_LEVELS = {"L;2": 3, "L;4": 15}
"""Pillow's raw modes of a grey PNG of 2 or 4 bits -> the level of white."""
_BMP_HEADER_SIZES = (12, 40, 52, 56, 64, 108, 124)
_PROFILE_MARKS = {"PNG": b"iCCP", "JPEG": b"ICC_PROFILE", "WEBP": b"ICCP"}

AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # whoever decodes many images has a thread for each
# For good: `catch_warnings` around the decoding of an image would mix up those of other threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


def file_format(data: bytes) -> str | None:
    """Return the format that the first bytes of a file declare; None: none that can be read."""
    for magic, name in _FORMATS_BY_MAGIC.items():
        if data.startswith(magic):
            return name
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _BMP_HEADER_SIZES:
        return "BMP"
    if data[4:8] == b"ftyp":
        return _format_by_brands(data)
    return None


def _format_by_brands(data: bytes) -> str | None:
    """Tell AVIF and HEIC apart by the brands of the file: the major one, then compatible ones."""
    end = min(int.from_bytes(data[:4]), FIRST_BYTES, len(data))
    brands = {data[8:12]} | {data[place : place + 4] for place in range(16, end, 4)}
    if brands & _AVIF_BRANDS:
        return "AVIF"
    return "HEIF" if brands & _HEIF_BRANDS else None


def needs_isolation(data: bytes) -> bool:
    """Return True for a file whose decoder may need far more than its size and pixels suggest.

    That is a format with a complex decoder, or a colour profile, which may hold large tables.
    """
    name = file_format(data)
    if name is None:
        return False
    if name not in _SIMPLE_FORMATS:
        return True
    mark = _PROFILE_MARKS.get(name)
    return mark is not None and mark in data


def open_header(data: bytes) -> Image.Image:
    """Open an image file, without decoding pixels.

    Raises:
        UnidentifiedImageError: it is no image of a known format, or its header is corrupt.
        ImageDecodeError: it is HEIC, and pillow-heif is not installed.
    """
    opener = _OPENERS.get(file_format(data) or "")
    if opener is None:
        raise UnidentifiedImageError
    try:
        return opener(io.BytesIO(data))
    except (SyntaxError, IndexError, TypeError, KeyError, EOFError):
        raise UnidentifiedImageError from None


def _open_png(file: io.BytesIO) -> Image.Image:
    """Open a PNG; its one transparent colour, if any, is brought to the depth that pixels get."""
    image = PngImagePlugin.PngImageFile(file)
    transparent = image.info.get("transparency")
    if transparent is not None and image.tile:
        depth = str(image.tile[0].args)
        if isinstance(transparent, int) and depth in _GREY_LEVELS:
            image.info["transparency"] = transparent * 255 // _GREY_LEVELS[depth]
        elif isinstance(transparent, tuple) and depth == "RGB;16B":
            image.info["transparency"] = tuple(value >> 8 for value in transparent)
    return image


def _open_tiff(file: io.BytesIO) -> Image.Image:
    """Open a TIFF; metadata of a wrong type, at which Pillow would fail, is left out."""
    image = TiffImagePlugin.TiffImageFile(file)
    for name in ("xmp", "icc_profile"):
        if not isinstance(image.info.get(name, b""), bytes):
            del image.info[name]
    return image


def _open_heif(file: io.BytesIO) -> Image.Image:
    try:
        import pillow_heif
    except ImportError:
        raise ImageDecodeError(
            "The image is HEIC, and pillow-heif, which decodes it, is not installed: send a JPEG, "
            "or install the package with `pip install '.[heif]'`."
        ) from None
    pillow_heif.options.DECODE_THREADS = 1
    pillow_heif.options.THUMBNAILS = False
    image: Image.Image = pillow_heif.HeifImageFile(file)
    return image


_OPENERS: dict[str, Callable[[io.BytesIO], Image.Image]] = {
    "PNG": _open_png,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": _open_tiff,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "HEIF": _open_heif,
}

FORMATS = tuple(_OPENERS)
"""Names of the formats that are decoded, HEIF with pillow-heif only."""
