"""One run of `python -m service.check`: the settings -> all findings. Knows no command line."""

from collections.abc import Iterator

from service.check.access_check import check_access
from service.check.bundle_check import check_versions
from service.check.certificate_check import check_certificate
from service.check.edge_check import check_edge
from service.check.findings import Finding, error
from service.check.label_studio_check import check_label_studio
from service.check.listening_check import check_descriptors, check_listening
from service.check.models_source_check import check_models_source
from service.check.resource_check import check_memory, check_processors, check_provider
from service.check.rights_and_disk_room_check import check_folders
from service.check.settings_check import check_settings
from service.check.tracing_check import check_tracing
from service.settings import ServiceSettings

_CHECKS = (
    check_settings,
    check_edge,
    check_tracing,
    check_folders,
    check_models_source,
    check_label_studio,
    check_access,
    check_certificate,
    check_listening,
    check_descriptors,
    check_provider,
    check_processors,
)


async def check(settings: ServiceSettings) -> list[Finding]:
    """Examine everything that the service needs; it takes as long as loading every version."""
    findings = [
        finding for each in _CHECKS for finding in _in_spite_of_disks(each.__name__, each(settings))
    ]
    versions = await check_versions(settings)
    findings += versions.findings
    if versions.worker_bytes is not None:
        findings += check_memory(settings, versions.worker_bytes)
    return findings


def _in_spite_of_disks(name: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """Yield the findings of a check; one that the system ends is an error itself."""
    try:
        yield from findings
    except OSError as reason:
        where = f"{reason.filename}: " if reason.filename else ""
        yield error(
            name.removeprefix("check_"),
            f"cannot be examined ({where}{reason.strerror or reason}); give this user access to "
            "it, or repair it.",
        )
