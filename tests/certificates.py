"""Certificates that tests make, of authorities that nobody else trusts."""

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

NAMES = ("localhost", "127.0.0.1")


@dataclass(frozen=True)
class PairFiles:
    """The files of a certificate and its key."""

    certificate: Path
    key: Path
    ends: float
    """When the certificate ends, seconds since 1970."""

    @property
    def options(self) -> list[str]:
        """The options with which the service takes them."""
        return ["--tls-certificate", str(self.certificate), "--tls-key", str(self.key)]


class Authority:
    """A certificate authority."""

    def __init__(self) -> None:
        self._ca = trustme.CA()

    def write(self, folder: Path) -> Path:
        """Write the authority's own certificate; return its file."""
        file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(file))
        return file

    def issue(
        self,
        folder: Path,
        days: float = 30,
        name: str = "server",
        key_type: trustme.KeyType = trustme.KeyType.ECDSA,
    ) -> PairFiles:
        """Write a certificate and its key, in place of those there are.

        days: until it ends; negative: since it has ended.
        """
        end = datetime.now(UTC) + timedelta(days=days)
        begin = min(datetime.now(UTC), end) - timedelta(days=1)
        leaf = self._ca.issue_cert(*NAMES, not_before=begin, not_after=end, key_type=key_type)
        pair = PairFiles(folder / f"{name}.pem", folder / f"{name}.key", end.timestamp())
        pair.certificate.write_bytes(b"".join(each.bytes() for each in leaf.cert_chain_pems))
        pair.key.write_bytes(leaf.private_key_pem.bytes())
        pair.key.chmod(0o600)
        return pair

    def client_context(self, pair: PairFiles | None = None) -> ssl.SSLContext:
        """Return the context of a client that trusts this authority alone.

        pair: the client's own certificate.
        """
        context = ssl.create_default_context(cadata=self._ca.cert_pem.bytes().decode())
        if pair is not None:
            context.load_cert_chain(pair.certificate, pair.key)
        return context
