"""Preprocessing of encoded images: files -> the uint8 array that a bundle's input declares.

Training decodes its folders and the service its requests with this module, so both have the same
pixels. Normalisation is not here: it is inside the exported graph.
"""

import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field

from model.errors import ImageDecodeError, ImageTooLargeError
from model.images.metadata_stripping import StrippedImage, strip_metadata

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_IMAGE_PIXELS = 25_000_000
"""Default limit on height x width of an encoded image, read from its header before decoding."""

P = ParamSpec("P")
T = TypeVar("T")
Mode = Literal["L", "RGB"]

_MAX_OPEN_PIXELS = 2**20
"""Most pixels of the images of a request that stay open at the same time."""
_STRIP_PIXELS = 2**20
"""Size of the strips in which the colour mode of a large image is converted."""
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
_JPEG_MAGIC = b"\xff\xd8"
PEAK_BYTES_PER_PIXEL = 18
"""Peak memory per pixel while an image of any format is decoded, made opaque and turned upright;
measured and rounded up."""
_PEAK_BYTES_BY_MAGIC = {
    b"RIFF": PEAK_BYTES_PER_PIXEL,
    _JPEG_MAGIC: 9,
    b"\x89PNG": 9,
    b"GIF8": 9,
    b"BM": 9,
}
"""The same by the first bytes of a file."""
_PEAK_BYTES_PROGRESSIVE_JPEG = 13
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

_FORMAT_NAMES = "PNG, JPEG, WebP, GIF or BMP"
_SIXTEEN_TO_EIGHT_BITS = 257  # 65535 / 255; Pillow's own conversion clips instead of scaling


class InputSpec(BaseModel):
    """The image a network takes, and the declared rule that makes one from any encoded image.

    An encoded image is turned upright (EXIF), its transparency laid over black, made grey (ITU-R
    601 luma) or RGB, then brought to height x width with bilinear, antialiased resampling: `crop`
    keeps the aspect ratio and cuts the longer side's ends, `pad` keeps it and adds black borders,
    `stretch` does not keep it. An image of the right size is used pixel for pixel. Of an animation
    the first frame counts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: Literal[1, 3] = Field(description="1 = grey, 3 = RGB")
    height: int = Field(ge=1, description="pixels")
    width: int = Field(ge=1, description="pixels")
    resize: Literal["crop", "pad", "stretch"] = Field(description="how another size is handled")


def decode(data: bytes, spec: InputSpec) -> NDArray[np.uint8]:
    """Decode one image of at most MAX_IMAGE_PIXELS to uint8 [C, H, W]; see `decode_all`."""
    image: NDArray[np.uint8] = decode_all([data], spec)[0]
    return image


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
    """Read the headers of PNG, JPEG, WebP, GIF or BMP files and check them against the limits.

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
    for file in files:
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
    def peak_bytes(self) -> int:
        """Upper bound on the memory that decoding takes, in addition to the file."""
        start = self.file.data[:4]
        per_pixel = next(
            (size for magic, size in _PEAK_BYTES_BY_MAGIC.items() if start.startswith(magic)), 9
        )
        if per_pixel == _PEAK_BYTES_BY_MAGIC[_JPEG_MAGIC] and self.file.scans > 1:
            per_pixel = _PEAK_BYTES_PROGRESSIVE_JPEG  # it keeps the coefficients of all scans
        return per_pixel * self.width * self.height


@dataclass(frozen=True)
class OpenImages:
    """Image files whose headers have been read and checked."""

    images: "Sequence[_OpenImage]"
    pixels: int
    """Sum of the height x width that the headers declare."""
    max_pixels: int
    """The limit on each image."""

    @property
    def peak_bytes(self) -> int:
        """Upper bound on the memory that `load` takes, in addition to the files."""
        return max(image.peak_bytes for image in self.images)

    def load(self, spec: InputSpec) -> NDArray[np.uint8]:
        """Decode the images one after the other to uint8 [N, C, H, W].

        Raises:
            ImageDecodeError: an image is truncated or corrupt.
            ImageTooLargeError: an image is so long and narrow that resizing needs too much memory.
        """
        pixels = np.empty((len(self.images), spec.channels, spec.height, spec.width), np.uint8)
        for row, image in enumerate(self.images):
            pixels[row] = _convert_errors(_load, image, spec, self.max_pixels)
        return pixels


