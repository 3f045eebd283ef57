"""The keys that are good now, followed in their file while the service runs."""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hmac import compare_digest
from pathlib import Path

import structlog

from service.file_change_fingerprint import FileFingerprint, file_fingerprint
from service.keys.key_file import (
    DIGEST_BYTES,
    TOKEN_LENGTH,
    ApiKey,
    KeyFile,
    KeyFileError,
    digest_of,
    read_key_file,
    token_id,
)
from service.observability.metrics_recorder import Metrics

_POLL_SECONDS = 1.0
_NO_DIGEST = bytes(DIGEST_BYTES)
_UNREAD: FileFingerprint = ()
"""The fingerprint of no file."""

logger = structlog.stdlib.get_logger("service")


@dataclass(frozen=True, slots=True)
class _Keys:
    """One state of the file."""

    secret: bytes = b""
    by_id: dict[str, tuple[ApiKey, bytes]] = field(default_factory=dict)
    """Each key by its public id, with its digest."""

    @classmethod
    def of(cls, content: KeyFile) -> "_Keys":
        keys = {each.id: (each, bytes.fromhex(each.digest)) for each in content.keys}
        return cls(bytes.fromhex(content.secret), keys)


class KeyRing:
    """Knows the keys of a file; a file that is damaged or gone changes nothing."""

    def __init__(self, path: Path, metrics: Metrics) -> None:
        """Read the file; without one that can be read no key is good until there is one."""
        self._path = path
        self._unreadable = metrics.keys_unreadable
        self._keys = _Keys()
        self._fingerprint: FileFingerprint = _UNREAD
        self._failure: str | None = None
        """Why the file could not be read at the last look, as it was logged."""
        self.refresh()

    def find(self, token: str) -> ApiKey | None:
        """Return the key that a client has sent; None if there is no such key, or no longer.

        The time that it takes says nothing about how much of a token is right.
        """
        if len(token) != TOKEN_LENGTH:
            return None
        keys = self._keys
        key, digest = keys.by_id.get(token_id(token), (None, _NO_DIGEST))
        is_right = compare_digest(digest_of(token, keys.secret), digest)
        if key is None or not is_right:
            return None
        is_good = key.expires is None or not key.has_expired(datetime.now(UTC))
        return key if is_good else None

    async def run(self) -> None:
        """Look at the file once a second, until cancelled."""
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            try:
                await asyncio.to_thread(self.refresh)
            except Exception:  # the next look may succeed
                logger.exception("keys not read")

    def refresh(self) -> None:
        """Take the file's keys if it has changed; keep those there are if it cannot be read.

        A file that could not be read is read again at the next look: many a reason passes.
        """
        fingerprint = file_fingerprint(self._path)
        if fingerprint == self._fingerprint:
            return
        try:
            self._keys = _Keys.of(read_key_file(self._path))
        except KeyFileError as error:
            self._fingerprint = _UNREAD
            self._report_failure(str(error))
        else:
            self._fingerprint, self._failure = fingerprint, None
            self._unreadable.set(0)
            logger.info("keys read", keys=len(self._keys.by_id))

    def _report_failure(self, reason: str) -> None:
        self._unreadable.set(1)
        if reason != self._failure:
            self._failure = reason
            logger.error("keys not read", reason=reason, keys_kept=len(self._keys.by_id))
