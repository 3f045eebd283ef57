"""The file of keys: what it holds, and how it is read. Knows no HTTP and writes nothing.

It holds no key, only keyed hashes. A key is 256 random bits, which nobody can guess however fast
the hash is; scrypt and its kin slow down the guessing of what people choose, and here would only
slow down each request. So the hash is BLAKE2b (RFC 7693) with a random key of the file's own: a
hash says nothing about the same key in another file.
"""

import hashlib
import os
import stat
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from model.errors import DropserveError
from service.keys.scopes import Scope

TOKEN_PREFIX = "ds-"  # noqa: S105 - how every token begins
ID_LENGTH = 8
TOKEN_LENGTH = len(TOKEN_PREFIX) + ID_LENGTH + 1 + 43
"""Characters of a token: prefix, id, a hyphen, 256 bits in base64 for URLs."""
DIGEST_BYTES = 32
MAX_KEYS = 1_000
_MAX_FILE_BYTES = 2**20
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH

Hex256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
KeyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


class KeyFileError(DropserveError):
    """The file of keys cannot be read or changed."""


class ApiKey(BaseModel):
    """One key: whose it is, and what it may do. It holds the key's digest, not the key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: KeyName
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]
    """Public: it stands at the start of the token, and finds this record."""
    scopes: frozenset[Scope] = Field(min_length=1)
    digest: Hex256
    created: AwareDatetime
    expires: AwareDatetime | None = None

    def has_expired(self, now: datetime) -> bool:
        """Return whether the key is of no more use."""
        return self.expires is not None and self.expires <= now


class KeyFile(BaseModel):
    """The content of a file of keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    secret: Hex256
    """The key of the hash."""
    keys: tuple[ApiKey, ...] = Field((), max_length=MAX_KEYS)


def token_id(token: str) -> str:
    """Return the public part of a token, without having verified it."""
    return token[len(TOKEN_PREFIX) : len(TOKEN_PREFIX) + ID_LENGTH]


def digest_of(token: str, secret: bytes) -> bytes:
    """Return the keyed hash of a token, DIGEST_BYTES long. It takes about a microsecond."""
    return hashlib.blake2b(
        token.encode(), key=secret, digest_size=DIGEST_BYTES, person=b"dropserve-key"
    ).digest()


def read_key_file(path: Path) -> KeyFile:
    """Read a file of keys; it may be a symbolic link, as a mounted secret is.

    Raises:
        KeyFileError: it cannot be read, others may change it, or it holds something else.
    """
    try:
        content = _read(path)
    except OSError as error:
        raise KeyFileError(
            f"{path} cannot be read ({error.strerror}); make it with python -m service.keys add, "
            "as the user that the service runs as."
        ) from None
    try:
        return KeyFile.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise KeyFileError(
            f"{path} is no file of keys ({place}: {first['msg'].lower()}); restore it, or move it "
            "away and make another with python -m service.keys add."
        ) from None


def _read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileError(f"{path} is no regular file; name a file of keys.")
        if status.st_mode & _WRITABLE_BY_OTHERS:
            raise KeyFileError(
                f"{path} may be changed by other users, who could add a key; chmod 600 {path}."
            )
        if status.st_size > _MAX_FILE_BYTES:
            raise KeyFileError(f"{path} has more than 1 MiB; name a file of keys.")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(_MAX_FILE_BYTES)
    finally:
        os.close(descriptor)
