"""Whole pictures as cameras, phones and programs write them: none is refused for its metadata."""

import io
import struct
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from model.errors import ImageDecodeError, ImageTooLargeError
from model.images.file_formats import needs_isolation
from model.images.preprocessing import InputSpec, decode, open_all, open_upright

RGB = InputSpec(channels=3, height=16, width=16, resize="stretch")
GREY = InputSpec(channels=1, height=16, width=16, resize="stretch")
SPECS = [
    InputSpec(channels=channels, height=16, width=24, resize=resize)
    for channels in (1, 3)
    for resize in ("crop", "pad", "stretch")
]


def photograph(width: int, height: int) -> Image.Image:
    """Draw smooth colours with fine noise."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3)).astype(np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    pixels += rng.normal(0, 8, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


PICTURE = photograph(16, 16)
PIXELS = np.asarray(PICTURE).transpose(2, 0, 1)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png_with(*chunks: bytes, image: Image.Image = PICTURE) -> bytes:
    plain = encoded(image, "PNG")
    return plain[:33] + b"".join(chunks) + plain[33:]  # after the signature and IHDR


def jpeg_with(marker: int, content: bytes) -> bytes:
    plain = encoded(PICTURE, "JPEG", quality=95)
    segment = bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content
    return plain[:2] + segment + plain[2:]


def distance(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Return the mean absolute difference of two images in 0..255."""
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


