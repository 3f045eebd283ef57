"""TIFF files that are small, and costly to decode: time and memory follow the declared pixels."""

import struct
import time
import zlib

import pytest

from model.errors import ImageDecodeError
from model.images.preprocessing import InputSpec, decode, open_all

SPEC = InputSpec(channels=1, height=8, width=8, resize="stretch")
PROCESSOR_SECONDS = 1.0
DEFLATE = 8


def tiff(side: int, parts: int, packed: bytes, *, tile: int = 0, more: int = 0) -> bytes:
    """Build a grey TIFF whose strips or tiles all are the same packed bytes.

    tile: width and height of a tile; 0 for strips. more: unknown tags, of one number each.
    """
    tags = {256: side, 257: side, 258: 8, 259: DEFLATE, 262: 1, 277: 1}
    tags |= {322: tile, 323: tile} if tile else {278: side // parts}
    tags |= dict.fromkeys(range(51_500, 51_500 + more), 1)
    places, lengths = (324, 325) if tile else (273, 279)
    start = 8 + 2 + 12 * (len(tags) + 2) + 4  # of the places, the lengths, and the packed bytes
    entries = [(tag, 1, value) for tag, value in tags.items()]
    place = start + 8 * parts if parts > 1 else start
    entries.append((places, parts, start if parts > 1 else place))
    entries.append((lengths, parts, start + 4 * parts if parts > 1 else len(packed)))
    directory = b"".join(struct.pack("<HHII", tag, 4, *rest) for tag, *rest in sorted(entries))
    lists = struct.pack("<I", place) * parts + struct.pack("<I", len(packed)) * parts
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + directory + bytes(4)
    return head + (lists if parts > 1 else b"") + packed


BOMB = zlib.compress(bytes(50_000_000), 9)


@pytest.mark.parametrize(
    "file",
    [
        tiff(1024, 1024, BOMB),
        tiff(1024, 4096, BOMB, tile=16),
        tiff(64, 1, BOMB),
        tiff(64, 1, zlib.compress(bytes(64 * 64)), more=4_000),
    ],
    ids=["strips", "tiles", "one strip", "tags"],
)
def test_decode_unpacks_no_more_of_a_tiff_than_its_pixels(file: bytes) -> None:
    start = time.process_time()
    assert not decode(file, SPEC).any()
    assert time.process_time() - start < PROCESSOR_SECONDS


def test_decode_refuses_a_tile_far_larger_than_the_image() -> None:
    file = tiff(64, 1, zlib.compress(bytes(1000)), tile=2**20)
    with pytest.raises(ImageDecodeError):
        decode(file, SPEC)


def test_open_all_survives_a_directory_that_follows_itself() -> None:
    file = tiff(64, 1, zlib.compress(bytes(64 * 64)))
    end = 8 + 2 + 12 * struct.unpack_from("<H", file, 8)[0]
    loop = file[:end] + struct.pack("<I", 8) + file[end + 4 :]
    assert open_all([loop]).load(SPEC).shape == (1, 1, 8, 8)
