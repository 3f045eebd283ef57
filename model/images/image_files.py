"""An image file -> the same picture in a file that holds nothing else. Decodes no pixel.

Text, colour profiles, thumbnails, EXIF and the later frames of an animation are no part of the
picture that is classified, and they may be dear: a text chunk of a PNG unpacks to a thousand times
its size. So decoders never see them. Of EXIF and XMP the orientation alone is read.
"""

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS")
_END_OF_IMAGE = b"\xff\xd9"
_MOST_SCANS = 4096
_MOST_PARTS = 2**15
"""Of a file: chunks, segments or blocks; what comes after them is passed over."""
_GIF_BLOCK = re.compile(rb"[!,;]")
_MOST_METADATA_BYTES = 2**16
_MOST_ENTRIES = 1000
"""Of an EXIF directory."""

_ORIENTATION = 0x0112
_WHOLE_NUMBERS = {3: "H", 4: "I"}
"""Types of EXIF that an orientation may have, as `struct` calls them."""
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""What ends the pixels of a JPEG's scan: neither a stuffed zero, nor a restart, nor a filler."""
_DATA_OF_A_JPEG = frozenset(
    {0xDB, 0xC4, 0xCC, 0xDD, 0xDC, 0xDA, 0xE0, 0xEE} | set(range(0xC0, 0xD0))
)
"""Markers of tables, frames, scans, and of the two that say which colours these are."""
_ANIMATED, _ALPHA = 0x02, 0x10
"""Flags of a WebP's VP8X chunk."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture's file, without anything else."""

    data: bytes
    orientation: int = 1
    """As EXIF has it, 1 to 8: how the picture is to be turned or mirrored."""
    size: tuple[int, int] | None = None
    """Width and height; None: the file's decoder finds them without making room for them."""
    scans: int = 1
    """How often a decoder goes over all the pixels."""
    run_bytes: int = 0
    """Length of what is in run-length encoding, which is decoded run by run."""
    has_end: bool = True
    """False: the mark after the last pixel is missing, and perhaps pixels too."""


def picture(data: bytes) -> Picture:
    """Take the picture out of a file; what is not of a known format is left as it is."""
    for magic, read in _FORMATS.items():
        if data.startswith(magic):
            return read(data)
    return Picture(data)


def _png(data: bytes) -> Picture:
    view = memoryview(data)
    kept: list[bytes | memoryview] = [_PNG]
    pixels: list[memoryview] = []
    orientation, xmp = None, b""
    place, in_pixels = len(_PNG), True
    for _ in range(_MOST_PARTS):
        if place + 8 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, place)
        content = view[place + 8 : place + 8 + length]
        if kind == b"IDAT" and in_pixels:
            pixels.append(content)
        elif pixels:  # the pixels are in chunks that follow each other
            in_pixels = False
        if kind in _PNG_KEPT and not pixels:
            kept.append(view[place : place + 12 + length])
        elif kind == b"eXIf":
            orientation = _orientation(bytes(content[:_MOST_METADATA_BYTES]))
        elif kind == b"iTXt" and length <= _MOST_METADATA_BYTES:
            xmp = xmp or bytes(content)
        elif kind == b"IEND" or not kind.isalpha():
            break
        place += 12 + length
    if pixels:
        kept += [_png_chunk(b"IDAT", b"".join(pixels)), _png_chunk(b"IEND", b"")]
    return Picture(b"".join(kept), orientation or _xmp_orientation(xmp))


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(content)), kind, content, struct.pack(">I", checksum)))


def _jpeg(data: bytes) -> Picture:
    kept: list[bytes | memoryview] = [data[:2]]
    metadata: list[bytes] = []
    place, scans, has_end = 2, 0, False
    view = memoryview(data)
    for _ in range(_MOST_PARTS):
        found = _MARKER.search(data, place)
        if found is None:
            break
        start = found.start()
        marker = data[start + 1]
        if scans:
            kept.append(view[place:start])  # the pixels of the scan
        if marker in (0xD8, 0xD9):  # another picture's beginning is an error, and this one's end
            has_end = True
            kept.append(view[start : start + 2])
            break
        if marker == 0x01:  # it has no length
            place = start + 2
            continue
        length = int.from_bytes(data[start + 2 : start + 4])
        place = start + 2 + max(2, length)
        if marker in _DATA_OF_A_JPEG:
            kept.append(view[start:place])
        elif marker == 0xE1 and not scans:
            metadata.append(data[start + 4 : place])
        scans += marker == 0xDA
        if scans > _MOST_SCANS:
            break
    if scans and not has_end:
        kept.append(view[place:])
    return Picture(
        b"".join(kept), _jpeg_orientation(metadata), scans=max(1, scans), has_end=has_end
    )


