"""Parses multipart/form-data (RFC 7578) into files, all in memory. Knows no image format."""

import codecs
import logging
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.codecs.image_limits import Limits
from service.errors import EmptyBodyError, InvalidRequestError

_FORM_FIELD = "file"
_EXTENDED_NAME = re.compile(rb";\s*filename\*", re.IGNORECASE)
_FILE_TYPES = (b"image/", b"application/octet-stream")
"""Beginnings of the content types of parts that are files without a name."""

# The answer says what is wrong with a client's form; the parser would log it as a warning, too.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


class FormFile(NamedTuple):
    """One file of a form."""

    name: str
    """As its client has written it; "" where it has none."""
    content: bytes


@dataclass(slots=True)
class _Part:
    """One part of the multipart body: a form field or a file."""

    disposition: bytes = b""
    content_type: bytes = b""
    name: str = ""
    file_name: str = ""
    is_file: bool = False
    data: list[bytes] = field(default_factory=list)


class _MalformedFormError(Exception):
    """The body is not a valid form; the message gives the reason."""


def read_form_files(body: bytes, content_type: str, limits: Limits) -> list[FormFile]:
    """Return all files of a form. Each of its fields must be a file named `file`.

    Raises:
        EmptyBodyError: the form has no field.
        InvalidRequestError: the form is malformed, or has another field.
        TooManyImagesError: the form has more files than `limits` allows.
    """
    try:
        parts = _FormParser(content_type, limits).parse(body)
    except (_MalformedFormError, ValueError) as error:
        reason = str(error) if isinstance(error, _MalformedFormError) else "no valid boundary"
        raise InvalidRequestError(
            f"The form cannot be read ({reason}); send it with curl -F file=@IMAGE."
        ) from None
    if not parts:
        raise EmptyBodyError("The form has no 'file' field; send an image in one.")
    return [FormFile(part.file_name, b"".join(part.data)) for part in parts]


def _require_file(part: _Part) -> None:
    if part.name != _FORM_FIELD or not part.is_file:
        what = "no file name" if part.name == _FORM_FIELD else f"the name {part.name!r}"
        raise InvalidRequestError(
            f"A field of the form has {what}; send image files in fields named 'file' alone."
        )


class _FormParser:
    """Collects the parts that python-multipart's callbacks report."""

    def __init__(self, content_type: str, limits: Limits) -> None:
        self._content_type = content_type
        self._limits = limits
        self._parts: list[_Part] = []
        self._part = _Part()
        self._header, self._value = b"", b""
        self._charset = "utf-8"
        self._has_end = False

    def parse(self, body: bytes) -> list[_Part]:
        """Parse a whole body. A missing closing boundary is an error, too."""
        _, options = parse_options_header(self._content_type)
        self._charset = _normalise_charset(options.get(b"charset", b"utf-8"))
        if b"boundary" not in options:
            raise _MalformedFormError("Missing boundary in multipart")
        callbacks: Any = {
            "on_part_begin": self._on_part_begin,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_end": self._on_end,
        }
        try:
            parser = MultipartParser(options[b"boundary"], callbacks)
            parser.write(body)
            parser.finalize()
        except FormParserError:
            raise _MalformedFormError("Invalid multipart data") from None
        if not self._has_end:  # the parser would drop the last files silently
            raise _MalformedFormError("its closing boundary is missing")
        return self._parts

    def _on_part_begin(self) -> None:
        self._part = _Part()

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._part.data.append(data[start:end])

    def _on_part_end(self) -> None:
        self._parts.append(self._part)

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        name = self._header.lower()
        if name == b"content-disposition":
            self._part.disposition = self._value
        elif name == b"content-type":
            self._part.content_type = self._value
        self._header = self._value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._part.disposition)
        if b"name" not in options:
            raise _MalformedFormError(
                'The Content-Disposition header field "name" must be provided'
            )
        self._part.name = _decode_text(options[b"name"], self._charset)
        self._part.file_name = _decode_text(options.get(b"filename", b""), self._charset)
        # `filename*` (RFC 5987) is what some clients send for names that are not ASCII; others send
        # an image without a name.
        is_named = b"filename" in options or _EXTENDED_NAME.search(self._part.disposition)
        self._part.is_file = bool(is_named) or self._part.content_type.lower().startswith(
            _FILE_TYPES
        )
        _require_file(self._part)  # first: a field that is no image is not one image too many
        self._limits.check_count(len(self._parts) + 1)

    def _on_end(self) -> None:
        self._has_end = True


def _normalise_charset(name: bytes) -> str:
    """Return the canonical name of a charset, or Latin-1 for an unknown one."""
    try:
        return codecs.lookup(name.decode("latin-1")).name
    except LookupError:
        return "latin-1"


def _decode_text(text: bytes, charset: str) -> str:
    try:
        return text.decode(charset)
    except (LookupError, UnicodeDecodeError):
        return text.decode("latin-1")
