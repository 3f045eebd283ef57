"""Stripping of image files: metadata and further frames are removed. Decodes no pixel.

Text, colour profiles, thumbnails, EXIF and the later frames of an animation do not matter for the
classification, and may be expensive to read: a text chunk of a PNG unpacks to a thousand times its
size. So decoders never get them. Only the orientation, from EXIF and XMP, and the colour profile
are read.
"""

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS")
_PNG_METADATA = (b"eXIf", b"iTXt", b"iCCP")
_MAX_SCANS = 4096
_MAX_PARTS = 2**15
"""Most chunks, segments or blocks of a file; the rest of the file is ignored."""
_GIF_BLOCK = re.compile(rb"[!,;]")
_MAX_METADATA_BYTES = 2**16
_MAX_PROFILE_BYTES = 2**18
"""Most bytes of an unpacked colour profile of a PNG; a longer one is ignored."""
_MAX_EXIF_ENTRIES = 1000
"""Most entries of an EXIF directory that are read."""

_ORIENTATION_TAG, _ORIENTATIONS = 0x0112, range(1, 9)
_INTEGER_FORMATS = {3: "H", 4: "I"}
"""EXIF types that an orientation may have -> their format characters in `struct`."""
_TIFF_BYTE, _TIFF_POINTERS, _TIFF_UNKNOWN_TAG = 1, (4, 13), 65535
_TIFF_DIRECTORY_TAGS = (34665, 34853)
"""Tags that point to a further directory: EXIF and GPS."""
_TIFF_VALUE_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""TIFF types -> the bytes of one value; those of the others have one (TIFF 6.0, section 2)."""
_TIFF_INLINE_BYTES = 4
"""Longer values stand elsewhere in the file."""
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""A marker that ends the pixels of a scan: no stuffed zero, restart marker or fill byte."""
_JPEG_KEPT_MARKERS = frozenset(
    {0xDB, 0xC4, 0xCC, 0xDD, 0xDC, 0xDA, 0xE0, 0xEE} | set(range(0xC0, 0xD0))
)
"""Markers of tables, frames and scans, and of APP0 and APP14, which declare the colour space."""
_JPEG_PROFILE = b"ICC_PROFILE\0"
_ISOBMFF_EXIF_ITEM = re.compile(rb"(infe.{8,10})Exif", re.DOTALL)
"""The entry of an AVIF or HEIC file that declares one of its parts as EXIF (ISO/IEC 23008-12)."""
_WEBP_ANIMATED, _WEBP_ALPHA = 0x02, 0x10
"""Flags of the VP8X chunk of a WebP file."""


@dataclass(frozen=True, slots=True)
class StrippedImage:
    """An image file without metadata and further frames, and what its structure declares."""

    data: bytes
    orientation: int = 1
    """The EXIF orientation, 1 to 8: how to turn or mirror the image."""
    profile: bytes = b""
    """The ICC profile of its colours, unchecked; empty: it has none, or one that is too long."""
    size: tuple[int, int] | None = None
    """Width and height; None: the decoder reads them without allocating memory for pixels."""
    scans: int = 1
    """How many passes over all pixels a decoder makes."""
    run_length_bytes: int = 0
    """Bytes in run-length encoding, which are decoded run by run."""
    has_end: bool = True
    """False: the marker after the last pixel is missing, and perhaps pixels too."""


def strip_metadata(data: bytes) -> StrippedImage:
    """Remove metadata and further frames from a file; a file of an unknown format is unchanged."""
    for magic, strip in _STRIPPERS.items():
        if data.startswith(magic):
            return strip(data)
    if data[4:8] == b"ftyp":  # `irot` and `imir` turn these images, which EXIF must not repeat
        return StrippedImage(_ISOBMFF_EXIF_ITEM.sub(rb"\1skip", data, count=1))
    return StrippedImage(data)


def _strip_png(data: bytes) -> StrippedImage:
    view = memoryview(data)
    kept: list[bytes | memoryview] = [_PNG]
    pixels: list[memoryview] = []
    metadata: dict[bytes, bytes] = {}
    position, in_pixels = len(_PNG), True
    for _ in range(_MAX_PARTS):
        if position + 8 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, position)
        content = view[position + 8 : position + 8 + length]
        if kind == b"IDAT" and in_pixels:
            pixels.append(content)
        elif pixels:  # the chunks of the pixels are consecutive
            in_pixels = False
        if kind in _PNG_KEPT and not pixels:
            kept.append(view[position : position + 12 + length])
        elif kind in _PNG_METADATA:
            metadata.setdefault(kind, bytes(content[:_MAX_METADATA_BYTES]))
        elif kind == b"IEND" or not kind.isalpha():
            break
        position += 12 + length
    if pixels:
        kept += [_png_chunk(b"IDAT", b"".join(pixels)), _png_chunk(b"IEND", b"")]
    return StrippedImage(
        b"".join(kept),
        exif_orientation(metadata.get(b"eXIf", b""))
        or _xmp_orientation(metadata.get(b"iTXt", b"")),
        _unpacked_profile(metadata.get(b"iCCP", b"")),
    )


