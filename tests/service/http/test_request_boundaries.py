"""Where the pieces end that the parser is fed, however the bytes of requests arrive."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from service.http.request_boundaries import END_OF_HEAD, RequestPieces

HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"
BODY = b"\r\n\r\nx"
"""A body that looks like the end of a head."""
WHOLE = HEAD + BODY


def head_pieces(pieces: RequestPieces, chunks: list[bytes]) -> bytes:
    """Feed chunks until a piece ends a head; return what was fed."""
    fed = b""
    for chunk in chunks:
        start = 0
        while start < len(chunk):
            end = pieces.end_of_piece(chunk, start, is_in_body=False)
            fed += chunk[start:end]
            start = end
            if fed.endswith(END_OF_HEAD):
                return fed
    return fed


@given(st.lists(st.integers(0, len(WHOLE)), max_size=12))
def test_piece_ends_with_the_head_wherever_the_bytes_are_cut(cuts: list[int]) -> None:
    borders = [0, *sorted(cuts), len(WHOLE)]
    chunks = [WHOLE[a:b] for a, b in pairwise(borders)]
    assert head_pieces(RequestPieces(), chunks) == HEAD


@given(st.integers(0, 20), st.binary(max_size=40))
def test_piece_never_goes_beyond_the_body(length: int, data: bytes) -> None:
    pieces = RequestPieces()
    pieces.begin_body(length)
    end = pieces.end_of_piece(data, 0, is_in_body=True)
    assert end == min(length, len(data))
    assert pieces.body_bytes_left == length - end


@given(st.integers(1, 20))
def test_request_line_is_strict_wherever_it_is_cut(cut: int) -> None:
    for line, is_strict in ((b"GET /a HTTP/1.1\r\n", True), (b"GET  /a HTTP/1.1\r\n", False)):
        pieces = RequestPieces()
        found = [pieces.is_request_line_strict(part) for part in (line[:cut], line[cut:]) if part]
        assert all(found) == is_strict
