"""How long a query may be, before anything reads it. Knows no parameter."""

from service.errors import InvalidQueryError

MAX_QUERY_BYTES = 4_096
"""As sent; the longest that any route can use is a tenth of it."""
MAX_QUERY_PARAMETERS = 32
"""Three times as many as any route takes."""


def check_query(query_string: bytes) -> None:
    """Refuse a query that costs more to read than any good one.

    query_string: what follows the `?`, not decoded.

    Raises:
        InvalidQueryError: it is too long, or has too many parameters.
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
