"""Which versions could not be loaded, and why: for the log, a metric, the API and readiness."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from model.errors import BundleError
from service.observability.metrics_recorder import Metrics
from service.registry.models_folder_scan import Fingerprint

logger = structlog.stdlib.get_logger("service")


@dataclass(frozen=True)
class LoadFailure:
    """A version that was not loaded, and why."""

    name: str
    version: int
    reason: str
    """Names files as NAME/VERSION/file, and no other path of this machine."""


@dataclass(frozen=True)
class _Entry:
    """A load failure, and when loading is tried again."""

    failure: LoadFailure
    fingerprint: Fingerprint
    """Of the bundle that failed: another one is tried again."""
    pause: float
    """So long loading is not tried again, seconds; infinity: for ever."""
    retry_at: float
    """Where `time.monotonic` is then."""


class LoadFailures:
    """The load failures of all versions, by name and version."""

    def __init__(self, metrics: Metrics) -> None:
        """Start with none."""
        self._metrics = metrics
        self._entries: dict[tuple[str, int], _Entry] = {}

    def __contains__(self, key: tuple[str, int]) -> bool:
        """Return whether a version has failed, and was not forgotten since."""
        return key in self._entries

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """Iterate over name and version of each; it may be changed meanwhile."""
        return iter(list(self._entries))

    def sorted(self) -> Sequence[LoadFailure]:
        """Return all by name, the highest version first."""
        failures = [entry.failure for entry in self._entries.values()]
        return sorted(failures, key=lambda failure: (failure.name, -failure.version))

    def reason(self, name: str, version: int | None) -> str | None:
        """Return why a version failed; None if it did not."""
        entry = self._entries.get((name, version or 0))
        return None if entry is None else entry.failure.reason

    def still_applies(self, key: tuple[str, int], fingerprint: Fingerprint) -> bool:
        """Return whether a version has failed with the same files and is not to be retried yet."""
        entry = self._entries.get(key)
        return (
            entry is not None
            and entry.fingerprint == fingerprint
            and time.monotonic() < entry.retry_at
        )

    def pause(self, key: tuple[str, int], fingerprint: Fingerprint) -> float:
        """Return the last `pause` of a version with these files; 0: they have not failed."""
        entry = self._entries.get(key)
        return 0.0 if entry is None or entry.fingerprint != fingerprint else entry.pause

    def add(
        self,
        key: tuple[str, int],
        path: Path,
        error: Exception,
        fingerprint: Fingerprint,
        pause: float,
    ) -> None:
        """Record why the bundle in the folder `path` was not loaded; log it if that is new.

        pause: how long it is not tried again while its files stay as they are, seconds.
        """
        name, version = key
        failure = LoadFailure(name, version, _reason(error, path, f"{name}/{version}"))
        known = self._entries.get(key)
        self._entries[key] = _Entry(failure, fingerprint, pause, time.monotonic() + pause)
        self._metrics.refused_versions.labels(name, str(version)).set(1)
        if known is None or known.failure != failure:
            logger.error("bundle refused", model=name, version=version, reason=str(error))

    def forget(self, key: tuple[str, int]) -> None:
        """Forget the failure of a version, if there is one, so that it is tried again."""
        if self._entries.pop(key, None) is not None:
            self._metrics.refused_versions.labels(key[0], str(key[1])).set(0)

    def forget_model(self, name: str) -> None:
        """Forget the failures of all versions of a model."""
        for key in self:
            if key[0] == name:
                self.forget(key)


def _reason(error: Exception, path: Path, public_path: str) -> str:
    """Return why a version is refused, with `path` replaced by its path in the models folder."""
    if isinstance(error, BundleError):
        return str(error).replace(str(path), public_path)
    return f"{public_path} cannot be opened, for a reason that the log has."
