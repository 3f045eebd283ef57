"""The certificate that serves now, followed in its files while the service runs."""

import asyncio
import ssl
import time
from datetime import UTC, datetime

import structlog

from service.file_change_fingerprint import FileFingerprint, file_fingerprint
from service.observability.metrics_recorder import Metrics
from service.tls.certificate_files import Certificate, TlsFileError, TlsFiles, load_certificate

_POLL_SECONDS = 1.0
_TICKET_KEY_SECONDS = 86_400.0
"""How long one context serves: the key of its session tickets is as old as it."""
_NOT_LOADED: tuple[FileFingerprint, ...] = ()
"""The fingerprint of no files."""

logger = structlog.stdlib.get_logger("service")


class ServerCertificate:
    """Has the context of new connections; files that cannot be used change nothing.

    A connection keeps the context with which it began.
    """

    def __init__(self, files: TlsFiles, metrics: Metrics) -> None:
        """Read the files; if they cannot be used, there is no context until they can."""
        self._files = files
        self._metrics = metrics
        self.context: ssl.SSLContext | None = None
        self._seen = _fingerprint(files)
        self._loaded: tuple[FileFingerprint, ...] = _NOT_LOADED
        self._loaded_at = 0.0
        self._failure: str | None = None
        """Why the files could not be used at the last look, as it was logged."""
        self._load()

    async def run(self) -> None:
        """Look at the files once a second, until cancelled."""
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            try:
                await asyncio.to_thread(self.refresh)
            except Exception:  # the next look may succeed
                logger.exception("certificate not read")

    def refresh(self) -> None:
        """Take the files if they have changed, and have not since the last call.

        Certificate and key are replaced one after the other: in between they do not match.
        Files that could not be used are tried again at the next look: many a reason passes.
        """
        seen = _fingerprint(self._files)
        if seen != self._seen:
            self._seen = seen
        elif seen != self._loaded or time.monotonic() - self._loaded_at > _TICKET_KEY_SECONDS:
            self._load()

    def count_failure(self, reason: str) -> None:
        """Count a handshake that has failed; `PrometheusSeries` lists the reasons."""
        self._metrics.deferred.increment(self._metrics.tls_handshake_failures.labels(reason))

    def _load(self) -> None:
        try:
            found = load_certificate(self._files)
        except TlsFileError as error:
            self._loaded = _NOT_LOADED
            self._log_failure(str(error))
            return
        self._loaded, self._loaded_at, self._failure = self._seen, time.monotonic(), None
        self.context = found.context
        self._report(found)

    def _log_failure(self, reason: str) -> None:
        if reason != self._failure:
            self._failure = reason
            kept_one = self.context is not None
            logger.error("certificate not read", reason=reason, kept_one=kept_one)

    def _report(self, found: Certificate) -> None:
        expiry = self._metrics.tls_certificate_expiry
        expiry.labels("server").set(found.expires)
        if found.client_ca_expires is not None:
            expiry.labels("client_ca").set(found.client_ca_expires)
        until = datetime.fromtimestamp(found.expires, UTC).isoformat()
        logger.info("certificate read", file=str(self._files.certificate), expires=until)


def _fingerprint(files: TlsFiles) -> tuple[FileFingerprint, ...]:
    """Return what changes when a file does."""
    return tuple(map(file_fingerprint, files.paths))
