"""Preprocessing of images that are sent as numbers: nested lists or arrays of values in 0..1.

It checks shapes and values against a bundle's input. It decodes no file.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import ImageShapeError, PixelValueError
from model.images.preprocessing import InputSpec, numbering

_FLOAT_BITS = {4: (np.uint32, 0x3F80_0000), 8: (np.uint64, 0x3FF0_0000_0000_0000)}
"""Item size of a float -> the integer type of its bits, and the bits of 1.0."""
_ROUNDING = 0.01
"""How far outside 0..1 rounding and resampling may put a value, generously."""


def from_numbers(nested: Any, spec: InputSpec) -> NDArray[np.float32]:
    """Convert nested lists [H][W] (grey) or [H][W][C] of numbers in 0..1 to one image.

    Returns:
        float32 [C, H, W].

    Raises:
        ImageShapeError: the lists are ragged, or have another height, width or channel count.
        PixelValueError: a value is not a number, not finite, or outside 0..1.
    """
    if not isinstance(nested, list):
        _require_shape((), spec)
    types = _leaf_types(nested)  # before NumPy, which would allocate memory for any text
    if types - {int, float, list}:
        raise PixelValueError("A pixel is not a number; send numbers from 0 to 1.")
    if list in types:
        raise _ragged_error(spec)
    try:
        array = np.asarray(nested)
    except (ValueError, OverflowError):
        raise _ragged_error(spec) from None
    _require_shape(array.shape, spec)
    if array.dtype.kind not in "iuf":  # integers beyond 64 bits
        raise PixelValueError("A pixel is not a number; send numbers from 0 to 1.")
    pixels = array.astype(np.float64).reshape(spec.height, spec.width, spec.channels)
    _require_unit_range(pixels)
    return np.ascontiguousarray(pixels.astype(np.float32).transpose(2, 0, 1))


def from_tensor(values: NDArray[Any], spec: InputSpec) -> NDArray[np.float32]:
    """Check a float32 or float64 array [N, C, H, W] of values in 0..1, and return it as float32.

    Raises:
        ImageShapeError: the array has another height, width or channel count, or no image.
        PixelValueError: a value is not finite, or outside 0..1; the error has the image's number.
    """
    require_nchw(values.shape, spec)
    if not _in_unit_range(values):
        for number, image in enumerate(values):
            with numbering(number):
                _require_unit_range(image)
    return np.ascontiguousarray(values, np.float32)


def _in_unit_range(values: NDArray[Any]) -> bool:
    """Return True if all floats lie in 0..1, in one pass; False may also be due to -0.0.

    Read as integers, the bits of floats from 0 on have the order of the floats, and those of
    negative ones and NaN are larger than all of them (IEEE 754).
    """
    bits, one = _FLOAT_BITS[values.itemsize]
    flat = values.reshape(-1).view(bits)
    largest: int = flat.item(flat.argmax())  # faster than max()
    return largest <= one


def require_nchw(shape: tuple[int, ...], spec: InputSpec) -> None:
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
        got = "empty" if 0 in shape else " x ".join(map(str, shape)) or "a single value"
        raise ImageShapeError(f"The image is {got}, but this model takes {_describe_shape(spec)}.")


def _require_unit_range(pixels: NDArray[Any]) -> None:
    if not np.isfinite(pixels).all():
        raise PixelValueError("A pixel is NaN or infinite; send finite numbers from 0 to 1.")
    low, high = pixels.min(), pixels.max()
    if low < 0 or high > 1:
        worst, excess = (low, -low) if -low > high - 1 else (high, high - 1)
        if excess <= _ROUNDING:
            raise PixelValueError(
                f"A pixel is {worst}, just outside 0..1; clip the values to 0..1 before sending "
                "them."
            )
        raise PixelValueError(
            f"A pixel is {worst:.9g}, outside 0..1; divide 8-bit values by 255 before sending them."
        )


def _ragged_error(spec: InputSpec) -> ImageShapeError:
    return ImageShapeError(
        f"The image's rows differ in length or depth; send {_describe_shape(spec)}."
    )


def _leaf_types(nested: list[Any], depth: int = 3) -> set[type]:
    """Return the types of the leaves of nested lists; `list` among them means too deep."""
    types = set(map(type, nested))
    if list in types and depth > 1:
        types.discard(list)
        for row in nested:
            if isinstance(row, list):
                types |= _leaf_types(row, depth - 1)
    return types


def _describe_shape(spec: InputSpec) -> str:
    size = f"height {spec.height}, width {spec.width}"
    grey = f"[{spec.height}][{spec.width}] numbers ({size}, grey)"
    rgb = f"[{spec.height}][{spec.width}][3] numbers ({size}, RGB)"
    return grey if spec.channels == 1 else rgb
