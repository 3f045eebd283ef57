"""Loads versions, keeps them while they are active, and drains them afterwards.

Knows no rollout: the repository decides which versions to load and which to keep.
"""

import asyncio
import math
from collections.abc import Callable, Collection, Sequence

import structlog

from model.errors import UnreadableBundleError
from model.images.preprocessing import InputSpec
from service.engine.model_loader import LoadedModel, Loader, LoadTimeoutError
from service.errors import StoppingError
from service.observability.metrics_recorder import Metrics
from service.observability.watched_tasks import watched
from service.registry.file_access_timeout import Disk
from service.registry.load_failures import LoadFailures
from service.registry.models_folder_scan import Fingerprint, ModelsFolder, fingerprint
from service.settings import ServiceSettings

logger = structlog.stdlib.get_logger("service")

_RETRY_FACTOR = 10
"""A version that took too long to load is tried again after this many times that timeout."""
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 5.0, 300.0
"""One that cannot be read now is tried again after the first pause, then after twice as long."""


class LoadedModels:
    """The versions that are loaded, those that failed to load, and those that drain."""

    def __init__(
        self,
        settings: ServiceSettings,
        metrics: Metrics,
        loader: Loader,
        folder: ModelsFolder,
        disk: Disk,
        on_drained: Callable[[], None],
    ) -> None:
        """Load nothing yet; `on_drained` is called when a version has been drained."""
        self.failures = LoadFailures(metrics)
        self._settings = settings
        self._metrics = metrics
        self._loader = loader
        self._folder = folder
        self._disk = disk
        self._on_drained = on_drained
        self._loaded: dict[tuple[str, int], LoadedModel] = {}
        self._draining: dict[asyncio.Task[None], LoadedModel] = {}

    def __contains__(self, key: tuple[str, int]) -> bool:
        """Return whether a version is loaded and does not drain."""
        return key in self._loaded

    @property
    def in_memory(self) -> Sequence[LoadedModel]:
        """Every version whose network is in memory, draining ones included."""
        return [*self._loaded.values(), *self._draining.values()]

    def add(self, model: LoadedModel) -> None:
        """Keep a version that is loaded already."""
        self._loaded[model.name, model.version_number] = model
        self._metrics.model_info.labels(model.name, model.version).set(1)

    async def load(
        self, name: str, version: int, required_input: InputSpec | None
    ) -> LoadedModel | None:
        """Return a version, loaded now or before; None if that fails, or failed before.

        required_input: the input that clients of the model already send; None: any.

        Raises:
            DeadlineError: the disk does not answer in time.
            StoppingError: the service is stopping.
        """
        key = name, version
        if key in self._loaded:
            return self._loaded[key]
        path = self._folder.path(name, version)
        files = await self._disk.call(fingerprint, path)
        if self.failures.still_applies(key, files):
            return None
        try:
            model = await self._loader.open(path, required_input)
        except StoppingError:
            raise
        except Exception as error:  # BundleError or not: one version must not stop the others
            self.failures.add(key, path, error, files, self._pause_after(error, key, files))
            return None
        self.failures.forget(key)
        self.add(model)
        logger.info("model loaded", model=name, version=version)
        return model

    def _pause_after(self, error: Exception, key: tuple[str, int], files: Fingerprint) -> float:
        """Return how long a version that failed is not tried again with the same files, seconds."""
        match error:
            case LoadTimeoutError():
                return _RETRY_FACTOR * self._settings.load_timeout_seconds
            case UnreadableBundleError():
                twice = 2 * self.failures.pause(key, files)
                return min(twice or _FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)
            case _:
                return math.inf

    def drain_except(self, kept: Collection[LoadedModel]) -> None:
        """Begin to drain every loaded version that is not in `kept`."""
        for key, model in list(self._loaded.items()):
            if model in kept:
                continue
            del self._loaded[key]
            task = watched("drain", self._drain(model))
            self._draining[task] = model
            task.add_done_callback(self._finish_drain)

    async def wait_until_drained(self) -> None:
        """Wait until every draining version has answered its requests and is closed."""
        await asyncio.gather(*self._draining, return_exceptions=True)

    async def _drain(self, model: LoadedModel) -> None:
        await model.drain()
        logger.info("model drained", model=model.name, version=model.version_number)

    def _finish_drain(self, task: "asyncio.Task[None]") -> None:
        model = self._draining.pop(task)
        if (model.name, model.version_number) not in self._loaded:  # else it was loaded again
            self._metrics.model_info.labels(model.name, model.version).set(0)
        self._on_drained()