def _unpacked_profile(content: bytes) -> bytes:
    """Unpack the profile of an iCCP chunk; b"" if it is corrupt or too long."""
    if not content:
        return b""
    _name, _, packed = content.partition(b"\0")
    unpacker = zlib.decompressobj()
    try:
        profile = unpacker.decompress(packed[1:], _MAX_PROFILE_BYTES)
    except zlib.error:
        return b""
    return profile if unpacker.eof else b""


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(content)), kind, content, struct.pack(">I", checksum)))


def _strip_jpeg(data: bytes) -> StrippedImage:
    kept: list[bytes | memoryview] = [data[:2]]
    metadata: list[bytes] = []
    position, scans, has_end = 2, 0, False
    view = memoryview(data)
    for _ in range(_MAX_PARTS):
        found = _JPEG_MARKER.search(data, position)
        if found is None:
            break
        start = found.start()
        marker = data[start + 1]
        if scans:
            kept.append(view[position:start])  # the pixels of the scan
        if marker in (0xD8, 0xD9):  # the start of another image also ends this one
            has_end = True
            kept.append(view[start : start + 2])
            break
        if marker == 0x01:  # TEM, which has no length
            position = start + 2
            continue
        length = int.from_bytes(data[start + 2 : start + 4])
        position = start + 2 + max(2, length)
        if marker in _JPEG_KEPT_MARKERS:
            kept.append(view[start:position])
        elif marker in (0xE1, 0xE2) and not scans:
            metadata.append(data[start + 4 : position])
        scans += marker == 0xDA
        if scans > _MAX_SCANS:
            break
    if scans and not has_end:
        kept.append(view[position:])
    return StrippedImage(
        b"".join(kept),
        _jpeg_orientation(metadata),
        _jpeg_profile(metadata),
        scans=max(1, scans),
        has_end=has_end,
    )


def _jpeg_profile(segments: list[bytes]) -> bytes:
    """Join the parts of a profile, which are numbered from 1; b"" if one is missing."""
    start = len(_JPEG_PROFILE)
    parts = sorted(each[start:] for each in segments if each.startswith(_JPEG_PROFILE))
    if [part[:1] for part in parts] != [
        bytes([number]) for number in range(1, min(len(parts), 255) + 1)
    ]:
        return b""
    return b"".join(part[2:] for part in parts)


def _jpeg_orientation(segments: list[bytes]) -> int:
    exif = next((each for each in segments if each.startswith(b"Exif\0\0")), b"")
    xmp = next((each for each in segments if each.startswith(b"http://ns.adobe.com/xap/")), b"")
    return exif_orientation(exif) or _xmp_orientation(xmp)


def _strip_gif(data: bytes) -> StrippedImage:
    """Keep only what belongs to the first frame."""
    colours = 3 * 2 ** ((data[10] & 7) + 1) if len(data) > 10 and data[10] & 0x80 else 0
    position = 13 + colours
    kept, control = [data[:position]], b""
    for _ in range(_MAX_PARTS):
        found = _GIF_BLOCK.search(data, position)
        if found is None:
            break
        position, kind = found.start(), found[0]
        if kind == b";":
            break
        if kind == b"!":
            end = _end_of_blocks(data, position + 2)
            if data[position + 1 : position + 2] == b"\xf9":
                control = data[position:end]
            position = end
        else:
            flags = data[position + 9] if position + 9 < len(data) else 0
            table = 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0
            end = _end_of_blocks(data, position + 10 + table + 1)
            kept += [control, data[position:end]]
            if end <= len(data):
                kept.append(b";")
            break
    return StrippedImage(b"".join(kept))


def _end_of_blocks(data: bytes, position: int) -> int:
    """Return the position after the sub-blocks of a GIF; beyond the data if it is cut off."""
    while position < len(data):
        length = data[position]
        position += 1 + length
        if not length:
            return position
    return len(data) + 1


def _strip_bmp(data: bytes) -> StrippedImage:
    is_run_length = len(data) >= 34 and data[14] >= 40 and data[30] in (1, 2)
    return StrippedImage(data, run_length_bytes=len(data) if is_run_length else 0)


