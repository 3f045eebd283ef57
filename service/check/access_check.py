"""Checks who may do what: the keys, and who reaches the service without one."""

import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from service.check.findings import Finding, error, fine, warning
from service.keys.key_file import ApiKey, KeyFile
from service.run_server import StartError, require_usable_keys
from service.settings import ServiceSettings

_SUBJECT = "keys"


def check_access(settings: ServiceSettings) -> Iterator[Finding]:
    """Yield what is wrong with the file of keys, or what keys there are."""
    try:
        content = require_usable_keys(settings)
    except StartError as refusal:
        yield error(_SUBJECT, str(refusal))
        return
    path = settings.api_keys_file
    if content is None or path is None:
        if settings.control == "anyone":
            yield warning(
                _SUBJECT,
                "--control anyone lets whoever reaches the port change what serves; give "
                "--api-keys-file, or leave it out.",
            )
        return
    yield from _check_file(path)
    yield from _check_keys(path, content, is_control_public=settings.control == "anyone")


def can_be_hidden_by_owner(path: Path) -> bool:
    """Return whether everybody may read a file, and its owner, who runs this, can change that."""
    status = path.stat()
    return bool(status.st_mode & stat.S_IROTH) and status.st_uid == os.geteuid()


def _check_file(path: Path) -> Iterator[Finding]:
    if can_be_hidden_by_owner(path):
        yield warning(
            _SUBJECT,
            f"{path} can be read by every user of this machine; it holds hashes alone, but chmod "
            f"600 {path}.",
        )


def _check_keys(path: Path, content: KeyFile, *, is_control_public: bool) -> Iterator[Finding]:
    now = datetime.now(UTC)
    good = [key for key in content.keys if not key.has_expired(now)]
    expired = [key.name for key in content.keys if key.has_expired(now)]
    if not good:
        yield warning(
            _SUBJECT,
            f"{path} has no key that is good, so every client is refused; make one with python -m "
            "service.keys add.",
        )
        return
    if expired:
        yield warning(
            _SUBJECT,
            f"{', '.join(expired)} {'has' if len(expired) == 1 else 'have'} expired; revoke with "
            "python -m service.keys, and add another key where it is still needed.",
        )
    if is_control_public and not _with_scope(good, "control"):
        yield warning(
            _SUBJECT,
            f"--control anyone has no effect, as no key in {path} has the scope control; add one, "
            "or leave it out.",
        )
    if not _with_scope(good, "predict"):
        yield warning(
            _SUBJECT,
            f"no key in {path} has the scope predict, so no client may send images; add one.",
        )
    plural = "key is" if len(good) == 1 else "keys are"
    yield fine(_SUBJECT, f"{len(good)} {plural} good.")


def _with_scope(keys: list[ApiKey], scope: str) -> list[ApiKey]:
    return [key for key in keys if scope in key.scopes]
