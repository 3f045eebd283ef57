"""Reads what a Label Studio answers within a limit of bytes. Knows neither token nor image."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx


async def read_answer(answer: "httpx.Response", max_bytes: int) -> bytes:
    """Return the body of an answer whose head has arrived.

    Raises:
        ValueError: it is compressed, or larger than `max_bytes`; says so.
        httpx.HTTPError: the connection broke.
    """
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise ValueError("it came compressed, which was not asked for")
    pieces: list[bytes] = []
    length = 0
    async for piece in answer.aiter_raw():
        pieces.append(piece)
        length += len(piece)
        if length > max_bytes:
            raise ValueError(f"it is larger than {max_bytes:,} bytes")
    return b"".join(pieces)
