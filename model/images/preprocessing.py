"""Preprocessing of encoded images: files -> the uint8 array that a bundle's input declares.

Training decodes its folders and the service its requests with this module, so both have the same
pixels. A JPEG is reduced while it is decoded, to no less than twice the size that is needed.
Normalisation is not here: it is inside the exported graph.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, JpegImagePlugin, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field

from model.errors import ImageDecodeError, ImageTooLargeError, InputError
from model.images.colour_conversion import Mode, to_opaque
from model.images.file_formats import FORMAT_NAMES, file_format, open_header
from model.images.metadata_stripping import StrippedImage, exif_orientation, strip_metadata

MAX_IMAGE_PIXELS = 250_000_000
"""Default limit on height x width of a trusted image file, read from its header before decoding."""

P = ParamSpec("P")
T = TypeVar("T")

_MAX_OPEN_PIXELS = 2**20
"""Most pixels of the images of a request that stay open at the same time."""
_MAX_SIDE = 2**17
"""Largest width or height of an image."""
_MAX_SCANS = 32
"""Most scans of a JPEG with the largest allowed size; a smaller one may have proportionally more.
"""
_MAX_RUN_LENGTH_BYTES = 2_000_000
"""Most run-length encoded bytes of a BMP. Pillow decodes them in a Python loop, and two bytes may
be one pixel."""
_JPEG_ENDS = (b"\xff\xd9", bytes(range(1, 128)) + b"\xff\xd9")
"""The end marker of a JPEG, and the same after data that would change unfinished pixels."""
PEAK_BYTES_PER_PIXEL = 18
"""Peak memory per pixel while an image of any format is decoded, made opaque and turned upright;
measured and rounded up."""
_PEAK_BYTES_BY_FORMAT = {"PNG": 9, "JPEG": 9, "GIF": 9, "BMP": 9}
"""The same of the formats that need less."""
_PEAK_BYTES_PROGRESSIVE_JPEG = 13
_COEFFICIENT_BYTES = 8
"""Part of it that a progressive JPEG needs even if it is reduced: 16 bits, four channels."""
_REDUCTIONS = (8, 4, 2)
"""The factors by which a JPEG may be reduced while it is decoded."""
_UPRIGHT_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the operation that turns the image upright (EXIF 2.32, 4.6.4)."""


class InputSpec(BaseModel):
    """The image a network takes, and the declared rule that makes one from any encoded image.

    An encoded image is turned upright (EXIF), its transparency laid over black (or over white,
    where black would hide it), made grey (ITU-R 601 luma) or sRGB, then brought to height x width
    with bilinear, antialiased resampling: `crop` keeps the aspect ratio and cuts the longer side's
    ends, `pad` keeps it and adds black borders, `stretch` does not keep it. A JPEG of at least
    four times that size is first reduced by libjpeg, to at least twice the size. An image of the
    right size is used pixel for pixel. Of an animation the first frame counts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: Literal[1, 3] = Field(description="1 = grey, 3 = RGB")
    height: int = Field(ge=1, description="pixels")
    width: int = Field(ge=1, description="pixels")
    resize: Literal["crop", "pad", "stretch"] = Field(description="how another size is handled")


def decode(data: bytes, spec: InputSpec, max_pixels: int = MAX_IMAGE_PIXELS) -> NDArray[np.uint8]:
    """Decode one image of at most `max_pixels` to uint8 [C, H, W]; see `decode_all`."""
    image: NDArray[np.uint8] = decode_all([data], spec, max_pixels)[0]
    return image


def open_upright(data: bytes, min_size: int, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Decode one image for further processing: upright, opaque, sRGB, its aspect ratio kept.

    Args:
        data: an encoded image of any of the formats.
        min_size: a JPEG whose shorter side has at least twice as many pixels may be returned
            reduced, but with a shorter side of at least this.
        max_pixels: limit on the height x width that its header declares.

    Raises:
        ImageDecodeError, ImageTooLargeError: see `open_all`.
    """
    opened = _convert_errors(_open, data, max_pixels)
    reduction = _largest_reduction(min(opened.width, opened.height) / min_size)
    return _convert_errors(_decode_upright, opened, "RGB", reduction)


def decode_all(
    files: Sequence[bytes],
    spec: InputSpec,
    max_pixels: int = MAX_IMAGE_PIXELS,
    max_total_pixels: int | None = None,
) -> NDArray[np.uint8]:
    """Decode image files to uint8 [N, C, H, W], after all headers were checked; see `open_all`."""
    return open_all(files, max_pixels, max_total_pixels).load(spec)


