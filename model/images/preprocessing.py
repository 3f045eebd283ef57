"""Image bytes or nested numbers -> the array a bundle declares. The one preprocessing.

Training reads its folders with it and the service its requests, so both see the same pixels.
Normalisation is not here: it is inside the exported graph.
"""

import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, Field

from model.errors import ImageDecodeError, ImageShapeError, ImageTooLargeError, PixelValueError
from model.images.image_files import Picture, picture

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_IMAGE_PIXELS = 25_000_000
"""Default limit on height x width of an encoded image, read from its header before decoding."""

P = ParamSpec("P")
T = TypeVar("T")
Mode = Literal["L", "RGB"]

_FEW_PIXELS = 2**20
"""Of the images of a request that are all open at once."""
_STRIP_PIXELS = 2**20
_LONGEST_SIDE = 2**17
_MOST_SCANS = 32
"""Of a JPEG with as many pixels as are allowed; of a smaller one more in proportion."""
_MOST_RUN_BYTES = 2_000_000
"""Pillow decodes them in a loop in Python: two bytes may be one pixel."""
_ENDS = (b"\xff\xd9", bytes(range(1, 128)) + b"\xff\xd9")
"""Of a JPEG: its end mark, and the same after data that would show in unfinished pixels."""
_JPEG_MAGIC = b"\xff\xd8"
PEAK_BYTES_OF_A_PIXEL = 18
"""Of memory while an image of any format is decoded, made opaque and turned; measured, rounded up.
"""
_PEAK_BYTES = {b"RIFF": PEAK_BYTES_OF_A_PIXEL, _JPEG_MAGIC: 9, b"\x89PNG": 9, b"GIF8": 9, b"BM": 9}
"""The same by the first bytes of a file."""
_PEAK_BYTES_OF_SCANS = 13
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings an image of each orientation upright (EXIF 2.32, 4.6.4)."""

_FORMAT_NAMES = "PNG, JPEG, WebP, GIF or BMP"
_BITS = {4: (np.uint32, 0x3F80_0000), 8: (np.uint64, 0x3FF0_0000_0000_0000)}  # of 1.0
_SIXTEEN_BITS = 257  # 65535 / 255: Pillow's own conversion to 8 bits clips instead of scaling


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
    """Decode one image, without a limit on its pixels but `MAX_IMAGE_PIXELS`; see `decode_all`."""
    image: NDArray[np.uint8] = decode_all([data], spec)[0]
    return image


def decode_all(
    files: Sequence[bytes],
    spec: InputSpec,
    max_pixels: int = MAX_IMAGE_PIXELS,
    max_total_pixels: int | None = None,
) -> NDArray[np.uint8]:
    """Decode image files, once all their headers are within the limits; see `open_all`."""
    return open_all(files, max_pixels, max_total_pixels).load(spec)


def open_all(
    files: Sequence[bytes],
    max_pixels: int = MAX_IMAGE_PIXELS,
    max_total_pixels: int | None = None,
) -> "OpenImages":
    """Read the headers of PNG, JPEG, WebP, GIF or BMP files, and hold them to the limits.

    Args:
        files: N encoded images, N at least 1.
        max_pixels: limit on height x width of each, as its header declares them.
        max_total_pixels: limit on their sum; None for no limit.

    Raises:
        ImageDecodeError: a file is not an image of these formats, or its header is corrupt.
        ImageTooLargeError: a header declares too many pixels, or all do together, or more work than
            pixels should take.
    """
    images: list[_Opened] = []
    total = 0
    for file in files:
        opened = _guarded(_open, file, max_pixels)
        total += opened.width * opened.height
        # Of large images one at a time is open: some decoders make room when they are opened.
        images.append(opened if total <= _FEW_PIXELS else opened.closed())
    if max_total_pixels is not None and total > max_total_pixels:
        raise ImageTooLargeError(
            f"The images declare {total:,} pixels together, more than the {max_total_pixels:,} "
            "allowed; send fewer or smaller ones."
        )
    return OpenImages(images, total, max_pixels)


@dataclass(frozen=True, slots=True)
class _Opened:
    """An image of which the header is read."""

    file: Picture
    image: Image.Image | None
    """None: it is to be opened again."""
    width: int
    height: int

    def closed(self) -> "_Opened":
        """Give up what was opened."""
        return replace(self, image=None)

    @property
    def peak_bytes(self) -> int:
        """Memory that it takes to decode it, at most, beside its file."""
        kind = self.file.data[:4]
        each = next((size for magic, size in _PEAK_BYTES.items() if kind.startswith(magic)), 9)
        if each == _PEAK_BYTES[_JPEG_MAGIC] and self.file.scans > 1:
            each = _PEAK_BYTES_OF_SCANS  # a decoder keeps the coefficients of all its scans
        return each * self.width * self.height


@dataclass(frozen=True)
class OpenImages:
    """Images of which the headers are read."""

    images: "Sequence[_Opened]"
    pixels: int
    """Of all together, as they declare."""
    max_pixels: int

    @property
    def peak_bytes(self) -> int:
        """Memory that it takes to decode them one after the other, at most, beside the files."""
        return max(each.peak_bytes for each in self.images)

    def load(self, spec: InputSpec) -> NDArray[np.uint8]:
        """Decode them one after the other to uint8 [N, C, H, W].

        Raises:
            ImageDecodeError: one is truncated or corrupt.
            ImageTooLargeError: one is so long and narrow that to resize it would take too much.
        """
        images = np.empty((len(self.images), spec.channels, spec.height, spec.width), np.uint8)
        for row, opened in enumerate(self.images):
            images[row] = _guarded(_load, opened, spec, self.max_pixels)
        return images


def to_float(images: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale uint8 0..255 to float32 0..1, any shape; float32 is left as it is."""
    if images.itemsize > 1:
        return images  # type: ignore[return-value]
    scaled = images.astype(np.float32)
    scaled /= np.float32(255)
    return scaled


