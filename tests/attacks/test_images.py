"""Small image files that are costly to decode: metadata is skipped, and decoding is limited."""

import io
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageCms

from model.errors import ImageDecodeError, ImageTooLargeError
from model.images.file_formats import needs_isolation
from model.images.metadata_stripping import strip_metadata
from model.images.preprocessing import InputSpec, decode, open_all

GREY = InputSpec(channels=1, height=8, width=8, resize="pad")
STRETCHED = InputSpec(channels=1, height=8, width=8, resize="stretch")
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8)).astype(np.uint8)

PROCESSOR_SECONDS = 1.0


def encode(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    file = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png_with(*chunks: bytes) -> bytes:
    plain = encode("PNG")
    return plain[:33] + b"".join(chunks) + plain[33:]  # after the signature and IHDR


def png(width: int, height: int) -> bytes:
    """Build a black PNG of one bit per pixel."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + (width + 7) // 8) * height), 9)
    pieces = chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(pieces)


def exif(entries: int, orientation: int = 1) -> bytes:
    """Build EXIF data with an orientation, and a second tag of `entries` fractions."""
    place = 8 + 2 + 2 * 12 + 4
    upright = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    fractions = struct.pack(">HHII", 0xFDE8, 5, entries, place)
    directory = b"\0\2" + upright + fractions + bytes(4)
    return b"MM\0*\0\0\0\x08" + directory + struct.pack(">II", 355, 113) * entries


def jpeg_of_scans(scans: int, side: int) -> bytes:
    """Build a progressive JPEG whose last scan is repeated `scans` times."""
    data = encode("JPEG", Image.new("L", (side, side), 128), progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + b"\xff\xd9"


COMPRESSED_TEXT = zlib.compress(bytes(2**20 - 100), 9)


def bmp_of_runs(side: int) -> bytes:
    rows = (b"\1\0" * side + b"\0\0") * side + b"\0\1"
    start = 14 + 40 + 1024
    head = b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start)
    size = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(rows), 0, 0, 256, 0)
    return head + size + bytes(1024) + rows


def peak_bytes(use: Callable[[], object]) -> int:
    """Return the peak of Python's own memory, which holds decompressed text and parsed tags."""
    tracemalloc.start()
    try:
        use()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "file",
    [
        png_with(*[chunk(b"zTXt", b"k\0\0" + COMPRESSED_TEXT)] * 60),
        png_with(*[chunk(b"iTXt", b"k\0\1\0\0\0" + COMPRESSED_TEXT)] * 60),
        png_with(chunk(b"iCCP", b"k\0\0" + COMPRESSED_TEXT)),
        encode("PNG") + chunk(b"zTXt", b"k\0\0" + COMPRESSED_TEXT) * 60,
        png_with(chunk(b"eXIf", exif(100_000))),
        encode("JPEG", exif=b"Exif\0\0" + exif(8_000)),
        encode("WEBP", lossless=True, exif=b"no exif at all"),
        encode("GIF", comment=b"c" * 200_000),
    ],
    ids=["zTXt", "iTXt", "iCCP", "behind the end", "eXIf", "JPEG", "WebP", "GIF"],
)
def test_decode_skips_metadata_chunks_without_reading_them(file: bytes) -> None:
    plain = decode(encode("JPEG") if file.startswith(b"\xff\xd8") else encode("PNG"), GREY)
    assert len(strip_metadata(file).data) < 2_000
    began = time.process_time()
    np.testing.assert_array_equal(decode(file, GREY), plain)
    assert time.process_time() - began < PROCESSOR_SECONDS
    assert peak_bytes(lambda: decode(file, GREY)) < 3 * len(file) + 2**20


def test_decode_applies_the_exif_orientation_beside_large_tags() -> None:
    plain = decode(encode("PNG"), GREY)
    turned = decode(png_with(chunk(b"eXIf", exif(1000, orientation=6))), GREY)
    np.testing.assert_array_equal(turned[0], np.rot90(plain[0], -1))


