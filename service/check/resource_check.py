"""Checks GPU, processors and memory against what the settings want of them. Knows no bundle."""

from collections.abc import Iterator

from model.container_resources import available_memory_bytes, available_processors
from model.graphs.execution_provider import why_provider_is_unusable
from service.check.findings import Finding, error, fine, warning
from service.settings import ServiceSettings

_MIB = 2**20


def check_provider(settings: ServiceSettings) -> Iterator[Finding]:
    """Yield what keeps ONNX Runtime from the GPU; whether there is one, loading a bundle shows."""
    problem = why_provider_is_unusable(settings.provider)
    if problem is not None:
        yield error("provider", problem)


def check_processors(settings: ServiceSettings) -> Iterator[Finding]:
    """Yield a warning if more threads compute than there are processors."""
    processors = available_processors()
    busy = settings.workers * settings.threads
    if busy <= processors:
        return
    what = f"--workers {settings.workers}"
    if settings.threads > 1:
        what += f" with --threads {settings.threads} each"
    share = "1 processor" if processors == 1 else f"{processors} processors"
    yield warning(
        "processors",
        f"{what} would share {share}, which delays answers; lower them until their product is "
        f"{processors}, or give the service more.",
    )


def check_memory(
    settings: ServiceSettings, worker_bytes: int, available: int | None = None
) -> Iterator[Finding]:
    """Yield whether the workers fit into the memory that there is.

    worker_bytes: of one process with the versions in service and its sandbox process, measured.
    available: bytes that the service may use; None: as measured.
    """
    available = available_memory_bytes() if available is None else available
    workers = "1 worker takes" if settings.workers == 1 else f"{settings.workers} workers take"
    needed = settings.workers * worker_bytes
    taken = f"{workers} about {needed / _MIB:,.0f} MiB with these versions"
    there = f"{available / _MIB:,.0f} MiB"
    if needed > available:
        yield error(
            "memory",
            f"{taken}, and there are {there}, so the system would kill them; lower --workers, "
            "serve fewer models by --models, or give the service more.",
        )
    elif needed + settings.workers * settings.max_buffered_bytes > available:
        yield warning(
            "memory",
            f"{taken}, and there are {there}, which leaves no room for --max-buffered-bytes, "
            f"{settings.max_buffered_bytes / _MIB:,.0f} MiB a worker, of requests; lower that or "
            "--workers, or give the service more.",
        )
    else:
        processors = available_processors()
        plural = "processor" if processors == 1 else "processors"
        yield fine("memory", f"{taken}, of {there}, on {processors} {plural}.")