def to_float(images: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale uint8 0..255 to float32 0..1, of any shape; return float32 unchanged."""
    if images.itemsize > 1:
        return images  # type: ignore[return-value]
    scaled = images.astype(np.float32)
    scaled /= np.float32(255)
    return scaled


def _convert_errors(step: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Call `step`, and convert all errors of Pillow's decoders into those of `model.errors`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # _open checks what Pillow's bomb warning is about
            return step(*arguments, **options)
    except (ImageTooLargeError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise ImageTooLargeError(
            "The image declares too many pixels; send a smaller one."
        ) from None
    except UnidentifiedImageError:
        raise ImageDecodeError(
            f"The file is not an image that can be read; send a {_FORMAT_NAMES} file."
        ) from None
    except Exception as error:
        reason = str(error).rstrip(".") or type(error).__name__
        raise ImageDecodeError(
            f"The image is truncated or corrupt ({reason}); send a whole {_FORMAT_NAMES} file."
        ) from None


def _open(data: bytes, max_pixels: int) -> _OpenImage:
    """Read and check the header, without decoding pixels."""
    file = strip_metadata(data)
    if file.size is not None:
        _require_size(*file.size, max_pixels)
    if file.run_length_bytes > _MAX_RUN_LENGTH_BYTES:
        raise ImageTooLargeError(
            f"The BMP has {file.run_length_bytes:,} bytes in run-length encoding, more than the "
            f"{_MAX_RUN_LENGTH_BYTES:,} allowed; save it as PNG."
        )
    image = _read_header(file.data)
    _require_size(image.width, image.height, max_pixels)
    if image.width * image.height * file.scans > _MAX_SCANS * max_pixels:
        raise ImageTooLargeError(
            f"The JPEG goes over its {image.width} x {image.height} pixels in {file.scans:,} "
            "scans, more than can be decoded in time; save it with fewer scans."
        )
    return _OpenImage(file, image, image.width, image.height)


def _read_header(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)


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
    mode = _mode(spec)
    if not opened.file.has_end:
        image = _decode_jpeg_without_end(opened.file, mode)
    else:
        image = _decode_pixels(opened.image or _read_header(opened.file.data), mode)
    transpose = _UPRIGHT_TRANSPOSES.get(opened.file.orientation)
    if transpose is not None:
        image = image.transpose(transpose)
    _require_fit(image, spec, max_pixels)
    return _as_array(_resize(image, spec), spec)


def _decode_pixels(image: Image.Image, mode: Mode) -> Image.Image:
    image.load()  # which also releases the decoder
    return _convert_mode(image, mode)


def _decode_jpeg_without_end(file: StrippedImage, mode: Mode) -> Image.Image:
    """Decode a JPEG without an end marker; it is complete if appended data changes no pixel."""
    image, other = (_decode_pixels(_read_header(file.data + end), mode) for end in _JPEG_ENDS)
    if image.tobytes() != other.tobytes():
        raise OSError("its end is missing")
    return image


def _require_fit(image: Image.Image, spec: InputSpec, max_pixels: int) -> None:
    """Check the size of the image between the two passes of resizing: the width comes first."""
    height = image.height
    if spec.resize == "crop":  # only the cropped image is resized
        height = min(height, math.ceil(image.width * spec.height / spec.width))
    most = max(max_pixels, image.width * image.height)
    too_narrow = spec.resize == "pad" and (
        round(image.width / image.height * spec.height) < 1
        or round(image.height / image.width * spec.width) < 1
    )
    if spec.width * height > most or too_narrow:
        raise ImageTooLargeError(
            f"The image of {image.width} x {image.height} pixels is too long and narrow to be "
            f"brought to {spec.width} x {spec.height}; cut it first."
        )


def fit_image(image: Image.Image, spec: InputSpec) -> NDArray[np.uint8]:
    """Convert the colour mode of an image, then its size, to those of `spec`: uint8 [C, H, W]."""
    return _as_array(_resize(_convert_mode(image, _mode(spec)), spec), spec)


def _as_array(image: Image.Image, spec: InputSpec) -> NDArray[np.uint8]:
    pixels = np.asarray(image, dtype=np.uint8).reshape(spec.height, spec.width, spec.channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _mode(spec: InputSpec) -> Mode:
    return "L" if spec.channels == 1 else "RGB"


def _convert_mode(image: Image.Image, mode: Mode) -> Image.Image:
    """Make an image grey or RGB, and opaque; a large one in strips, to save memory."""
    if image.mode == mode and not image.has_transparency_data:
        return image
    rows = max(1, _STRIP_PIXELS // image.width)
    if image.height <= rows:
        return _convert_mode_at_once(image, mode)
    whole = Image.new(mode, image.size)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        whole.paste(_convert_mode_at_once(image.crop(box), mode), box)
    return whole


def _convert_mode_at_once(image: Image.Image, mode: Mode) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel: I;16, I;16B or I
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray((wide // _SIXTEEN_TO_EIGHT_BITS).astype(np.uint8))
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(opaque, image.convert("RGBA"))
    return image.convert(mode)


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
