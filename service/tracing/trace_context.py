"""The trace that a request belongs to, as its headers say (W3C Trace Context). Makes no span."""

import re
from typing import NamedTuple

MAX_STATE_CHARACTERS = 512
"""Longer lists in `tracestate` are left out; W3C asks that at least so much is passed on."""

_PARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)
_VERSION = "00-"
_MAX_STATE_MEMBERS = 32
_STATE_MEMBER = re.compile(
    r"(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
_IS_SAMPLED = 1


class TraceParent(NamedTuple):
    """A `traceparent` header."""

    trace_id: str
    """32 hexadecimal digits in lower case, not all 0."""
    span_id: str
    """Of the caller's span: 16 hexadecimal digits in lower case, not all 0."""
    is_sampled: bool
    """Whether the caller may have recorded its span."""


def parse_parent(header: str) -> TraceParent | None:
    """Parse a `traceparent` header; None: malformed, and to be ignored (W3C, 3.2 and 4.3)."""
    match = _PARENT.fullmatch(header)
    if match is None:
        return None
    trace_id, span_id, flags, rest = match.groups()
    if rest and header.startswith(_VERSION):  # only later versions may have further fields
        return None
    return TraceParent(trace_id, span_id, bool(int(flags, 16) & _IS_SAMPLED))


def parse_state(header: str) -> tuple[tuple[str, str], ...]:
    """Return the members of a `tracestate` header, in order; empty: malformed or too long."""
    if len(header) > MAX_STATE_CHARACTERS:
        return ()
    members = [text for each in header.split(",") if (text := each.strip(" \t"))]
    if len(members) > _MAX_STATE_MEMBERS or not all(map(_STATE_MEMBER.fullmatch, members)):
        return ()
    pairs = [each.partition("=")[::2] for each in members]
    return tuple(pairs) if len(dict(pairs)) == len(pairs) else ()


def format_response(trace_id: str, span_id: str) -> bytes:
    """Return the `traceresponse` header of a sampled request (W3C Trace Context Level 3, draft)."""
    return f"{_VERSION}{trace_id}-{span_id}-{_IS_SAMPLED:02x}".encode()