def from_numbers(nested: Any, spec: InputSpec) -> NDArray[np.float32]:
    """Turn nested lists [H][W] (grey) or [H][W][C] of numbers in 0..1 into one image.

    Returns:
        float32 [C, H, W].

    Raises:
        ImageShapeError: ragged, or of another height, width or channel count.
        PixelValueError: something that is no number, is not finite, or lies outside 0..1.
    """
    if not isinstance(nested, list):
        _require_shape((), spec)
    types = _leaf_types(nested)  # before NumPy, which would make room for any text it finds
    if types - {int, float, list}:
        raise PixelValueError("A pixel is not a number; send numbers from 0 to 1.")
    if list in types:
        raise _ragged(spec)
    try:
        array = np.asarray(nested)
    except (ValueError, OverflowError):
        raise _ragged(spec) from None
    _require_shape(array.shape, spec)
    if array.dtype.kind not in "iuf":  # integers beyond 64 bits
        raise PixelValueError("A pixel is not a number; send numbers from 0 to 1.")
    pixels = array.astype(np.float64).reshape(spec.height, spec.width, spec.channels)
    _require_unit_range(pixels)
    return np.ascontiguousarray(pixels.astype(np.float32).transpose(2, 0, 1))


def from_tensor(values: NDArray[Any], spec: InputSpec) -> NDArray[np.float32]:
    """Check an array [N, C, H, W] of numbers in 0..1, and return it as float32.

    Raises:
        ImageShapeError: another height, width or channel count.
        PixelValueError: a value that is not finite, or lies outside 0..1.
    """
    require_planes(values.shape, spec)
    if not _in_unit_range(values):
        _require_unit_range(values)
    return np.ascontiguousarray(values, np.float32)


def _in_unit_range(values: NDArray[Any]) -> bool:
    """Tell in one pass whether all floats lie in 0..1, or that it takes a closer look.

    As whole numbers, the bits of floats from 0 are in the floats' order, and those of negative ones
    and NaN are above them all (IEEE 754).
    """
    bits, one = _BITS[values.itemsize]
    flat = values.reshape(-1).view(bits)
    highest: int = flat.item(flat.argmax())  # which is faster than max()
    return highest <= one


def require_planes(shape: tuple[int, ...], spec: InputSpec) -> None:
    """Raise ImageShapeError unless `shape` is [N, C, H, W] with N at least 1."""
    expected = (spec.channels, spec.height, spec.width)
    if len(shape) != 4 or shape[1:] != expected or not shape[0]:
        rest = ", ".join(map(str, expected))
        raise ImageShapeError(
            f"The images are of shape {list(shape)}, but this model takes [N, {rest}]; N is 1 or "
            "more."
        )


def _require_shape(shape: tuple[int, ...], spec: InputSpec) -> None:
    with_channels = (spec.height, spec.width, spec.channels)
    accepted = {with_channels} | ({with_channels[:2]} if spec.channels == 1 else set())
    if shape not in accepted:
        got = " x ".join(map(str, shape)) or "a single value"
        raise ImageShapeError(f"The image is {got}, but this model takes {_expected(spec)}.")


def _require_unit_range(pixels: NDArray[Any]) -> None:
    if not np.isfinite(pixels).all():
        raise PixelValueError("A pixel is NaN or infinite; send finite numbers from 0 to 1.")
    low, high = pixels.min(), pixels.max()
    if low < 0 or high > 1:
        worst = low if low < 0 else high
        raise PixelValueError(
            f"A pixel is {worst:.9g}, outside 0..1; divide 8-bit values by 255 before sending them."
        )


