"""Polls the source again and again, on a thread, and says how that goes. Knows no loaded model.

Whoever serves from the cache looks at its folder; nothing is told about what was fetched.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

import structlog

from service.engine.daemon_threads import DaemonThreads
from service.errors import StoppingError
from service.models_source.bundle_cache import BundleCache
from service.models_source.exponential_backoff import Backoff
from service.models_source.remote_bundles import RemoteBundles, SourceError, missing_package
from service.models_source.synchronisation import Poll, Synchronisation, unusable_cache
from service.models_source.version_fetch import StoppedError, VersionFetch
from service.models_source.wanted_bundles import Versions, Wanted
from service.observability.metrics_recorder import Metrics
from service.settings import ServiceSettings
from service.source_url import SourceUrl

logger = structlog.stdlib.get_logger("service")

_RETRY_SECONDS = 1.0
_POLL_TIMEOUT_SECONDS = 6 * 3600.0
"""Of a poll with all that it fetches; each read and each version has its own, shorter limit."""
_DISK_TIMEOUT_SECONDS = 10.0
_LOOK_SECONDS = 1.0
_QUIET_SECONDS = 60.0
"""A service starts with the versions that there are when none has been added for so long."""


def why_source_is_unusable(settings: ServiceSettings) -> str | None:
    """Return in one sentence why the source cannot be followed at all; None if it can, or none is.

    It asks no network.
    """
    if settings.models_source is None:
        return None
    if settings.served_model_name is not None:
        return (
            "--served-model-name: it is for a folder of one model, and --models-source has "
            "NAME/VERSION/; leave one of them out."
        )
    missing = missing_package()
    return None if missing is None else f"--models-source: {missing}"


def why_cache_is_unusable(settings: ServiceSettings) -> str | None:
    """Return in one sentence why the cache would serve what is not of the source; None if not.

    A folder that cannot be read is not judged; that may pass.
    """
    if settings.source_url is None:
        return None
    try:
        problem = BundleCache(settings.bundles_folder, str(settings.source_url)).why_unusable()
    except OSError:
        return None
    return None if problem is None else f"--models-cache: {problem}"


class SourcePolling:
    """Follows a source: what is wanted there comes into the cache, sooner or later."""

    def __init__(
        self,
        settings: ServiceSettings,
        url: SourceUrl,
        metrics: Metrics,
        wanted: Callable[[], Wanted],
        source: RemoteBundles | None = None,
    ) -> None:
        """Read nothing yet.

        wanted: returns what is wanted of the source, as a value that does not change.
        source: replaces the bundles at `url`, for tests.
        """
        self._settings = settings
        self._url = url
        self._wanted = wanted
        self._cache = BundleCache(settings.bundles_folder, str(url))
        self._source = source
        self._synchronisation: Synchronisation | None = None
        self._threads = DaemonThreads("models source")
        self._backoff = Backoff(_RETRY_SECONDS, settings.models_source_seconds)
        self._stopping = threading.Event()
        self._has_polled = asyncio.Event()
        self._is_due = asyncio.Event()
        self._problem: str | None = None
        self.is_filling = True
        """Whether `wait_until_filled` has not ended yet."""
        self._success = metrics.models_source_success.labels(str(url))
        self._failures = metrics.models_source_failures.labels(str(url))
        self._fetched = metrics.models_source_fetched.labels(str(url))

    @classmethod
    def of(
        cls, settings: ServiceSettings, metrics: Metrics, wanted: Callable[[], Wanted]
    ) -> Self | None:
        """Return what follows the source that the settings name; None if they name none."""
        url = settings.source_url
        return None if url is None else cls(settings, url, metrics, wanted)

    @property
    def why_nothing_is_there(self) -> str:
        """Why the cache may have no version, as one sentence."""
        if self._problem is not None:
            return f"No version could be fetched yet; that is tried again. {self._problem}"
        if not self._has_polled.is_set():
            return f"The models are being fetched from {self._url}; try again in a few seconds."
        return (
            f"{self._url} has no version that is wanted; publish one there as "
            "NAME/VERSION/, and look at --models."
        )

    async def run(self) -> None:
        """Poll until `stop`."""
        self._success.set(time.time())
        while not self._stopping.is_set():
            delay = await self._poll()
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._is_due.wait()
            self._is_due.clear()

    async def wait_until_filled(self) -> None:
        """Wait for the first poll if the cache has no version yet, though not for a slow one.

        Which process adds the versions makes no difference.
        """
        if not await self._cached():
            await self._wait_while_versions_are_added()
        self.is_filling = False

    async def _wait_while_versions_are_added(self) -> None:
        cached: Versions = {}
        changed_at = time.monotonic()
        while not self._has_polled.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._has_polled.wait()
            before, cached = cached, await self._cached()
            if cached != before:
                changed_at = time.monotonic()
            elif cached and time.monotonic() - changed_at >= _QUIET_SECONDS:
                return

    async def _cached(self) -> Versions:
        with suppress(OSError, TimeoutError, StoppingError):
            return await self._threads.call(_DISK_TIMEOUT_SECONDS, self._cache.versions)
        return {}

    def poll_soon(self) -> None:
        """Poll now instead of at the next time, since other versions are wanted."""
        self._is_due.set()

    def stop(self) -> None:
        """End `run` and what it fetches."""
        self._stopping.set()
        self._threads.abandon()
        if self._synchronisation is not None:
            self._synchronisation.close()
        self._has_polled.set()
        self._is_due.set()

    async def _poll(self) -> float:
        """Poll once; return in how many seconds to poll again."""
        try:
            poll = await self._threads.call(
                _POLL_TIMEOUT_SECONDS, self._synchronise, self._wanted()
            )
        except (StoppingError, StoppedError):
            return 0.0
        except SourceError as error:
            poll = self._failed(str(error))
        except TimeoutError:
            poll = self._failed(
                f"{self._url} has not been read within {_POLL_TIMEOUT_SECONDS:,.0f} s."
            )
        except OSError as error:
            poll = self._failed(unusable_cache(error))
        except Exception:  # whatever the library does, the service serves on
            logger.exception("models source")
            poll = Poll(problem="The models source cannot be read; the log has the reason.")
        return self._after(poll)

    def _synchronise(self, wanted: Wanted) -> Poll:
        if self._synchronisation is None:
            source = self._source or RemoteBundles.at(self._url)
            fetch = VersionFetch(
                source,
                self._cache,
                self._settings.models_source_max_bytes,
                self._stopping.is_set,
            )
            self._synchronisation = Synchronisation(source, self._cache, fetch)
        return self._synchronisation.poll(wanted, self._settings.models_source_seconds)

    def _failed(self, problem: str) -> Poll:
        if problem != self._problem:
            logger.error("models source", reason=problem)
        return Poll(problem=problem)

    def _after(self, poll: Poll) -> float:
        """Note how a poll went; return in how many seconds to poll again."""
        if poll.is_busy:  # another process fetches, and the folder shows what
            return _RETRY_SECONDS
        if self._problem is not None and poll.problem is None:
            logger.info("models source followed again", source=str(self._url))
        self._problem = poll.problem
        self._has_polled.set()
        self._fetched.inc(poll.fetched)
        if poll.succeeded_at is None:
            self._failures.inc()
            return self._backoff.after_failure()
        self._backoff.reset()
        self._success.set(poll.succeeded_at)
        age = time.time() - poll.succeeded_at
        return max(_RETRY_SECONDS, self._settings.models_source_seconds - age)
