"""Adds keys to the file of keys and takes them from it, one process at a time."""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from service.keys.key_file import (
    DIGEST_BYTES,
    ID_LENGTH,
    MAX_KEYS,
    TOKEN_PREFIX,
    ApiKey,
    KeyFile,
    KeyFileError,
    digest_of,
    read_key_file,
)
from service.keys.scopes import Scope

_PRIVATE_MODE = 0o600


def add_key(path: Path, name: str, scopes: frozenset[Scope], days: float | None) -> str:
    """Add a key, to a new file if there is none, and return it: it is stored nowhere.

    days: until it expires; None: never.

    Raises:
        KeyFileError: the file cannot be read or written, is full, or has a key of that name.
    """
    with _locked(path) as file:
        content = read_key_file(file) if file.exists() else _new_file()
        if any(key.name == name for key in content.keys):
            raise KeyFileError(
                f"There is a key {name!r} already; revoke it, or choose another name."
            )
        if len(content.keys) >= MAX_KEYS:
            raise KeyFileError(f"{path} has {MAX_KEYS} keys already; revoke some.")
        taken = {key.id for key in content.keys}
        id_ = next(each for each in iter(_new_id, "") if each not in taken)
        token = f"{TOKEN_PREFIX}{id_}-{secrets.token_urlsafe(DIGEST_BYTES)}"
        created = datetime.now(UTC).replace(microsecond=0)
        key = ApiKey(
            name=name,
            id=id_,
            scopes=scopes,
            digest=digest_of(token, bytes.fromhex(content.secret)).hex(),
            created=created,
            expires=None if days is None else created + timedelta(days=days),
        )
        _replace(file, content.model_copy(update={"keys": (*content.keys, key)}))
    return token


def revoke_key(path: Path, name: str) -> None:
    """Take a key from the file.

    Raises:
        KeyFileError: the file cannot be read or written, or has no key of that name.
    """
    with _locked(path) as file:
        content = read_key_file(file)
        kept = tuple(key for key in content.keys if key.name != name)
        if len(kept) == len(content.keys):
            names = ", ".join(key.name for key in content.keys) or "none"
            raise KeyFileError(f"There is no key {name!r}; there is {names}.")
        _replace(file, content.model_copy(update={"keys": kept}))


def _new_file() -> KeyFile:
    return KeyFile(secret=secrets.token_hex(DIGEST_BYTES))


def _new_id() -> str:
    return secrets.token_hex(ID_LENGTH // 2)


@contextmanager
def _locked(path: Path) -> Iterator[Path]:
    """Keep other commands from changing the file meanwhile; yield where it really is."""
    file = path.resolve()
    try:
        # The file itself is replaced, so that a lock on it would be on the wrong one.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(file.with_name(f".{file.name}.lock"), flags, _PRIVATE_MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(descriptor)
    except OSError as error:
        raise KeyFileError(
            f"{path} cannot be written ({error.strerror}); choose a folder in which you may write."
        ) from None


def _replace(file: Path, content: KeyFile) -> None:
    """Write the file anew, so that a reader sees the whole old one or the whole new one."""
    draft = file.with_name(f".{file.name}-{os.getpid()}")
    draft.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(draft, flags, _PRIVATE_MODE), "w", encoding="utf-8") as written:
            written.write(content.model_dump_json(indent=1) + "\n")
            written.flush()
            os.fchmod(written.fileno(), _PRIVATE_MODE)
            if file.exists():  # root may change the file of the service's user
                owner = file.stat()
                with suppress(PermissionError):
                    os.fchown(written.fileno(), owner.st_uid, owner.st_gid)
            os.fsync(written.fileno())
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