def test_decode_limits_the_scans_of_a_jpeg_by_its_pixels() -> None:
    assert decode(jpeg_of_scans(50, 100), GREY).shape == (1, 8, 8)
    began = time.process_time()
    with pytest.raises(ImageTooLargeError, match=r"^The JPEG goes over its 5000 x 5000 pixels in "):
        decode(jpeg_of_scans(2500, 5000), GREY)
    assert time.process_time() - began < 2 * PROCESSOR_SECONDS  # most of it to build the file


def test_decode_ignores_bytes_after_the_end_of_a_jpeg() -> None:
    """Phones append a video to a photograph, which may contain any bytes."""
    data = encode("JPEG")
    film = data + b"\xff\xda\0\x08" * 10_000
    np.testing.assert_array_equal(decode(film, GREY), decode(data, GREY))


def test_decode_accepts_a_jpeg_that_lacks_only_its_end_marker() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    for progressive in (False, True):
        data = encode("JPEG", Image.fromarray(noise), progressive=progressive)
        np.testing.assert_array_equal(decode(data[:-2], GREY), decode(data, GREY))
        with pytest.raises(ImageDecodeError, match="its end is missing"):
            decode(data[:-200], GREY)


@pytest.mark.parametrize(("width", "height"), [(1, 25_000_000), (25_000_000, 1), (100, 200_000)])
def test_decode_limits_the_length_of_a_side(width: int, height: int) -> None:
    with pytest.raises(ImageTooLargeError, match="no side may have more than 131,072"):
        decode(png(width, height), GREY)


def test_decode_limits_the_intermediate_image_of_resizing() -> None:
    large = InputSpec(channels=1, height=8, width=512, resize="stretch")
    with pytest.raises(ImageTooLargeError, match="too long and narrow to be brought to 512 x 8"):
        decode(png(100, 130_000), large, max_pixels=25_000_000)
    with pytest.raises(ImageTooLargeError, match="too long and narrow to be brought to 8 x 8"):
        decode(png(1, 1000), GREY)
    assert decode(png(100, 130_000), STRETCHED).shape == (1, 8, 8)


@pytest.mark.parametrize("kind", ["TIFF", "AVIF", "PNG", "JPEG", "WEBP"])
def test_complex_decoders_and_colour_profiles_need_isolation(kind: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert needs_isolation(encode(kind, icc_profile=profile))
    assert needs_isolation(encode(kind)) == (kind in ("TIFF", "AVIF"))


def test_decode_limits_run_length_encoding() -> None:
    assert decode(bmp_of_runs(100), GREY).shape == (1, 8, 8)
    with pytest.raises(ImageTooLargeError, match=r"^The BMP has 2,\d+,\d+ bytes in run-length"):
        decode(bmp_of_runs(1000), GREY)


def test_webp_size_is_checked_before_the_decoder_allocates() -> None:
    large = encode("WEBP", Image.new("L", (3000, 3000)), lossless=True, method=0)
    assert strip_metadata(large).size == (3000, 3000)
    with pytest.raises(ImageTooLargeError, match="3000 x 3000 pixels, more than the 1,000,000"):
        open_all([large], max_pixels=1_000_000)


def test_open_all_opens_large_images_one_at_a_time() -> None:
    large = encode("WEBP", Image.new("L", (1100, 1100)), lossless=True, method=0)
    opened = open_all([encode("PNG"), large, large])
    assert [each.image is None for each in opened.images] == [False, True, True]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_decode_keeps_only_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3)).astype(np.uint8))
        for seed in range(20)
    ]
    file = encode(kind, frames[0], save_all=True, append_images=frames[1:])
    left = strip_metadata(file).data
    assert len(left) < len(file) / 10
    assert not getattr(Image.open(io.BytesIO(left)), "is_animated", False)
    np.testing.assert_array_equal(decode(file, GREY), decode(left, GREY))


def test_decode_composites_transparency_in_strips() -> None:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (1500, 1000, 4)).astype(np.uint8)
    image = Image.fromarray(colours, "RGBA")
    black = Image.new("RGBA", image.size, (0, 0, 0, 255))
    at_once = Image.alpha_composite(black, image).convert("L")
    spec = InputSpec(channels=1, height=1500, width=1000, resize="stretch")
    np.testing.assert_array_equal(decode(encode("PNG", image), spec)[0], np.asarray(at_once))