def _ragged(spec: InputSpec) -> ImageShapeError:
    return ImageShapeError(f"The image's rows differ in length or depth; send {_expected(spec)}.")


def _leaf_types(nested: list[Any], depth: int = 3) -> set[type]:
    """Collect the types of the leaves of nested lists; `list` among them means too deep."""
    types = set(map(type, nested))
    if list in types and depth > 1:
        types.discard(list)
        for row in nested:
            if isinstance(row, list):
                types |= _leaf_types(row, depth - 1)
    return types


def _expected(spec: InputSpec) -> str:
    size = f"height {spec.height}, width {spec.width}"
    grey = f"[{spec.height}][{spec.width}] numbers ({size}, grey)"
    rgb = f"[{spec.height}][{spec.width}][3] numbers ({size}, RGB)"
    return grey if spec.channels == 1 else rgb


def _guarded(step: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Turn whatever Pillow's decoders raise on bad data into one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # _open's check replaces Pillow's bomb warning
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


def _open(data: bytes, max_pixels: int) -> _Opened:
    """Read the header alone."""
    file = picture(data)
    if file.size is not None:
        _require_size(*file.size, max_pixels)
    if file.run_bytes > _MOST_RUN_BYTES:
        raise ImageTooLargeError(
            f"The BMP has {file.run_bytes:,} bytes in run-length encoding, more than the "
            f"{_MOST_RUN_BYTES:,} allowed; save it as PNG."
        )
    image = _read_header(file.data)
    _require_size(image.width, image.height, max_pixels)
    if image.width * image.height * file.scans > _MOST_SCANS * max_pixels:
        raise ImageTooLargeError(
            f"The JPEG goes over its {image.width} x {image.height} pixels in {file.scans:,} "
            "scans, more than can be decoded in time; save it with fewer scans."
        )
    return _Opened(file, image, image.width, image.height)


def _read_header(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)


def _require_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"The image declares {width} x {height} pixels, more than the "
            f"{max_pixels:,} allowed; send a smaller one."
        )
    if max(width, height) > _LONGEST_SIDE:
        raise ImageTooLargeError(
            f"The image declares {width} x {height} pixels, and no side may have more than "
            f"{_LONGEST_SIDE:,}; cut it or make it smaller."
        )


def _load(opened: _Opened, spec: InputSpec, max_pixels: int) -> NDArray[np.uint8]:
    mode = _mode(spec)
    if not opened.file.has_end:
        image = _without_end(opened.file, mode)
    else:
        image = _decoded(opened.image or _read_header(opened.file.data), mode)
    turn = _TURNS.get(opened.file.orientation)
    if turn is not None:
        image = image.transpose(turn)
    _require_fit(image, spec, max_pixels)
    return _as_array(_resize(image, spec), spec)


def _decoded(image: Image.Image, mode: Mode) -> Image.Image:
    """Decode, and let go what the decoder holds."""
    image.load()
    return _colour(image, mode)


def _without_end(file: Picture, mode: Mode) -> Image.Image:
    """Decode a JPEG that lacks its end mark: whole, if what follows makes no difference."""
    image, other = (_decoded(_read_header(file.data + end), mode) for end in _ENDS)
    if image.tobytes() != other.tobytes():
        raise OSError("its end is missing")
    return image


def _require_fit(image: Image.Image, spec: InputSpec, max_pixels: int) -> None:
    """Bound what lies between the two passes of resizing: the width is brought to size first."""
    height = image.height
    if spec.resize == "crop":  # only what is left of it is resized
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
    """Fit any image to `spec`, colour first, then size: uint8 [C, H, W]."""
    return _as_array(_resize(_colour(image, _mode(spec)), spec), spec)


def _as_array(image: Image.Image, spec: InputSpec) -> NDArray[np.uint8]:
    pixels = np.asarray(image, dtype=np.uint8).reshape(spec.height, spec.width, spec.channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _mode(spec: InputSpec) -> Mode:
    return "L" if spec.channels == 1 else "RGB"


def _colour(image: Image.Image, mode: Mode) -> Image.Image:
    """Make an image grey or RGB, and opaque; a large one in strips, to need little more room."""
    if image.mode == mode and not image.has_transparency_data:
        return image
    rows = max(1, _STRIP_PIXELS // image.width)
    if image.height <= rows:
        return _coloured(image, mode)
    whole = Image.new(mode, image.size)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        whole.paste(_coloured(image.crop(box), mode), box)
    return whole


def _coloured(image: Image.Image, mode: Mode) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel: I;16, I;16B or I
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray((wide // _SIXTEEN_BITS).astype(np.uint8))
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