def _strip_webp(data: bytes) -> StrippedImage:
    """Keep only what belongs to the first frame."""
    if data[8:12] != b"WEBP":
        return StrippedImage(data)
    kept = [b"WEBP"]
    orientation, xmp, profile, has_frame = None, b"", b"", False
    for kind, start, end in _riff_chunks(data):
        content = data[start + 8 : end]
        if kind == b"EXIF":
            orientation = exif_orientation(content[:_MAX_METADATA_BYTES])
        elif kind == b"XMP ":
            xmp = content[:_MAX_METADATA_BYTES]
        elif kind == b"ICCP":
            profile = content
        elif kind == b"VP8X" and content:
            flags = content[0] & (_WEBP_ANIMATED | _WEBP_ALPHA)  # the other flags declare metadata
            kept.append(data[start : start + 8] + bytes([flags]) + data[start + 9 : end])
        elif kind in (b"ANIM", b"ALPH"):
            kept.append(data[start:end])
        elif kind in (b"VP8 ", b"VP8L", b"ANMF") and not has_frame:
            has_frame = True
            kept.append(data[start:end])
    content = b"".join(kept)
    file = b"".join((b"RIFF", struct.pack("<I", len(content)), content))
    return StrippedImage(file, orientation or _xmp_orientation(xmp), profile, _webp_size(file))


def _strip_tiff(data: bytes) -> StrippedImage:
    """Remove the entries of the first directory that lead outside the file.

    Those of metadata would end the reading of the directory; without those of the pixels, the image
    is still corrupt.
    """
    order = "<" if data.startswith(b"II") else ">"
    cured = None
    try:
        (position,) = struct.unpack_from(f"{order}I", data, 4)
        (entries,) = struct.unpack_from(f"{order}H", data, position)
        for start in range(position + 2, position + 2 + 12 * entries, 12):
            if _leads_outside(len(data), *struct.unpack_from(f"{order}HHII", data, start)):
                cured = cured or bytearray(data)
                struct.pack_into(f"{order}HHII", cured, start, _TIFF_UNKNOWN_TAG, _TIFF_BYTE, 1, 0)
    except struct.error:  # the directory is cut off
        pass
    return StrippedImage(data if cured is None else bytes(cured))


def _leads_outside(file_bytes: int, tag: int, kind: int, count: int, value: int) -> bool:
    """Return whether the values of an entry of a TIFF, or its EXIF, are not in the file."""
    if tag in _TIFF_DIRECTORY_TAGS:
        return kind not in _TIFF_POINTERS or value >= file_bytes
    length = count * _TIFF_VALUE_BYTES.get(kind, 1)
    return length > _TIFF_INLINE_BYTES and value + length > file_bytes


def _riff_chunks(data: bytes) -> list[tuple[bytes, int, int]]:
    """Return the chunks of a RIFF file: kind, start, and end with padding."""
    chunks: list[tuple[bytes, int, int]] = []
    position = 12
    while position + 8 <= len(data) and len(chunks) < _MAX_PARTS:
        kind, length = struct.unpack_from("<4sI", data, position)
        end = position + 8 + length + length % 2
        chunks.append((kind, position, end))
        position = end
    return chunks


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Read the canvas size of a WebP, for which its decoder allocates memory when it is opened."""
    kind = data[12:16]
    if len(data) < 30:
        return None
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def exif_orientation(exif: bytes) -> int | None:
    """Read the orientation from EXIF data; None if there is no valid one."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    orientation = None
    try:
        if order is None or struct.unpack_from(f"{order}H", exif, 2) != (42,):
            return None
        (position,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, position)
        for entry in range(min(entries, _MAX_EXIF_ENTRIES)):
            offset = position + 2 + 12 * entry
            tag, kind, count = struct.unpack_from(f"{order}HHI", exif, offset)
            if tag == _ORIENTATION_TAG and kind in _INTEGER_FORMATS and count == 1:
                (orientation,) = struct.unpack_from(
                    order + _INTEGER_FORMATS[kind], exif, offset + 8
                )
    except struct.error:  # the data are cut off
        pass
    return orientation if orientation in _ORIENTATIONS else None


def _xmp_orientation(xmp: bytes) -> int:
    match = _XMP_ORIENTATION.search(xmp)
    return int(match[1]) if match else 1


_STRIPPERS: dict[bytes, Callable[[bytes], StrippedImage]] = {
    _PNG: _strip_png,
    _JPEG: _strip_jpeg,
    b"GIF87a": _strip_gif,
    b"GIF89a": _strip_gif,
    b"BM": _strip_bmp,
    b"RIFF": _strip_webp,
    b"II*\0": _strip_tiff,
    b"MM\0*": _strip_tiff,
}