def open_all(
    files: Sequence[bytes],
    max_pixels: int = MAX_IMAGE_PIXELS,
    max_total_pixels: int | None = None,
) -> "OpenImages":
    """Read the headers of image files and check them against the limits.

    Args:
        files: N encoded images, N at least 1.
        max_pixels: limit on the height x width that each header declares.
        max_total_pixels: limit on the sum over all files; None for no limit.

    Raises:
        ImageDecodeError: a file is not an image of these formats, or its header is corrupt.
        ImageTooLargeError: a header or all together declare too many pixels, or a file takes too
            long to decode for its number of pixels.
    """
    images: list[_OpenImage] = []
    total = 0
    for number, file in enumerate(files):
        with numbering(number):
            image = _convert_errors(_open, file, max_pixels)
        total += image.width * image.height
        # Some decoders allocate when they are opened, so large images are opened one at a time.
        images.append(image if total <= _MAX_OPEN_PIXELS else image.closed())
    if max_total_pixels is not None and total > max_total_pixels:
        raise ImageTooLargeError(
            f"The images declare {total:,} pixels together, more than the {max_total_pixels:,} "
            "allowed; send fewer or smaller ones."
        )
    return OpenImages(images, total, max_pixels)


@dataclass(frozen=True, slots=True)
class _OpenImage:
    """An image file whose header has been read and checked."""

    file: StrippedImage
    image: Image.Image | None
    """None: it is closed, and has to be opened again."""
    width: int
    height: int

    def closed(self) -> "_OpenImage":
        """Return the same without the open image."""
        return replace(self, image=None)

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height after the image is turned upright."""
        is_turned = self.file.orientation in (5, 6, 7, 8)
        return (self.height, self.width) if is_turned else (self.width, self.height)

    def reduction(self, spec: InputSpec) -> int:
        """By how much its width and height may be divided, so that twice the target's are left."""
        width, height = self.upright_size
        ratios = width / spec.width, height / spec.height
        return _largest_reduction((max if spec.resize == "pad" else min)(ratios) / 2)

    def peak_bytes(self, spec: InputSpec) -> int:
        """Upper bound on the memory that decoding takes, in addition to the file."""
        kind = file_format(self.file.data) or ""
        per_pixel: float = _PEAK_BYTES_BY_FORMAT.get(kind, PEAK_BYTES_PER_PIXEL)
        if kind == "JPEG":
            reduction = self.reduction(spec)
            per_pixel /= reduction**2
            if self.file.scans > 1:  # it keeps the coefficients of all scans
                per_pixel = min(_PEAK_BYTES_PROGRESSIVE_JPEG, per_pixel + _COEFFICIENT_BYTES)
        return math.ceil(per_pixel * self.width * self.height)


@dataclass(frozen=True)
class OpenImages:
    """Image files whose headers have been read and checked."""

    images: "Sequence[_OpenImage]"
    pixels: int
    """Sum of the height x width that the headers declare."""
    max_pixels: int
    """The limit on each image."""

    def peak_bytes(self, spec: InputSpec) -> int:
        """Upper bound on the memory that `load` takes, in addition to the files."""
        return max(image.peak_bytes(spec) for image in self.images)

    def load(self, spec: InputSpec) -> NDArray[np.uint8]:
        """Decode the images one after the other to uint8 [N, C, H, W].

        Raises:
            ImageDecodeError: an image is truncated or corrupt.
            ImageTooLargeError: an image is so long and narrow that resizing needs too much memory.
        """
        pixels = np.empty((len(self.images), spec.channels, spec.height, spec.width), np.uint8)
        for row, image in enumerate(self.images):
            with numbering(row):
                pixels[row] = _convert_errors(_load, image, spec, self.max_pixels)
        return pixels


