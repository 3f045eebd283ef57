"""The origins whose pages may read what the service answers (RFC 6454)."""

import re

ANY = "*"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")


def parse_origins(text: str) -> tuple[str, ...]:
    """Return the origins in a list with commas between; `*` alone is any origin.

    Raises:
        ValueError: one of them is none, or stands beside `*`.
    """
    origins = tuple(filter(None, map(str.strip, text.split(","))))
    for origin in origins:
        if not (_ORIGIN.fullmatch(origin) or origins == (ANY,)):
            raise ValueError(
                f"{origin[:200]!r} is no origin; write such as https://example.org or "
                "http://localhost:3000, in lower case and without a path, with commas between, "
                "or * alone for any."
            )
    return origins
