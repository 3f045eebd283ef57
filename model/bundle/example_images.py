"""What the example images of a bundle are allowed to be: small WebP files. Decodes no pixel."""

MAX_EXAMPLES = 16
"""How many a bundle may carry."""
MAX_EXAMPLE_PIXELS = 224
"""Largest height and width."""
MAX_EXAMPLE_BYTES = 64 * 2**10
"""Size limit of each file; all of them are kept in memory."""
EXAMPLE_FILE = r"^examples/[0-9]{1,2}\.webp$"
"""Their names within the bundle, as a regular expression."""

_MAX_SIDE_BITS = 0x3FFF


def is_example(data: bytes) -> bool:
    """Return whether a file is a still WebP image of at most MAX_EXAMPLE_PIXELS a side."""
    size = _webp_size(data)
    return size is not None and all(1 <= side <= MAX_EXAMPLE_PIXELS for side in size)


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a WebP file of the simple form (RFC 9649, 2.5 and 2.6).

    None: it is another file, or of the extended form, which may be animated or hold metadata.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    kind, frame = data[12:16], data[20:30]
    if kind == b"VP8 " and frame[3:6] == b"\x9d\x01\x2a" and len(frame) == 10:
        sides = int.from_bytes(frame[6:8], "little"), int.from_bytes(frame[8:10], "little")
        return sides[0] & _MAX_SIDE_BITS, sides[1] & _MAX_SIDE_BITS
    if kind == b"VP8L" and frame[:1] == b"\x2f" and len(frame) >= 5:
        bits = int.from_bytes(frame[1:5], "little")
        return (bits & _MAX_SIDE_BITS) + 1, (bits >> 14 & _MAX_SIDE_BITS) + 1
    return None