def to_float(images: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale uint8 0..255 to float32 0..1, of any shape; return float32 unchanged."""
    if images.itemsize > 1:
        return images  # type: ignore[return-value]
    scaled = images.astype(np.float32)
    scaled /= np.float32(255)
    return scaled


@contextmanager
def numbering(image: int) -> Iterator[None]:
    """Give an error within the block the number of the image that it is about."""
    try:
        yield
    except InputError as error:
        error.image = image
        raise


def _convert_errors(step: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Call `step`, and convert all errors of Pillow's decoders into those of `model.errors`."""
    try:
        return step(*arguments, **options)
    except (ImageDecodeError, ImageTooLargeError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise ImageDecodeError(
            f"The file is not an image that can be read; send a {FORMAT_NAMES} file."
        ) from None
    except Exception as error:
        reason = str(error).rstrip(".") or type(error).__name__
        raise ImageDecodeError(
            f"The image is truncated or corrupt ({reason}); send a whole {FORMAT_NAMES} file."
        ) from None


def _open(data: bytes, max_pixels: int) -> _OpenImage:
    """Read and check the header, without decoding pixels."""
    if not data:
        raise ImageDecodeError(f"The file is empty; send a {FORMAT_NAMES} file.")
    file = strip_metadata(data)
    if file.size is not None:
        _require_size(*file.size, max_pixels)
    if file.run_length_bytes > _MAX_RUN_LENGTH_BYTES:
        raise ImageTooLargeError(
            f"The BMP has {file.run_length_bytes:,} bytes in run-length encoding, more than the "
            f"{_MAX_RUN_LENGTH_BYTES:,} allowed; save it as PNG."
        )
    image = open_header(file.data)
    _require_size(image.width, image.height, max_pixels)
    if image.width * image.height * file.scans > _MAX_SCANS * max_pixels:
        raise ImageTooLargeError(
            f"The JPEG goes over its {image.width} x {image.height} pixels in {file.scans:,} "
            "scans, more than can be decoded in time; save it with fewer scans."
        )
    if image.info.get("icc_profile") and not file.profile:  # of TIFF, AVIF and HEIC
        file = replace(file, profile=image.info["icc_profile"])
    if image.format == "AVIF":  # Pillow gives its `irot` and `imir` as EXIF, and applies neither
        file = replace(file, orientation=exif_orientation(image.info.get("exif", b"")) or 1)
    return _OpenImage(file, image, image.width, image.height)


def _require_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"The image declares {width} x {height} pixels, more than the "
            f"{max_pixels:,} allowed; send a smaller one."
        )
    if max(width, height) > _MAX_SIDE:
        raise ImageTooLargeError(
            f"The image declares {width} x {height} pixels, and no side may have more than "
            f"{_MAX_SIDE:,}; cut it or make it smaller."
        )


def _load(opened: _OpenImage, spec: InputSpec, max_pixels: int) -> NDArray[np.uint8]:
    _require_fit(*opened.upright_size, spec, max_pixels)
    image = _decode_upright(opened, _mode(spec), opened.reduction(spec))
    return _as_array(_resize(image, spec), spec)


def _largest_reduction(ratio: float) -> int:
    """Return the largest factor of `_REDUCTIONS` up to `ratio`, or 1."""
    return next((factor for factor in _REDUCTIONS if factor <= ratio), 1)


def _decode_upright(opened: _OpenImage, mode: Mode, reduction: int) -> Image.Image:
    file = opened.file
    if file.has_end:
        image = _decode_pixels(opened.image or open_header(file.data), mode, opened, reduction)
    else:
        image = _decode_jpeg_without_end(opened, mode, reduction)
    transpose = _UPRIGHT_TRANSPOSES.get(file.orientation)
    return image if transpose is None else image.transpose(transpose)


def _decode_pixels(
    image: Image.Image, mode: Mode, opened: _OpenImage, reduction: int
) -> Image.Image:
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        drafted = None if opened.file.profile else mode  # a profile needs all of its channels
        size = max(1, image.width // reduction), max(1, image.height // reduction)
        image.draft(drafted, size)
        image.decodermaxblock = len(opened.file.data)  # the decoder gets the file at once
    image.load()  # which also releases the decoder
    return to_opaque(image, mode, opened.file.profile)


def _decode_jpeg_without_end(opened: _OpenImage, mode: Mode, reduction: int) -> Image.Image:
    """Decode a JPEG without an end marker; it is complete if appended data changes no pixel."""
    image, other = (
        _decode_pixels(open_header(opened.file.data + end), mode, opened, reduction)
        for end in _JPEG_ENDS
    )
    if image.tobytes() != other.tobytes():
        raise OSError("its end is missing")
    return image


def _require_fit(width: int, height: int, spec: InputSpec, max_pixels: int) -> None:
    """Check the size of the image between the two passes of resizing: the width comes first."""
    rows = height
    if spec.resize == "crop":  # only the cropped image is resized
        rows = min(height, math.ceil(width * spec.height / spec.width))
    most = max(max_pixels, width * height)
    too_narrow = spec.resize == "pad" and (
        round(width / height * spec.height) < 1 or round(height / width * spec.width) < 1
    )
    if spec.width * rows > most or too_narrow:
        raise ImageTooLargeError(
            f"The image of {width} x {height} pixels is too long and narrow to be "
            f"brought to {spec.width} x {spec.height}; cut it first."
        )


def fit_image(image: Image.Image, spec: InputSpec) -> NDArray[np.uint8]:
    """Convert the colour mode of an image, then its size, to those of `spec`: uint8 [C, H, W]."""
    return _as_array(_resize(to_opaque(image, _mode(spec)), spec), spec)


def _as_array(image: Image.Image, spec: InputSpec) -> NDArray[np.uint8]:
    pixels = np.asarray(image, dtype=np.uint8).reshape(spec.height, spec.width, spec.channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _mode(spec: InputSpec) -> Mode:
    return "L" if spec.channels == 1 else "RGB"


def _resize(image: Image.Image, spec: InputSpec) -> Image.Image:
    size = (spec.width, spec.height)
    if image.size == size:
        return image
    bilinear = Image.Resampling.BILINEAR
    if spec.resize == "crop":
        return ImageOps.fit(image, size, method=bilinear)
    if spec.resize == "pad":
        return ImageOps.pad(image, size, method=bilinear, color=0)
    return image.resize(size, bilinear)
