"""Divides what a connection receives into pieces that end where a head or a body ends.

The parser is fed piece by piece, so that it never sees the beginning of the next request before the
response to this one. Knows no connection and no parser.
"""

END_OF_HEAD = b"\r\n\r\n"
_CHUNKED_PIECE_BYTES = 2**14
"""The most bytes of a chunked body that the parser is fed at once."""


class RequestPieces:
    """Where the pieces of the current request end."""

    __slots__ = ("_line_tail", "_tail", "body_bytes_left", "has_request_line")

    def __init__(self) -> None:
        """Begin before a request."""
        self.body_bytes_left: int | None = 0
        """Bytes of the body that have not been parsed yet; None for a chunked body."""
        self.has_request_line = False
        """Whether the request line is complete."""
        self._tail = b""
        """The last bytes parsed, at most three: `END_OF_HEAD` may have begun in them."""
        self._line_tail = b""
        """The last byte of the request line that has been parsed."""

    def begin_body(self, length: int | None) -> None:
        """Begin a body behind a head; length: None for a chunked body."""
        self._tail = b""
        self.body_bytes_left = length

    def end_request(self) -> None:
        """Begin before the next request."""
        self.has_request_line = False
        self._tail = self._line_tail = b""

    def end_of_piece(self, data: bytes | bytearray, start: int, *, is_in_body: bool) -> int:
        """Return how far the parser may go: never beyond the end of a head or of a body.

        A chunked body ends with an empty line, as a head does; an empty line within it merely ends
        a piece.
        """
        limit = len(data)
        if is_in_body:
            if self.body_bytes_left is not None:
                end = min(start + self.body_bytes_left, limit)
                self.body_bytes_left -= end - start
                return end
            limit = min(start + _CHUNKED_PIECE_BYTES, limit)
        tail = self._tail
        # The empty line may have begun in the previous piece.
        if tail and (found := (tail + data[start : start + 3]).find(END_OF_HEAD)) >= 0:
            end = start + found + len(END_OF_HEAD) - len(tail)
        else:
            found = data.find(END_OF_HEAD, start, limit)
            end = limit if found < 0 else found + len(END_OF_HEAD)
        self._tail = (tail + data[max(start, end - 3) : end])[-3:]
        return end

    def is_request_line_strict(self, piece: bytes | bytearray) -> bool:
        """Return whether the request line has no two spaces in a row, which the parser permits."""
        if not self._line_tail:
            piece = piece.lstrip(b"\r\n")  # a request may follow empty lines (RFC 9112, 2.2)
        line, end, _ = piece.partition(b"\r\n")
        is_strict = b"  " not in self._line_tail + line
        self.has_request_line = bool(end)
        self._line_tail = bytes(line[-1:]) or self._line_tail
        return is_strict
