"""Which versions of which models are in service, while the models folder and the rollouts change.

For each model the highest version that opens and passes its self-test is active, unless one is
pinned. If a version fails to load, the previous one stays active, and the log, a metric, GET
/models and, when nothing else is active, GET /health/ready report the failure. Knows no route.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import structlog

from model.bundle.store import SAMPLED_SUFFIX
from model.errors import BundleError
from model.images.preprocessing import InputSpec
from service.engine.daemon_threads import DaemonThreads
from service.engine.model_loader import LoadedModel, Loader
from service.errors import (
    DeadlineError,
    ModelRequiredError,
    NoReportError,
    NotReadyError,
    RolloutError,
    UnknownModelError,
    UnknownVersionError,
    VersionRefusedError,
)
from service.models_source.source_polling import SourcePolling
from service.models_source.wanted_bundles import Wanted
from service.observability.metrics_recorder import Metrics
from service.observability.watched_tasks import watched
from service.registry import not_ready_reasons
from service.registry.active_versions import ActiveVersions, select_version
from service.registry.default_model import DefaultModel
from service.registry.file_access_timeout import Disk
from service.registry.load_failures import LoadFailure
from service.registry.models_folder_scan import ModelsFolder
from service.registry.rollout_spec import RolloutSpec
from service.registry.version_lifecycle import LoadedModels
from service.registry.waiting_for_peer_processes import PeerFollowing
from service.registry.wanted_versions import rollouts_of
from service.settings import ServiceSettings

logger = structlog.stdlib.get_logger("service")

_FOLLOW_SECONDS = 0.25
"""How often the rollouts are read where somebody else may change them."""

_CLOSE_TIMEOUT_SECONDS = 1.0

RolloutChange = Callable[[RolloutSpec, int | None, int | None], RolloutSpec]
"""Takes the current rollout, the active stable version if any, and the highest lower version on
disk; returns the new rollout."""


class Repository:
    """The models in service. Empty until `load` is done."""

    def __init__(
        self, settings: ServiceSettings, metrics: Metrics, loader: Loader | None = None
    ) -> None:
        """Read nothing yet.

        loader: opens the bundles; None: a `Loader` with the same settings.
        """
        self._settings = settings
        self.metrics = metrics
        self._pins = settings.pins
        self._loader = loader or Loader(settings, metrics)
        self._folder = ModelsFolder(settings)
        self._disk = Disk()
        self._rollouts = rollouts_of(settings)
        self._following = PeerFollowing(self._rollouts, self._disk)
        self._source = SourcePolling.of(settings, metrics, self._wanted_of_source)
        self._reconciled_generation = -1
        """The generation of the rollouts that all models were last reconciled with."""
        self._missing: Mapping[str, Sequence[int]] = {}
        """The versions that the rollouts named then and that were not loaded, by model."""
        self._default = DefaultModel(settings.bundles_folder, settings.control_folder)
        self._attempts: dict[str, int] = {}
        """The `RolloutSpec.attempt` of each model that was last reconciled."""
        self._active: dict[str, ActiveVersions] = {}
        self._on_disk: dict[str, list[int]] = {}
        self._loaded = LoadedModels(
            settings,
            metrics,
            self._loader,
            self._folder,
            self._disk,
            self._retain_metric_series,
        )
        self._lock = asyncio.Lock()
        self._report_lock = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._loading = True
        self._has_loaded = asyncio.Event()
        self._was_ready = False
        self._folder_error: str | None = None

    @property
    def active_versions(self) -> Sequence[ActiveVersions]:
        """The active versions of every model in service, by name."""
        return [self._active[name] for name in sorted(self._active)]

    @property
    def load_failures(self) -> Sequence[LoadFailure]:
        """Every version on disk that could not be loaded, by name, the highest first."""
        return self._loaded.failures.sorted()

    @property
    def unloaded_models(self) -> Sequence[str]:
        """Every model that an operator has unloaded, by name."""
        return sorted(name for name in self._on_disk if self._rollout(name).unloaded)

    def target_version(self, name: str) -> str:
        """Return the version that should be the stable one of a model; empty if there is none."""
        return str(self._target(name) or "")

    @property
    def default(self) -> str | None:
        """The model that answers requests that name none; None if there is none."""
        if self._named_default is not None:
            return self._named_default
        recorded = self._default.name
        exists = self._default.exists or recorded in self._active
        if exists and (not self._pins or recorded in self._pins):
            return recorded
        return next(iter(self._active)) if len(self._active) == 1 else None

    @property
    def _named_default(self) -> str | None:
        """The default model where the settings or the rollouts name it."""
        return self._settings.default_model or self._rollouts.default_model

    def add(self, model: LoadedModel) -> None:
        """Put a loaded model into service as its only version, and count as loaded."""
        self._loaded.add(model)
        self._active[model.name] = ActiveVersions(model, None, RolloutSpec())
        self._loading = False

    async def load(self) -> None:
        """Load every model that can be; requests are answered meanwhile, with errors."""
        # Peers do not wait for this process before it has reconciled once. So it reads the
        # rollouts again after that, since they may have been changed meanwhile.
        settled: int | None = None
        while settled != self._reconciled_generation:
            settled = self._reconciled_generation
            await self._try_refresh(folder=settled < 0)
        self._loading = False
        self._has_loaded.set()
        reason = self.not_ready_reason()
        self._log_when_ready()
        if reason is not None and not self._stopping.is_set():
            folder = str(self._settings.bundles_folder)
            logger.error("not ready", reason=reason, models_folder=folder)

    async def wait_until_loaded(self, seconds: float) -> None:
        """Wait until `load` is done, at most for `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._has_loaded.wait()

    async def run(self) -> None:
        """Load, then follow the models folder and the rollouts until `stop`."""
        tasks = [watched("peers", self._following.run())]
        try:
            if self._source is not None:
                await self._try_read_rollouts()  # they may name versions to fetch
                tasks.append(watched("models source", self._source.run()))
                await self._source.wait_until_filled()
            await self.load()
            await self._follow()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _wanted_of_source(self) -> Wanted:
        """Return what is wanted of the source, and what has to stay in the cache."""
        rollouts = self._rollouts.models
        loaded = (each for active in self._active.values() for each in active.loaded)
        previous = {(name, each.previous) for name, each in rollouts.items() if each.previous}
        return Wanted(
            newest=self._settings.models_source_versions,
            pins=self._pins,
            named={name: each.versions for name, each in rollouts.items() if each.versions},
            kept={(each.name, each.version_number) for each in loaded} | previous,
            failed=frozenset(self._loaded.failures),
            may_remove=not (self._loading or self._awaits_rollouts),
        )

    async def _try_read_rollouts(self) -> None:
        with suppress(DeadlineError, NotReadyError):  # `load` reads them again, and logs it
            await self._read_rollouts()

    async def _follow(self) -> None:
        """Follow the rollouts, and the models folder if it is watched, until `stop`."""
        settings = self._settings
        is_shared = settings.control_folder is not None or settings.rollouts is not None
        intervals = [
            *((settings.watch_seconds,) if settings.watch_seconds else ()),
            *((_FOLLOW_SECONDS,) if is_shared else ()),
        ]
        scanned_at = time.monotonic()
        while not await self._wait_for_stop(min(intervals, default=None)):
            now = time.monotonic()
            is_due = 0 < settings.watch_seconds <= now - scanned_at or self._awaits_rollouts
            await self._try_refresh(folder=is_due)
            scanned_at = now if is_due else scanned_at
            self._log_when_ready()

    def _log_when_ready(self) -> None:
        """Log when the service is ready for the first time, which may be after a repair."""
        if not self._was_ready and self.not_ready_reason() is None:
            self._was_ready = True
            logger.info("ready", models=sorted(self._active))

    @property
    def _awaits_rollouts(self) -> bool:
        """Whether no model may be active yet since the rollouts have not been read."""
        return self._rollouts.unread_reason is not None

    async def _try_refresh(self, *, folder: bool) -> None:
        try:
            await self.refresh(folder=folder)
        except (DeadlineError, NotReadyError) as error:
            if not self._stopping.is_set():
                logger.error("the models folder could not be read", reason=str(error))  # noqa: TRY400
        except Exception:  # after any error of a disk, the active versions stay in service
            logger.exception("the models folder could not be read")

    def stop(self) -> None:
        """End `run`, without waiting for a disk or for a bundle that is being opened."""
        self._stopping.set()
        if self._source is not None:
            self._source.stop()
        self._rollouts.stop()
        self._loader.stop()
        self._disk.stop()

    async def _wait_for_stop(self, seconds: float | None) -> bool:
        """Wait for `stop`, at most for `seconds`; return whether it was called."""
        try:
            async with asyncio.timeout(seconds):
                return await self._stopping.wait()
        except TimeoutError:
            return False

    async def refresh(self, *, folder: bool = True) -> None:
        """Reconcile the active versions with the rollouts and, if `folder`, the models folder.

        Without `folder` nothing is done unless the rollouts have changed.
        """
        async with self._lock:
            if not folder and not await self._have_rollouts_changed():
                return
            await self._read(folder=folder)
            if self._rollouts.unread_reason is not None:
                return  # an unloaded or unpinned version must not become active by mistake
            generation = self._rollouts.generation
        for name in sorted({*self._on_disk, *self._active}):
            if self._stopping.is_set():
                return
            async with self._lock:  # between two models a command may run
                await self._reconcile(name)
        async with self._lock:
            self._drop_unused()
            await self._record_default()
            missing = self._missing_versions()
            if missing and missing != self._missing:
                logger.warning("wanted versions not loaded", missing=missing)
                if self._source is not None:
                    self._source.poll_soon()
            self._missing = missing
            await self._disk.call(self._rollouts.mark_applied, generation, missing)
            self._reconciled_generation = generation

    async def _have_rollouts_changed(self) -> bool:
        await self._read_rollouts()
        return self._rollouts.generation != self._reconciled_generation

    def _missing_versions(self) -> Mapping[str, Sequence[int]]:
        """Return the versions that the rollouts name and that are not loaded, by model."""
        missing = {}
        for name in self._rollouts.models:
            rollout = self._rollout(name)
            if rollout.unloaded or (self._pins and name not in self._pins):
                continue
            wanted = [each for each in rollout.versions if (name, each) not in self._loaded]
            if wanted:
                missing[name] = wanted
        return missing

    async def close(self) -> None:
        """Answer the pending requests, then drain every model."""
        async with self._lock:
            self._loaded.drain_except(())
            await self._loaded.wait_until_drained()
        self.stop()
        with suppress(TimeoutError):
            await DaemonThreads("closing").call(_CLOSE_TIMEOUT_SECONDS, self._rollouts.close)

    def not_ready_reason(self) -> str | None:
        """Return in one sentence why the service is not ready; None when it is."""
        if self._loading and self._source is not None and self._source.is_filling:
            return self._source.why_nothing_is_there
        if self._loading:
            return "The models are still being loaded; try again in a second."
        if self._rollouts.unread_reason is not None:
            return self._rollouts.unread_reason
        default = self._named_default
        if self._active and (default is None or default in self._active):
            return None
        unloaded = [name for name in self.unloaded_models if default in (None, name)]
        if unloaded:
            return not_ready_reasons.unloaded(unloaded[0], self._settings.rollouts)
        reasons = [each.reason for each in self.load_failures if default in (None, each.name)]
        if reasons:
            return reasons[0]
        if self._folder_error is not None:
            return self._folder_error
        if self._source is not None:
            return self._source.why_nothing_is_there
        return not_ready_reasons.no_bundle(default, self._settings.served_model_name)

    def get(
        self, name: str | None, version: str | None, request_id: str | None = None
    ) -> LoadedModel:
        """Return the model that answers a request; use it inside `with`, so that it stays open.

        Args:
            name: None for the default model.
            version: a number, `stable` or `canary`; None: `request_id` decides.
            request_id: decides whether the canary answers, see `routes_to_canary`; None: it does
                not.

        Raises:
            NotReadyError: the models are still being loaded, or the default one is not active.
            ModelRequiredError: several models are active and none is the default.
            UnknownModelError, UnknownVersionError: the model or version is not active.
        """
        if self._loading or not self._active or name is None:
            reason = self.not_ready_reason()
            if reason is not None:
                raise NotReadyError(reason)
        wanted = name if name is not None else self.default
        if wanted is None:
            raise ModelRequiredError(
                f"Several models are loaded; name one with ?model=, of {self._active_names()}."
            )
        active = self._active.get(wanted)
        if active is None and name is None:
            raise NotReadyError(
                not_ready_reasons.inactive_default(
                    wanted, self._active_names(), self._settings.rollouts
                )
            )
        if active is None:
            raise UnknownModelError(
                f"No model {wanted!r} is loaded; there is {self._active_names()}."
            )
        return select_version(active, version, request_id)

    def _active_names(self) -> str:
        return ", ".join(sorted(self._active)) or "none"

    def versions(self, model: LoadedModel) -> Sequence[LoadedModel]:
        """Return every active version of the model that `model` is a version of."""
        active = self._active.get(model.name)
        return (model,) if active is None else active.all

    def compared_versions(self, name: str) -> ActiveVersions | None:
        """Return a model's active versions if it has a shadow that is loaded."""
        active = self._active.get(name)
        return None if active is None or active.shadow is None else active

    def load_failure(self, name: str, version: int) -> str | None:
        """Return why a version could not be loaded; None if it could, or was not tried."""
        return self._loaded.failures.reason(name, version)

    async def read_report(self, model: LoadedModel) -> bytes:
        """Read the report of a version from its bundle, one at a time.

        Raises:
            NoReportError: it has none, or its file cannot be read any more.
            DeadlineError: the disk does not answer in time.
        """
        async with self._report_lock:
            try:
                return await self._disk.call(model.bundle.read_report)
            except BundleError:
                raise NoReportError(
                    f"{model.name} version {model.version} has no report that can be shown; its "
                    f"model card is in GET /models/{model.name}."
                ) from None

    async def reload(self, name: str) -> None:
        """Put an unloaded model back into service, and retry the versions that failed to load.

        Raises:
            UnknownModelError: there is no model of that name.
            VersionRefusedError: the version that should be the stable one fails to load.
        """
        async with self._lock:
            await self._read_known(name)
            await self._change(name, RolloutSpec.as_loaded)
            reason = self._loaded.failures.reason(name, self._target(name))
            if reason is not None:
                raise VersionRefusedError(reason)
        await self._following.wait_until_followed(name)

    async def unload(self, name: str) -> None:
        """Take a model out of service; its requests in flight are still answered.

        Raises:
            RolloutError: no command may change the rollouts, or the name is NAME-mc.
            UnknownModelError: there is no model of that name.
        """
        async with self._lock:
            await self._read_known(name)
            await self._change(name, RolloutSpec.as_unloaded)
        await self._following.wait_until_followed(name)

    async def make_default(self, name: str) -> ActiveVersions:
        """Make a model the one that answers requests that name none.

        Raises:
            UnknownModelError: there is no model of that name.
            RolloutError: the settings name the default, or the model is not active.
        """
        async with self._lock:
            await self._read_known(name)
            if self._settings.default_model is not None:
                raise RolloutError(
                    f"{self._settings.default_model} is the default by --default-model; change it "
                    "there, or leave it out there."
                )
            active = self._active.get(name)
            if active is None:
                raise RolloutError(f"{name} is not in service; load it first.")
            await self._disk.call(self._default.change, name)
            if self._settings.control_folder is not None:  # the peers refresh
                await self._disk.call(self._rollouts.change, name, lambda rollout: rollout)
        await self._following.wait_until_followed(name)
        return active

    async def change_rollout(self, name: str, change: RolloutChange) -> ActiveVersions:
        """Change which versions of a model are active, if all of them load; otherwise nothing.

        Raises:
            UnknownModelError, UnknownVersionError: there is no model of that name, or version.
            RolloutError: the settings pin its version, or the change is impossible.
            VersionRefusedError: a version fails to load.
        """
        async with self._lock:
            await self._read_known(name)
            if self._pins.get(name) is not None:
                raise RolloutError(
                    f"{name} is held at version {self._pins[name]} by --models; change it there, "
                    "or leave the version out there."
                )
            before = self._rollout(name)
            wanted = change(before, *self._stable_and_lower(name))
            if not wanted.unloaded:
                for version in wanted.versions:
                    await self._require_loaded(name, version)

            def unless_changed(now: RolloutSpec) -> RolloutSpec:
                if now != before:
                    raise RolloutError(f"{name} was changed meanwhile; look at it and try again.")
                return wanted

            await self._change(name, unless_changed)
            active = self._active.get(name)
        await self._following.wait_until_followed(name)
        if active is None:
            raise RolloutError(f"It is kept for when {name} is in service; load it.")
        return active

    def _stable_and_lower(self, name: str) -> tuple[int | None, int | None]:
        """Return the stable version, if any, and the highest usable one below it."""
        active, held = self._active.get(name), self._rollout(name).held
        stable = None if active is None else active.stable.version_number
        current = stable or held
        lower = [
            version
            for version in self._on_disk.get(name, [])
            if (current is None or version < current)
            and (name, version) not in self._loaded.failures
        ]
        return stable, max(lower, default=None)

    def _target(self, name: str) -> int | None:
        """Return the version that should be the stable one: the pinned or the highest one."""
        held = self._rollout(name).held
        return max(self._on_disk.get(name, []), default=None) if held is None else held

    def _rollout(self, name: str) -> RolloutSpec:
        """Return the rollout of a model, as --models overrides it."""
        rollout = self._rollouts.get(name)
        pin = self._pins.get(name)
        return rollout if pin is None else rollout.pinned(pin)

    async def _read_known(self, name: str) -> None:
        """Read folder and rollouts again, and let the model follow what others have changed.

        Raises:
            RolloutError: no command may change the rollouts, or the name is NAME-mc.
            UnknownModelError: a model is not there.
        """
        self._rollouts.require_changeable()
        await self._read()
        bundle = name.removesuffix(SAMPLED_SUFFIX)
        if bundle != name and (bundle in self._on_disk or bundle in self._active):
            raise RolloutError(
                f"{name} is {bundle} with dropout active, and serves as it does; name {bundle}."
            )
        if name not in self._on_disk and name not in self._active:
            known = ", ".join(sorted(self._on_disk)) or "none"
            raise UnknownModelError(f"There is no model {name!r} to be loaded; there is {known}.")
        active = self._active.get(name)
        if active is not None and active.rollout != self._rollout(name):
            await self._reconcile(name)

    async def _require_loaded(self, name: str, version: int) -> None:
        """Load a version, also if it failed before; raise if it fails now."""
        if (name, version) in self._loaded:
            return
        numbers = self._on_disk.get(name, [])
        if version not in numbers:
            raise UnknownVersionError(
                f"There is no version {version} of {name} in the models folder; "
                f"there is {', '.join(map(str, numbers)) or 'none'}."
            )
        self._loaded.failures.forget((name, version))
        if await self._loaded.load(name, version, self._required_input(name)) is None:
            raise VersionRefusedError(self._loaded.failures.reason(name, version) or "")

    async def _change(self, name: str, step: Callable[[RolloutSpec], RolloutSpec]) -> None:
        """Change the stored rollout of a model, and apply it in this process."""
        await self._disk.call(self._rollouts.change, name, step)
        await self._reconcile(name)
        self._drop_unused()

    async def _read(self, *, folder: bool = True) -> None:
        """Read the rollouts, the default model and, if `folder`, the list of bundles."""
        try:
            await self._read_rollouts()
            await self._disk.call(self._default.read)
            if folder:
                self._on_disk = await self._disk.call(self._folder.list_bundles, self._pins)
                self._folder_error = None
        except DeadlineError as error:
            self._folder_error = str(error)
            raise
        except OSError as error:
            self._folder_error = not_ready_reasons.unreadable_folder(
                self._settings.bundles_folder, error
            )

    async def _read_rollouts(self) -> None:
        await self._disk.call(self._rollouts.read)
        self.metrics.rollouts_valid.set(self._rollouts.is_valid)

    async def _record_default(self) -> None:
        """Record the only model as the default, if none is recorded or the recorded one is gone."""
        if self._named_default is None and len(self._active) == 1:
            (only,) = self._active
            recorded = self._default.name
            if recorded is None or not (self._default.exists or only == recorded):
                await self._disk.call(self._default.record_first, only)

    async def _reconcile(self, name: str) -> None:
        """Load the versions that a model's rollout names, then switch to them in one step."""
        rollout = self._rollout(name)
        before = self._active.get(name)
        if rollout.unloaded or self._attempts.get(name, 0) != rollout.attempt:
            self._attempts[name] = rollout.attempt
            self._loaded.failures.forget_model(name)
        if rollout.unloaded:
            self._active.pop(name, None)
            return
        stable = await self._load_stable(name, rollout, before)
        if stable is None:
            return
        canary = await self._load_beside(stable, rollout.canary)
        shadow = await self._load_beside(stable, rollout.shadow)
        self._active[name] = active = ActiveVersions(stable, canary, rollout, shadow)
        active.set_priorities()
        if before is None or before.stable is not stable:
            self.metrics.switches.labels(name).inc()
            logger.info("model in service", model=name, version=stable.version_number)

    async def _load_beside(self, stable: LoadedModel, version: int | None) -> LoadedModel | None:
        """Return a further version of a model; None if none is wanted, or it does not load."""
        if version is None or version == stable.version_number:
            return None
        return await self._loaded.load(stable.name, version, stable.bundle.manifest.input)

    async def _load_stable(
        self, name: str, rollout: RolloutSpec, before: ActiveVersions | None
    ) -> LoadedModel | None:
        """Return the first candidate that loads; if none does, the stable version from before."""
        candidates = self._on_disk.get(name, []) if rollout.held is None else [rollout.held]
        for version in candidates:
            model = await self._loaded.load(name, version, self._required_input(name))
            if model is not None:
                return model
        return None if before is None else before.stable

    def _required_input(self, name: str) -> InputSpec | None:
        """Return the input that clients of a model already send; None if it is not active."""
        active = self._active.get(name)
        return None if active is None else active.stable.bundle.manifest.input

    def _drop_unused(self) -> None:
        """Drain versions that are not active any more, and forget failures of removed ones."""
        self._loaded.drain_except(
            {each for active in self._active.values() for each in active.loaded}
        )
        for name, version in self._loaded.failures:
            rollout = self._rollout(name)
            if version not in (*self._on_disk.get(name, ()), *rollout.versions):
                self._loaded.failures.forget((name, version))
        self._retain_metric_series()

    def _retain_metric_series(self) -> None:
        """Remove the metric series of models and versions that are gone."""
        present = {(model.name, model.version) for model in self._loaded.in_memory}
        present |= {(name, str(version)) for name, version in self._loaded.failures}
        names = {name for name, _ in present}
        self.metrics.retain_series({*self._on_disk, *self._active, *names}, present)
