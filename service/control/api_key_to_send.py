"""Reads the API key that a command sends, from a file.

A key that is an argument is shown to every user of the machine by `ps`, and kept in the shell's
history.
"""

import re
from pathlib import Path

from model.bundle.bounded_reading import read_file

_MAX_BYTES = 4096
_KEY = re.compile(rb"[\x21-\x7e]+")


class ApiKeyFileError(Exception):
    """The file holds no key that can be sent."""


def read_api_key(file: Path) -> str:
    """Return the key that a file holds, without blanks around it.

    Raises:
        ApiKeyFileError: it cannot be read, or holds anything else.
    """
    try:
        content = read_file(file, _MAX_BYTES).strip()
    except OSError as error:
        reason = error.strerror or error
        raise ApiKeyFileError(f"--api-key-file: {file} cannot be read ({reason}).") from None
    if not _KEY.fullmatch(content):
        raise ApiKeyFileError(
            f"--api-key-file: {file} holds no key; write the key that python -m service.keys add "
            "has shown into it, and nothing else."
        )
    return content.decode()
