"""Brings the cache to what is wanted of the source: one poll. Knows no event loop and no schedule.

The newest versions of each model are fetched, and those that a rollout names. What is gone at the
source is removed, except the last versions of a model; what was replaced there is not followed.
"""

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

import structlog

from model.bundle.store import MANIFEST_FILE, MAX_MANIFEST_BYTES
from service.models_source.bundle_cache import BundleCache
from service.models_source.exponential_backoff import Backoff
from service.models_source.remote_bundles import RemoteBundles, SourceError
from service.models_source.version_fetch import VersionFetch

logger = structlog.stdlib.get_logger("service")

_RETRY_SECONDS = 1.0
_MOST_RETRY_SECONDS = 600.0
"""A version that cannot be fetched is downloaded again after at most this time."""

Versions = Mapping[str, Collection[int]]


@dataclass(frozen=True)
class Wanted:
    """Which versions of the source are wanted."""

    newest: int
    """How many of each model, from the highest on."""
    pins: Mapping[str, int | None] = field(default_factory=dict)
    """The only models, each with its only version or None; empty: all models."""
    named: Versions = field(default_factory=dict)
    """Further versions, by model."""

    def of(self, name: str, published: Collection[int]) -> list[int]:
        """Return the wanted ones of a model's published versions, the highest first."""
        pin = self.pins.get(name)
        if pin is not None:
            return [pin]
        highest = sorted(published, reverse=True)[: self.newest]
        return sorted({*highest, *self.names(name)} & {*published}, reverse=True)

    def names(self, name: str) -> set[int]:
        """Return the versions of a model that are wanted whichever others there are."""
        pin = self.pins.get(name)
        return {*self.named.get(name, ()), *(() if pin is None else (pin,))}

    def __str__(self) -> str:
        """Return a text that differs where other versions are wanted."""
        named = {name: sorted(self.named[name]) for name in sorted(self.named)}
        return json.dumps([self.newest, dict(sorted(self.pins.items())), named])


@dataclass(frozen=True)
class Poll:
    """What a poll has come to."""

    is_busy: bool = False
    """Another process holds the cache's lock, so nothing was done."""
    succeeded_at: float | None = None
    """When all that is wanted was in the cache, seconds since 1970; None: it is not."""
    fetched: int = 0
    """Versions that were fetched."""
    problem: str | None = None
    """The first reason why something wanted is not in the cache, as one sentence."""


@dataclass
class _Refused:
    """A version that could not be fetched."""

    problem: str
    retry_at: float
    """Of `time.monotonic`."""
    backoff: Backoff


