"""Limits the length of a query string before it is parsed. Knows no parameter."""

from service.errors import InvalidQueryError

MAX_QUERY_BYTES = 4_096
"""Before decoding; ten times as long as the longest query that any route accepts."""
MAX_QUERY_PARAMETERS = 32
"""Three times as many as any route accepts."""


def check_query(query_string: bytes) -> None:
    """Refuse a query string that would cost more to parse than any valid one.

    query_string: the part of the URL after the `?`, not decoded.

    Raises:
        InvalidQueryError: the query is too long, or has too many parameters.
    """
    if len(query_string) > MAX_QUERY_BYTES:
        raise InvalidQueryError(
            f"The query has {len(query_string):,} bytes, but at most {MAX_QUERY_BYTES:,} are read; "
            "send the image in the body."
        )
    count = query_string.count(b"&") + 1
    if count > MAX_QUERY_PARAMETERS:
        raise InvalidQueryError(
            f"The query has {count:,} parameters, but at most {MAX_QUERY_PARAMETERS} are read; "
            "leave out the others."
        )