def swapping_profile() -> bytes:
    """Build an RGB profile, from that of sRGB, whose red and blue primaries are swapped."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    names = {bytes(profile[at : at + 4]): at for at in range(132, 132 + 12 * 30, 12)}
    profile[names[b"rXYZ"] : names[b"rXYZ"] + 4] = b"bXYZ"
    profile[names[b"bXYZ"] : names[b"bXYZ"] + 4] = b"rXYZ"
    return bytes(profile).replace(b"s\0R\0G\0B", b"x\0R\0G\0B").replace(b"\0s\0R\0G", b"\0x\0R\0G")


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.resize}-{spec.channels}")
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("progressive", [False, True])
def test_reduced_jpeg_looks_like_the_whole_one(
    spec: InputSpec, orientation: int, progressive: bool
) -> None:
    image = photograph(420, 310)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(image, "JPEG", quality=95, progressive=progressive, exif=exif)
    (opened,) = open_all([file]).images
    assert opened.reduction(spec) in (4, 8)
    whole = decode(encoded(Image.open(io.BytesIO(file)), "PNG", exif=exif), spec)
    assert distance(decode(file, spec), whole) < 3  # at an eighth, a pixel is a mean of 64
    np.testing.assert_array_equal(decode(file, spec), decode(file, spec))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.resize}-{spec.channels}")
@pytest.mark.parametrize("size", [(420, 310), (97, 400), (64, 48), (33, 47), (300, 30)])
def test_jpeg_is_reduced_to_no_less_than_twice_the_needed_size(
    spec: InputSpec, size: tuple[int, int]
) -> None:
    file = encoded(photograph(*size), "JPEG")
    (opened,) = open_all([file]).images
    reduction = opened.reduction(spec)
    ratios = size[0] / spec.width, size[1] / spec.height
    ratio = max(ratios) if spec.resize == "pad" else min(ratios)
    assert reduction == 1 or reduction * 2 <= ratio
    assert reduction == 8 or reduction * 4 > ratio
    assert opened.peak_bytes(spec) <= 9 * size[0] * size[1]


def test_open_upright_keeps_the_aspect_ratio_and_the_least_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = open_upright(encoded(photograph(400, 300), "JPEG", exif=exif), min_size=100)
    assert (image.mode, image.size) == ("RGB", (150, 200))
    assert open_upright(encoded(photograph(40, 30), "JPEG"), min_size=100).size == (40, 30)


@pytest.mark.parametrize(
    "file",
    [
        png_with(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2_000_000)))),
        png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<" * 90_000)),
        png_with(chunk(b"eXIf", b"garbage")),
        png_with(chunk(b"iCCP", b"name\0\0not packed")),
        png_with(chunk(b"iCCP", b"name\0\0" + zlib.compress(b"no profile" * 30))),
        png_with(chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(5_000_000)))),
        png_with(chunk(b"iCCP", b"")),
        png_with(chunk(b"tIME", b"\0"), chunk(b"gAMA", b"\0"), chunk(b"sRGB", b"\xff")),
        encoded(PICTURE, "WEBP", lossless=True, exif=b"garbage", icc_profile=b"garbage"),
        encoded(PICTURE, "WEBP", lossless=True, xmp=b"\xff" * 1000),
        encoded(PICTURE, "BMP"),
        encoded(PICTURE, "TIFF"),
        encoded(PICTURE, "TIFF", icc_profile=b"garbage"),
        encoded(PICTURE, "TIFF", compression="tiff_lzw"),
        encoded(PICTURE, "TIFF", save_all=True, append_images=[Image.new("RGB", (16, 16))]),
        encoded(PICTURE.convert("RGBA"), "PNG"),
    ],
)  # fmt: skip
def test_metadata_never_changes_the_pixels_of_a_lossless_picture(file: bytes) -> None:
    np.testing.assert_array_equal(decode(file, RGB), PIXELS)


@pytest.mark.parametrize(
    "file",
    [
        jpeg_with(0xE1, b"Exif\0\0garbage"),
        jpeg_with(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"),
        jpeg_with(0xE2, b"ICC_PROFILE\0\1\1no profile"),
        jpeg_with(0xE2, b"ICC_PROFILE\0\1\2the second part is missing"),
        jpeg_with(0xE2, b"ICC_PROFILE\0"),
        jpeg_with(0xE2, b"MPF\0garbage"),
        jpeg_with(0xED, b"Photoshop 3.0\0" + bytes(50_000)),
        jpeg_with(0xFE, b"\xff" * 60_000),
        encoded(PICTURE, "JPEG", quality=95)[:-2],
        encoded(PICTURE, "JPEG", quality=95) + b"\0" * 1000,
    ],
)
def test_metadata_never_changes_the_pixels_of_a_jpeg(file: bytes) -> None:
    plain = decode(encoded(PICTURE, "JPEG", quality=95), RGB)
    np.testing.assert_array_equal(decode(file, RGB), plain)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG", "AVIF"])
def test_colour_profile_is_converted_to_srgb(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    flat = Image.new("RGB", (16, 16), (200, 60, 20))
    file = encoded(flat, kind, icc_profile=swapping_profile(), **options)
    red, _green, blue = decode(file, RGB).mean((1, 2))
    assert red < 60
    assert blue > 160
    assert needs_isolation(file)
    assert decode(file, GREY).mean() < 70  # blue is darker than red


def test_srgb_profile_changes_no_pixel() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(decode(encoded(PICTURE, "PNG", icc_profile=profile), RGB), PIXELS)


def test_cmyk_is_inverted_where_adobe_says_so() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    file = encoded(red, "JPEG", quality=95)
    assert decode(file, RGB).mean((1, 2)) == pytest.approx([254, 0, 0], abs=3)
    at = file.index(b"\xff\xee")
    without = file[:at] + file[at + 2 + int.from_bytes(file[at + 2 : at + 4]) :]
    assert decode(without, RGB).mean((1, 2)) == pytest.approx([0, 0, 0], abs=3)


def test_one_transparent_colour_gives_the_same_at_every_depth() -> None:
    levels = np.tile(np.arange(16, dtype=np.uint8) * 17, (16, 1))
    deep = Image.fromarray(levels.astype(np.uint16) * 257)
    files = [
        png_with(chunk(b"tRNS", struct.pack(">H", 255)), image=Image.fromarray(levels)),
        png_with(chunk(b"tRNS", struct.pack(">H", 65_535)), image=deep),
        encoded(Image.fromarray(levels).convert("RGB"), "PNG", transparency=(255, 255, 255)),
        _png_of_four_bits(levels // 17, transparent=15),
        _png_of_sixteen_bit_colours(levels, transparent=255),
    ]
    expected = np.where(levels == 255, 0, levels)
    for file in files:
        np.testing.assert_array_equal(decode(file, GREY)[0], expected)


def _png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def _png_of_four_bits(levels: NDArray[np.uint8], transparent: int) -> bytes:
    packed = levels[:, ::2] * 16 + levels[:, 1::2]
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    return _png(16, 16, 4, 0, rows, chunk(b"tRNS", struct.pack(">H", transparent)))


def _png_of_sixteen_bit_colours(levels: NDArray[np.uint8], transparent: int) -> bytes:
    deep = np.repeat(levels[..., None], 3, axis=-1).astype(">u2") * 257
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    mark = chunk(b"tRNS", struct.pack(">HHH", *[transparent * 257] * 3))
    return _png(16, 16, 16, 2, rows, mark)


def test_black_ink_on_transparent_ground_is_laid_over_white() -> None:
    ink = np.zeros((16, 16, 4), np.uint8)
    ink[4:12, 4:12, 3] = 255
    drawn = decode(encoded(Image.fromarray(ink), "PNG"), GREY)[0]
    assert (drawn[4:12, 4:12] == 0).all()
    assert drawn[0, 0] == 255
    ink[..., :3] = 255
    chalk = decode(encoded(Image.fromarray(ink), "PNG"), GREY)[0]
    np.testing.assert_array_equal(chalk, 255 - drawn)


def test_bmp_whose_alpha_is_zero_everywhere_is_the_picture() -> None:
    pixels = np.dstack([np.asarray(PICTURE)[..., ::-1], np.zeros((16, 16), np.uint8)])[::-1]
    head = struct.pack("<IiiHHIIiiII", 124, 16, 16, 1, 32, 3, 1024, 0, 0, 0, 0)
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    start = 14 + 124
    body = (head + masks).ljust(124, b"\0") + np.ascontiguousarray(pixels).tobytes()
    file = b"BM" + struct.pack("<IHHI", start + 1024, 0, 0, start) + body
    np.testing.assert_array_equal(decode(file, RGB), PIXELS)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled(kind: str) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    file = encoded(Image.fromarray(levels.astype(np.uint16) * 257), kind)
    np.testing.assert_array_equal(decode(file, GREY)[0], levels)


@pytest.mark.parametrize("kind", ["AVIF", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photograph_of_every_format_is_turned_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = photograph(32, 32).resize((64, 48), Image.Resampling.BICUBIC)
    spec = InputSpec(channels=3, height=64, width=64, resize="stretch")
    expected = decode(encoded(image, "PNG", exif=exif), spec)
    assert distance(decode(encoded(image, kind, quality=95, exif=exif), spec), expected) < 4


@pytest.mark.parametrize("kind", ["AVIF", "JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_photograph_with_an_invalid_orientation_is_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    (opened,) = open_all([encoded(photograph(32, 16), kind, exif=exif)]).images
    assert (opened.file.orientation, opened.upright_size) == (1, (32, 16))


@pytest.mark.parametrize(("in_xmp", "applied"), [(6, 6), (0, 1), (9, 1)])
def test_orientation_of_xmp_replaces_an_invalid_one_of_exif(in_xmp: int, applied: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 77
    xmp = f'<rdf:Description tiff:Orientation="{in_xmp}"/>'.encode()
    (opened,) = open_all([encoded(PICTURE, "JPEG", exif=exif, xmp=xmp)]).images
    assert opened.file.orientation == applied


def tiff_of(
    levels: NDArray[np.uint8], bits: int, *, white_is_zero: bool = False, order: str = "<"
) -> bytes:
    """Write 8-bit levels [16, 16] as a grey TIFF whose white has all of its `bits` bits set."""
    values = levels.astype(np.uint32) * (2**bits - 1) // 255
    if white_is_zero:
        values = 2**bits - 1 - values
    if bits == 12:
        first, second = values.reshape(-1, 2).T
        packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1)
        pixels = packed.astype(np.uint8).tobytes()
    else:
        pixels = values.astype(f"{order}u{bits // 8}").tobytes()
    shape = [(256, 16), (257, 16), (258, bits), (259, 1), (262, 0 if white_is_zero else 1)]
    return tiff_with(pixels, [(tag, 3, 1, value) for tag, value in shape], order)


def tiff_with(pixels: bytes, entries: list[tuple[int, int, int, int]], order: str = "<") -> bytes:
    """Write a TIFF with one strip of 16 rows; an entry is tag, type, count and value or offset."""
    strip = [(273, 4, 1, 8), (277, 3, 1, 1), (278, 3, 1, 16), (279, 4, 1, len(pixels))]
    written = [
        struct.pack(f"{order}HHI", tag, kind, count)
        + (struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}I", value))
        for tag, kind, count, value in sorted([*entries, *strip])
    ]
    directory = struct.pack(f"{order}H", len(written)) + b"".join(written) + bytes(4)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(f"{order}I", 8 + len(pixels)) + pixels + directory


@pytest.mark.parametrize(
    ("bits", "order", "white_is_zero"),
    [
        *((8, order, white_is_zero) for order in "<>" for white_is_zero in (False, True)),
        (12, "<", False),
        (16, "<", False),
        (16, "<", True),
        (16, ">", False),
    ],  # of 12 and 16 bits, Pillow opens no others
)
def test_grey_tiff_of_every_depth_shows_the_same(
    bits: int, order: str, white_is_zero: bool
) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    file = tiff_of(levels, bits, white_is_zero=white_is_zero, order=order)
    assert np.abs(decode(file, GREY)[0].astype(int) - levels).max() <= 1


def test_grey_tiff_of_more_than_sixteen_bits_is_refused_with_one_sentence() -> None:
    file = tiff_of(np.arange(256, dtype=np.uint8).reshape(16, 16), 32)
    with pytest.raises(ImageDecodeError, match=r"beyond 16 bits.*save it with 8 or 16 bits"):
        decode(file, GREY)


_FAR = 4_000_000_000
_TEXT, _LONG = 2, 4


@pytest.mark.parametrize(
    "entry",
    [
        *((tag, _TEXT, 500, _FAR) for tag in (270, 271, 272, 305, 306, 315, 33432, 34675, 700)),
        *((tag, _LONG, 1, _FAR) for tag in (34665, 34853)),
        *((tag, _TEXT, 1, 6) for tag in (34665, 34853)),
        (700, _TEXT, 4, 0x00434241),
        (700, _LONG, 1, 3),
        (34675, _TEXT, 4, 0x00434241),
    ],
)
def test_metadata_never_changes_the_pixels_of_a_tiff(entry: tuple[int, int, int, int]) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    shape = [(256, 16), (257, 16), (258, 8), (259, 1), (262, 1)]
    entries = [(tag, 3, 1, value) for tag, value in shape]
    file = tiff_with(levels.tobytes(), [*entries, entry])
    np.testing.assert_array_equal(decode(file, GREY)[0], levels)


def test_avif_is_decoded_in_spite_of_garbage_in_its_exif() -> None:
    plain = decode(encoded(PICTURE, "AVIF", quality=95), RGB)
    assert distance(plain, PIXELS) < 12
    exif = Image.Exif()
    exif[0x010E] = "a long description of nothing"
    garbage = encoded(PICTURE, "AVIF", quality=95, exif=exif)
    start = garbage.index(b"MM\0*")
    garbage = garbage[:start] + b"garbage!" + garbage[start + 8 :]
    np.testing.assert_array_equal(decode(garbage, RGB), plain)


def test_heic_is_decoded_where_pillow_heif_is_installed() -> None:
    heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    heif.from_pillow(photograph(64, 64)).save(file, quality=90)
    spec = InputSpec(channels=3, height=64, width=64, resize="stretch")
    whole = np.asarray(photograph(64, 64)).transpose(2, 0, 1)
    assert distance(decode(file.getvalue(), spec), whole) < 12
    assert needs_isolation(file.getvalue())


def test_heic_without_pillow_heif_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    file = struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(100)
    with pytest.raises(ImageDecodeError, match=r"pip install '\.\[heif\]'"):
        decode(file, RGB)


def test_floats_are_refused_with_one_sentence() -> None:
    file = encoded(Image.fromarray(np.ones((16, 16), np.float32)), "TIFF")
    with pytest.raises(ImageDecodeError, match="float pixels; save it with 8 or 16 bits"):
        decode(file, GREY)


@pytest.mark.parametrize("size", [(1, 1), (2000, 10), (10, 2000)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_extreme_sizes_are_decoded(size: tuple[int, int], kind: str) -> None:
    assert decode(encoded(Image.new("RGB", size, "red"), kind), RGB)[0].min() > 250


def test_thirty_megapixels_are_within_the_limit_of_training() -> None:
    file = encoded(Image.new("L", (6480, 4860), 200), "JPEG")
    assert decode(file, GREY).min() > 195
    with pytest.raises(ImageTooLargeError, match="6480 x 4860 pixels, more than the 25,000,000"):
        decode(file, GREY, max_pixels=25_000_000)
