"""A form (multipart/form-data, RFC 7578) -> the files in it, all in memory. Knows no image."""

import codecs
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.codecs.limits import Limits
from service.errors import EmptyBodyError, InvalidRequestError

_FORM_FIELD = "file"


@dataclass(slots=True)
class _Part:
    """One field of a form."""

    disposition: bytes = b""
    name: str = ""
    is_file: bool = False
    data: list[bytes] = field(default_factory=list)


class _UnreadableError(Exception):
    """The form is none; says why."""


def form_files(body: bytes, content_type: str, limits: Limits) -> list[bytes]:
    """Return the contents of all fields, each of which is to be a file named `file`.

    Raises:
        EmptyBodyError, InvalidRequestError, TooManyImagesError.
    """
    try:
        parts = _Form(content_type, limits).parse(body)
    except (_UnreadableError, ValueError) as error:
        reason = str(error) if isinstance(error, _UnreadableError) else "no valid boundary"
        raise InvalidRequestError(
            f"The form cannot be read ({reason}); send it with curl -F file=@IMAGE."
        ) from None
    for part in parts:
        if part.name != _FORM_FIELD or not part.is_file:
            what = "no file name" if part.name == _FORM_FIELD else f"the name {part.name!r}"
            raise InvalidRequestError(
                f"A field of the form has {what}; send image files in fields named 'file' alone."
            )
    if not parts:
        raise EmptyBodyError("The form has no 'file' field; send an image in one.")
    return [b"".join(part.data) for part in parts]


class _Form:
    """Takes what the parser finds."""

    def __init__(self, content_type: str, limits: Limits) -> None:
        self._content_type = content_type
        self._limits = limits
        self._parts: list[_Part] = []
        self._part = _Part()
        self._header, self._value = b"", b""
        self._charset = "utf-8"
        self._has_end = False

    def parse(self, body: bytes) -> list[_Part]:
        """Parse it, and hold it to its closing boundary."""
        _, options = parse_options_header(self._content_type)
        self._charset = _charset(options.get(b"charset", b"utf-8"))
        if b"boundary" not in options:
            raise _UnreadableError("Missing boundary in multipart")
        callbacks: Any = {
            "on_part_begin": self._begin_part,
            "on_part_data": self._take_data,
            "on_part_end": self._end_part,
            "on_header_field": self._take_header,
            "on_header_value": self._take_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_end": self._end,
        }
        try:
            parser = MultipartParser(options[b"boundary"], callbacks)
            parser.write(body)
            parser.finalize()
        except FormParserError:
            raise _UnreadableError("Invalid multipart data") from None
        if not self._has_end:  # without it the last files would be lost without a word
            raise _UnreadableError("its closing boundary is missing")
        return self._parts

    def _begin_part(self) -> None:
        self._part = _Part()

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        self._part.data.append(data[start:end])

    def _end_part(self) -> None:
        self._parts.append(self._part)

    def _take_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _take_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._part.disposition = self._value
        self._header = self._value = b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._part.disposition)
        if b"name" not in options:
            raise _UnreadableError('The Content-Disposition header field "name" must be provided')
        self._part.name = _decoded(options[b"name"], self._charset)
        self._part.is_file = b"filename" in options
        self._limits.check_count(len(self._parts) + 1)

    def _end(self) -> None:
        self._has_end = True


def _charset(name: bytes) -> str:
    try:
        return codecs.lookup(name.decode("latin-1")).name
    except LookupError:
        return "latin-1"


def _decoded(text: bytes, charset: str) -> str:
    try:
        return text.decode(charset)
    except (LookupError, UnicodeDecodeError):
        return text.decode("latin-1")