class Synchronisation:
    """Fetches from a source into a cache. One thread at a time may use it."""

    def __init__(self, source: RemoteBundles, cache: BundleCache, fetch: VersionFetch) -> None:
        """Fetch nothing yet."""
        self._source = source
        self._cache = cache
        self._fetch = fetch
        self._refused: dict[tuple[str, int], _Refused] = {}
        self._compared: dict[tuple[str, int], str] = {}
        """The tags of the published manifests that are the fetched ones."""
        self._logged: Collection[str] = ()

    def poll(self, wanted: Wanted, fresh_seconds: float) -> Poll:
        """Bring the cache to what is wanted, unless a process did so in the last `fresh_seconds`.

        Raises:
            SourceError: the source cannot be read, or the folder cannot be its cache.
            OSError: the cache cannot be read or written.
        """
        with self._cache.locked() as is_held:
            if not is_held:
                return Poll(is_busy=True)
            polled_at = self._cache.polled_at(str(wanted))
            if 0 <= time.time() - polled_at < fresh_seconds:
                return Poll(succeeded_at=polled_at)
            published = self._source.list_versions(wanted.pins)
            before = self._cache.versions()
            problems = [
                problem
                for name in sorted({*published, *wanted.pins})
                for version in wanted.of(name, published.get(name, ()))
                for problem in self._bring(name, version, before.get(name, ()))
            ]
            fetched = _count(self._cache.versions()) - _count(before)
            vanished = self._remove_withdrawn(published, before, wanted)
            self._log_new([*problems, *vanished])
            if problems:
                return Poll(fetched=fetched, problem=problems[0])
            return Poll(succeeded_at=self._cache.mark_polled(str(wanted)), fetched=fetched)

    def _bring(self, name: str, version: int, cached: Collection[int]) -> Iterator[str]:
        """Fetch a version, or compare it if it was fetched before; yield what is wrong with it."""
        key = name, version
        refused = self._refused.get(key)
        if refused is not None and time.monotonic() < refused.retry_at:
            yield refused.problem
            return
        try:
            if version in cached:
                self._compare(name, version)
            else:
                self._fetch_new(name, version)
        except (SourceError, OSError) as error:
            yield self._refuse(key, _problem(error))
        else:
            self._refused.pop(key, None)

    def _refuse(self, key: tuple[str, int], problem: str) -> str:
        """Note that a version could not be fetched, and when that is tried again."""
        refused = self._refused.get(key)
        backoff = (
            Backoff(_RETRY_SECONDS, _MOST_RETRY_SECONDS) if refused is None else (refused.backoff)
        )
        retry_at = time.monotonic() + backoff.after_failure()
        self._refused[key] = _Refused(problem, retry_at, backoff)
        return problem

    def _fetch_new(self, name: str, version: int) -> None:
        manifest = self._source.read(_manifest_path(name, version), MAX_MANIFEST_BYTES)
        assert manifest is not None  # no tag was given
        self._fetch.fetch(name, version, manifest.content)
        if manifest.e_tag is not None:
            self._compared[name, version] = manifest.e_tag
        logger.info("version fetched", model=name, version=version, source=self._source.place)

    def _compare(self, name: str, version: int) -> None:
        """Raise SourceError if another bundle was published under a fetched version's number."""
        e_tag = self._compared.get((name, version))
        path = _manifest_path(name, version)
        published = self._source.read(path, MAX_MANIFEST_BYTES, e_tag)
        if published is None:
            return
        fetched = self._cache.manifest(name, version)
        if published.content != fetched:
            was, now = (sha256(each).hexdigest()[:12] for each in (fetched, published.content))
            raise SourceError(
                f"{self._source.place}/{name}/{version} was replaced (its manifest's SHA-256 was "
                f"{was}… when it was fetched, and is {now}…), and the fetched one serves on; "
                "publish the new one under a new number."
            )
        if published.e_tag is not None:
            self._compared[name, version] = published.e_tag

    def _remove_withdrawn(
        self, published: Versions, cached: Versions, wanted: Wanted
    ) -> Sequence[str]:
        """Remove fetched versions that are gone at the source; return which models are gone.

        A model that is gone altogether stays, since that is how an accident looks.
        """
        vanished = []
        for name, versions in cached.items():
            if wanted.pins and name not in wanted.pins:
                continue
            if not published.get(name):
                vanished.append(f"{self._source.place}/{name} is gone; what was fetched serves on.")
                continue
            for version in sorted({*versions} - {*published[name]} - wanted.names(name)):
                self._cache.remove(name, version)
                logger.warning("version withdrawn", model=name, version=version)
        return vanished

    def _log_new(self, problems: Sequence[str]) -> None:
        """Log the problems that the poll before had not."""
        for problem in problems:
            if problem not in self._logged:
                logger.error("models source", reason=problem)
        self._logged = frozenset(problems)


def _count(versions: Versions) -> int:
    return sum(map(len, versions.values()))


def _manifest_path(name: str, version: int) -> str:
    return f"{name}/{version}/{MANIFEST_FILE}"


def _problem(error: SourceError | OSError) -> str:
    """Return an error as one sentence."""
    return str(error) if isinstance(error, SourceError) else unusable_cache(error)


def unusable_cache(error: OSError) -> str:
    """Return in one sentence that the cache cannot be read or written."""
    return (
        f"The cache cannot be used ({error.strerror or error}); free space, or name another "
        "folder with --models-cache."
    )
