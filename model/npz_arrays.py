"""Reading of NumPy's `.npz` archives from untrusted bytes, with bounded sizes. Knows no bundle.

A few bytes can unpack to many, and a header can declare any shape, so sizes and headers are checked
before anything is unpacked.
"""

import io
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray

MAX_ARRAYS_BYTES = 256 * 2**20
"""Most bytes of all arrays of one archive together, when unpacked."""

_HEADER_BYTES = 2**12
_SUFFIX = ".npy"
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class ArchiveError(ValueError):
    """The archive is damaged, or its content is not what was expected."""


@dataclass(frozen=True)
class ArraySpec:
    """The expected dtype of an array, and the largest size of each of its dimensions."""

    dtype: type[np.generic]
    shape: tuple[int, ...] = ()

    @property
    def max_bytes(self) -> int:
        """The size in bytes of the largest array that fits."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)


def max_archive_bytes(expected: Mapping[str, ArraySpec]) -> int:
    """Return the largest size of an archive of these arrays; deflate adds at most 0.1 %."""
    size = sum(spec.max_bytes for spec in expected.values())
    return min(size, MAX_ARRAYS_BYTES) * 1001 // 1000 + len(expected) * _HEADER_BYTES


def read_arrays(data: bytes, expected: Mapping[str, ArraySpec]) -> dict[str, NDArray[np.generic]]:
    """Read an archive that holds exactly the expected arrays.

    Raises:
        ArchiveError: it is damaged, lacks an array or has another one, or an array has another
            dtype or number of dimensions than expected, or is larger.
    """
    if len(data) > max_archive_bytes(expected):
        raise ArchiveError(f"it has {len(data):,} bytes, more than it may")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _check_members(archive.infolist(), expected)
            return {
                name: _read_array(archive, archive.getinfo(name + _SUFFIX), spec)
                for name, spec in expected.items()
            }
    except ArchiveError:
        raise
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError) as error:
        raise ArchiveError(str(error) or "it is damaged") from None
    except (NotImplementedError, RuntimeError, OverflowError, SyntaxError, TypeError) as error:
        raise ArchiveError(f"it is damaged: {error}") from None  # encrypted, split, odd headers


def _check_members(members: Sequence[zipfile.ZipInfo], expected: Mapping[str, ArraySpec]) -> None:
    names = sorted(member.filename for member in members)
    if names != sorted(name + _SUFFIX for name in expected):
        raise ArchiveError(f"it does not hold exactly {', '.join(sorted(expected))}")
    if sum(member.file_size for member in members) > MAX_ARRAYS_BYTES:
        raise ArchiveError(f"its arrays have more than {MAX_ARRAYS_BYTES:,} bytes")


def _read_array(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, spec: ArraySpec
) -> NDArray[np.generic]:
    name = member.filename.removesuffix(_SUFFIX)
    if member.compress_type not in _COMPRESSIONS or member.flag_bits & 1:
        raise ArchiveError(f"{name} is packed in a way that is not read here")
    if member.file_size > spec.max_bytes + _HEADER_BYTES:
        raise ArchiveError(f"{name} has {member.file_size:,} bytes, more than it may")
    with archive.open(member) as file:
        shape, fortran, dtype = _read_header(file)
        if dtype.hasobject:
            raise ArchiveError(f"{name} holds Python objects, which allow_pickle=False refuses")
        if dtype != spec.dtype or len(shape) != len(spec.shape):
            raise ArchiveError(f"{name} is {dtype} {list(shape)}, which it may not be")
        if any(size > limit for size, limit in zip(shape, spec.shape, strict=True)):
            raise ArchiveError(f"{name} is of shape {list(shape)}, larger than it may be")
        content = file.read()  # at most the size that was checked above
    if len(content) != dtype.itemsize * math.prod(shape):
        raise ArchiveError(f"{name} is cut short, or too long for its shape")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file, max_header_size=_HEADER_BYTES)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file, max_header_size=_HEADER_BYTES)
    raise ArchiveError("an array is of a later format")
