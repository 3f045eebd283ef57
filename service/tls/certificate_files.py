"""Reads the files of a certificate, its key and a client CA, and refuses what clients would refuse.

A pair that is taken has completed a handshake in memory first, so that key and certificate match,
are strong enough for this OpenSSL, and are good now. Knows nothing of their changes.
"""

import re
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path

from model.errors import DropserveError

_MAX_FILE_BYTES = 2**20
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: those with forward secrecy and authenticated encryption, as TLS 1.3 has no others."""
_PROTOCOLS = ["http/1.1"]
_CERTIFICATE_END = "-----END CERTIFICATE-----"
_KEY_END = re.compile("-----END [A-Z ]*PRIVATE KEY-----")
_MISMATCHES = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")
"""What OpenSSL says of a pair that does not match, the last of keys of two kinds (RSA and EC)."""
_NOT_YET_VALID, _EXPIRED = 9, 10  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED


class TlsFileError(DropserveError):
    """A file of the certificate, of the key or of the client CA cannot be used.

    The sentence begins with the option that names the file.
    """


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where certificate, key and client CA are, each in PEM."""

    certificate: Path
    """The certificate, followed by those between it and the root."""
    key: Path
    client_ca: Path | None = None
    """The CA certificates, of which clients need a certificate; None: clients need none."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file."""
        found = (self.certificate, self.key, self.client_ca)
        return tuple(path for path in found if path is not None)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate with its key, ready to serve."""

    context: ssl.SSLContext
    expires: float
    """When the certificate ends, seconds since 1970."""
    client_ca_expires: float | None
    """When the first of the client CA's certificates ends; None without a client CA."""


def load_certificate(files: TlsFiles) -> Certificate:
    """Read the files and try them.

    Raises:
        TlsFileError: one cannot be read, they do not match, or a client would refuse them.
    """
    certificate = _read("--tls-certificate", files.certificate)
    if _CERTIFICATE_END not in certificate:
        raise TlsFileError(
            f"--tls-certificate: {files.certificate} holds no certificate in PEM; name one that "
            "does."
        )
    if not _KEY_END.search(_read("--tls-key", files.key)):
        raise TlsFileError(
            f"--tls-key: {files.key} holds no private key in PEM; name one that does."
        )
    context = _server_context()
    _load_pair(context, files)
    expires = _expiry(context, certificate, files.certificate)
    ca_expires = None if files.client_ca is None else _require_clients_of(context, files.client_ca)
    return Certificate(context, expires, ca_expires)


def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(_PROTOCOLS)
    return context


def _read(option: str, path: Path) -> str:
    """Return the text of a file that an operator has named with an option."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_FILE_BYTES:
            raise TlsFileError(f"{option}: {path} is no file of at most 1 MiB; name a file in PEM.")
        return path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise TlsFileError(
            f"{option}: {path} cannot be read ({error.strerror}); name a file that the service's "
            "user can read."
        ) from None


def _load_pair(context: ssl.SSLContext, files: TlsFiles) -> None:
    def refuse_password() -> str:  # without this, OpenSSL would ask the terminal
        raise TlsFileError(
            f"--tls-key: {files.key} is protected by a password, which a service cannot enter; "
            f"store the key without one (openssl pkey -in {files.key} -out NEW), for the service's "
            "user alone."
        )

    try:
        context.load_cert_chain(files.certificate, files.key, refuse_password)
    except ssl.SSLError as error:
        if error.reason in _MISMATCHES:
            raise TlsFileError(
                f"--tls-key: {files.key} is not the key of {files.certificate}; name the two that "
                "were made together, with the server's own certificate first in its file."
            ) from None
        if error.reason is None and _is_readable(files.certificate):
            raise TlsFileError(
                f"--tls-key: {files.key} is damaged; name the certificate's private key in PEM."
            ) from None
        reason = (error.reason or "unreadable").lower().replace("_", " ")
        raise TlsFileError(
            f"--tls-certificate: {files.certificate} cannot be used ({reason}); name another "
            "certificate in PEM."
        ) from None
    except OSError as error:  # they have just changed
        raise TlsFileError(
            f"--tls-certificate or --tls-key: {files.certificate} or {files.key} cannot be read "
            f"({error.strerror}); name files that the service's user can read."
        ) from None


def _is_readable(certificate: Path) -> bool:
    """Return whether each certificate of a file can be parsed; OpenSSL names no file at fault."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(certificate)
    except OSError:
        return False
    return True


def _expiry(context: ssl.SSLContext, certificate: str, path: Path) -> float:
    """Return when the certificate ends, seconds since 1970, after a handshake with it."""
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it need not sign itself
    own = certificate.partition(_CERTIFICATE_END)[0] + _CERTIFICATE_END
    try:
        client_context.load_verify_locations(cadata=own + "\n")
        found = _peer_certificate(context, client_context)
    except ssl.SSLCertVerificationError as error:
        raise TlsFileError(f"--tls-certificate: {_refusal(path, error)}") from None
    except ssl.SSLError as error:
        raise TlsFileError(
            f"--tls-certificate: {path} completes no handshake ({error.reason}); name another "
            "certificate."
        ) from None
    return ssl.cert_time_to_seconds(found)


def _refusal(path: Path, error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code == _EXPIRED:
        return f"{path} has expired; renew the certificate."
    if error.verify_code == _NOT_YET_VALID:
        return f"{path} is not valid yet; set the clock, or name a certificate that is."
    return f"clients would refuse {path} ({error.verify_message}); name another certificate."


def _peer_certificate(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> str:
    """Return the end of the server's certificate as its client sees it; raises ssl.SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    client = client_context.wrap_bio(to_client, to_server)
    for side in (client, server, client):  # hello; hello, certificate, finished; finished
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    found = client.getpeercert()
    assert found is not None
    return str(found["notAfter"])


def _require_clients_of(context: ssl.SSLContext, path: Path) -> float:
    """Refuse clients without a certificate of a CA; return when the first of its own ends."""
    _read("--tls-client-ca", path)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError:
        raise TlsFileError(
            f"--tls-client-ca: {path} holds no certificate in PEM; name the clients' CA."
        ) from None
    authorities = context.get_ca_certs()
    if not authorities:
        raise TlsFileError(
            f"--tls-client-ca: {path} holds no certificate of a CA; name the clients' CA."
        )
    context.verify_mode = ssl.CERT_REQUIRED
    return min(ssl.cert_time_to_seconds(str(each["notAfter"])) for each in authorities)
