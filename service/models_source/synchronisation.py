"""Brings the cache to what is wanted of the source: one poll. Knows no event loop and no schedule.

The newest versions of each model are fetched, and those that a rollout names. What is gone at the
source is removed once another version is there that is not, and so are versions that became old;
what was replaced there is not followed.
"""

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

import structlog

from model.bundle.store import MANIFEST_FILE, MAX_MANIFEST_BYTES
from service.models_source.bundle_cache import BundleCache
from service.models_source.cache_users import CacheUsers
from service.models_source.exponential_backoff import Backoff
from service.models_source.remote_bundles import RemoteBundles, SourceError
from service.models_source.version_fetch import VersionFetch
from service.models_source.wanted_bundles import Versions, Wanted

logger = structlog.stdlib.get_logger("service")

_RETRY_SECONDS = 1.0
_MOST_RETRY_SECONDS = 600.0
"""A version that cannot be fetched is downloaded again after at most this time, or after as long
as the last try took."""


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
        self._users = CacheUsers(cache.folder)
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
            self._users.announce(wanted)
            if not is_held:
                return Poll(is_busy=True)
            polled_at = self._cache.polled_at(wanted.request)
            if 0 <= time.time() - polled_at < fresh_seconds:
                return Poll(succeeded_at=polled_at)
            published = self._source.list_versions(wanted.pins)
            # Before fetching, so that it waits for no slow version; and what was fetched since the
            # poll before has been loaded meanwhile, or has failed to.
            self._remove_unneeded(published, wanted)
            before = self._cache.versions()
            problems = [
                problem
                for name, version in self._in_order_of_need(published, wanted)
                for problem in self._bring(name, version)
            ]
            problems += self._vanished(published, before, wanted)
            self._log_new(problems)
            fetched = _count(self._cache.versions()) - _count(before)
            if problems:
                return Poll(fetched=fetched, problem=problems[0])
            return Poll(succeeded_at=self._cache.mark_polled(wanted.request), fetched=fetched)

    def close(self) -> None:
        """Release the cache: nothing has to stay in it for this process."""
        self._users.close()

    def _in_order_of_need(self, published: Versions, wanted: Wanted) -> Sequence[tuple[str, int]]:
        """Return the wanted versions: one of each model first, those that failed before last."""
        ranked = [
            (rank, (name, version))
            for name in sorted({*published, *wanted.pins})
            for rank, version in enumerate(wanted.of(name, published.get(name, ())))
        ]
        ranked.sort(key=lambda each: (each[1] in self._refused, each[0]))
        return [key for _, key in ranked]

    def _bring(self, name: str, version: int) -> Iterator[str]:
        """Fetch a version, or compare it if it was fetched before; yield what is wrong with it."""
        key = name, version
        refused = self._refused.get(key)
        if refused is not None and time.monotonic() < refused.retry_at:
            yield refused.problem
            return
        began = time.monotonic()
        try:
            if self._cache.has_manifest(name, version):
                self._compare(name, version)
            else:
                self._fetch_new(name, version)
        except (SourceError, OSError) as error:
            yield self._refuse(key, _problem(error), time.monotonic() - began)
        else:
            self._refused.pop(key, None)

    def _refuse(self, key: tuple[str, int], problem: str, seconds: float) -> str:
        """Note that a version could not be fetched in a try of so many seconds."""
        refused = self._refused.get(key)
        backoff = refused.backoff if refused else Backoff(_RETRY_SECONDS, _MOST_RETRY_SECONDS)
        retry_at = time.monotonic() + max(backoff.after_failure(), seconds)
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

    def _remove_unneeded(self, published: Versions, wanted: Wanted) -> None:
        """Remove what is gone at the source, or old there, and needed by no process.

        What is gone stays until a version is there that the source has and that can be loaded.
        """
        users = (wanted, *self._users.others())
        if not all(each.may_remove for each in users):
            return
        for name, versions in self._cache.versions().items():
            listed = {*versions} & {*published.get(name, ())}
            if any((name, version) not in wanted.failed for version in listed):
                named = {version for each in users for version in each.names(name)}
                for version in sorted({*versions} - listed - named):
                    self._cache.remove(name, version)
                    logger.warning("version withdrawn", model=name, version=version)
            kept = {version for each in users for version in each.keeps(name, listed)}
            for version in sorted(listed - kept):
                self._cache.remove(name, version)
                logger.info("old version removed", model=name, version=version)

    def _vanished(self, published: Versions, cached: Versions, wanted: Wanted) -> Sequence[str]:
        """Return in a sentence each which models are gone altogether, which may be an accident."""
        return [
            f"{self._source.place}/{name} has no version any more, and what was fetched serves on; "
            "publish one again, or unload the model and remove its folder from the cache."
            for name in cached
            if not published.get(name) and (not wanted.pins or name in wanted.pins)
        ]

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