def _jpeg_orientation(segments: list[bytes]) -> int:
    exif = next((each for each in segments if each.startswith(b"Exif\0\0")), b"")
    xmp = next((each for each in segments if each.startswith(b"http://ns.adobe.com/xap/")), b"")
    return _orientation(exif) or _xmp_orientation(xmp)


def _gif(data: bytes) -> Picture:
    """Keep what belongs to the first frame."""
    colours = 3 * 2 ** ((data[10] & 7) + 1) if len(data) > 10 and data[10] & 0x80 else 0
    place = 13 + colours
    kept, control = [data[:place]], b""
    for _ in range(_MOST_PARTS):
        found = _GIF_BLOCK.search(data, place)
        if found is None:
            break
        place, kind = found.start(), found[0]
        if kind == b";":
            break
        if kind == b"!":
            end = _end_of_blocks(data, place + 2)
            if data[place + 1 : place + 2] == b"\xf9":
                control = data[place:end]
            place = end
        else:
            flags = data[place + 9] if place + 9 < len(data) else 0
            table = 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0
            end = _end_of_blocks(data, place + 10 + table + 1)
            kept += [control, data[place:end]]
            if end <= len(data):
                kept.append(b";")
            break
    return Picture(b"".join(kept))


def _end_of_blocks(data: bytes, place: int) -> int:
    """Find what follows a GIF's sub-blocks; beyond the end of the data if that comes first."""
    while place < len(data):
        length = data[place]
        place += 1 + length
        if not length:
            return place
    return len(data) + 1


def _bmp(data: bytes) -> Picture:
    is_run_length = len(data) >= 34 and data[14] >= 40 and data[30] in (1, 2)
    return Picture(data, run_bytes=len(data) if is_run_length else 0)


def _webp(data: bytes) -> Picture:
    """Keep what belongs to the first frame."""
    if data[8:12] != b"WEBP":
        return Picture(data)
    kept = [b"WEBP"]
    orientation, xmp, has_frame = None, b"", False
    for kind, start, end in _chunks(data):
        content = data[start + 8 : end]
        if kind == b"EXIF":
            orientation = _orientation(content[:_MOST_METADATA_BYTES])
        elif kind == b"XMP ":
            xmp = content[:_MOST_METADATA_BYTES]
        elif kind == b"VP8X" and content:
            flags = content[0] & (_ANIMATED | _ALPHA)  # the others speak of what is left out
            kept.append(data[start : start + 8] + bytes([flags]) + data[start + 9 : end])
        elif kind in (b"ANIM", b"ALPH"):
            kept.append(data[start:end])
        elif kind in (b"VP8 ", b"VP8L", b"ANMF") and not has_frame:
            has_frame = True
            kept.append(data[start:end])
    content = b"".join(kept)
    file = b"".join((b"RIFF", struct.pack("<I", len(content)), content))
    return Picture(file, orientation or _xmp_orientation(xmp), _webp_size(file))


def _chunks(data: bytes) -> list[tuple[bytes, int, int]]:
    """List a RIFF file's chunks: kind, where it starts, and where it ends with its padding."""
    chunks: list[tuple[bytes, int, int]] = []
    place = 12
    while place + 8 <= len(data) and len(chunks) < _MOST_PARTS:
        kind, length = struct.unpack_from("<4sI", data, place)
        end = place + 8 + length + length % 2
        chunks.append((kind, place, end))
        place = end
    return chunks


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Read the size of a WebP's canvas, for which its decoder makes room when it is opened."""
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


def _orientation(exif: bytes) -> int | None:
    """Read the orientation from EXIF, and nothing else of it; None: it has none that counts."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    found = None
    try:
        if order is None or struct.unpack_from(f"{order}H", exif, 2) != (42,):
            return None
        (place,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, place)
        for entry in range(min(entries, _MOST_ENTRIES)):
            at = place + 2 + 12 * entry
            tag, kind, count = struct.unpack_from(f"{order}HHI", exif, at)
            if tag == _ORIENTATION and kind in _WHOLE_NUMBERS and count == 1:
                (found,) = struct.unpack_from(order + _WHOLE_NUMBERS[kind], exif, at + 8)
    except struct.error:  # it is cut off
        pass
    return found


def _xmp_orientation(xmp: bytes) -> int:
    found = _XMP_ORIENTATION.search(xmp)
    return int(found[1]) if found else 1


_FORMATS: dict[bytes, Callable[[bytes], Picture]] = {
    _PNG: _png,
    _JPEG: _jpeg,
    b"GIF87a": _gif,
    b"GIF89a": _gif,
    b"BM": _bmp,
    b"RIFF": _webp,
}
