"""Checks the certificate as the service does at its start, and when it ends."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime

from service.check.access_check import can_be_hidden_by_owner
from service.check.findings import Finding, error, fine, warning
from service.run_server import StartError, require_usable_certificate
from service.settings import ServiceSettings

_SUBJECT = "certificate"
_DAY_SECONDS = 86_400
_WARNING_DAYS = 7
"""Before the end, as in the alert DropserveCertificateExpires."""


def check_certificate(settings: ServiceSettings) -> Iterator[Finding]:
    """Yield whether certificate, key and client CA can be used, until when, and who has the key."""
    try:
        certificate = require_usable_certificate(settings)
    except StartError as refusal:
        yield error(_SUBJECT, str(refusal))
        return
    files = settings.tls_files
    if certificate is None or files is None:
        return
    if can_be_hidden_by_owner(files.key):
        yield warning(
            _SUBJECT,
            f"{files.key} can be read by every user of this machine, who could pass for this "
            f"service; chmod 600 {files.key}.",
        )
    yield _until(str(files.certificate), certificate.expires)
    if certificate.client_ca_expires is not None:
        yield _until(str(files.client_ca), certificate.client_ca_expires)


def _until(name: str, expires: float) -> Finding:
    end = f"{datetime.fromtimestamp(expires, UTC):%Y-%m-%d %H:%M}Z"
    days = (expires - time.time()) / _DAY_SECONDS
    if days <= 0:
        return error(_SUBJECT, f"{name} has expired, {end}; renew it.")
    if days < _WARNING_DAYS:
        return warning(_SUBJECT, f"{name} ends at {end}, in {days:.0f} days; renew it.")
    return fine(_SUBJECT, f"{name} is good until {end}.")
