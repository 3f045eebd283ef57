"""Which bundles are in service, at which versions, while the folder and the releases change.

Of each model the highest version that opens and passes its self-test is served, unless one is
held. A version that does not is refused with its reason, which the log, a metric, GET /models and,
when nothing else serves, GET /health/ready tell; the one before goes on serving. Knows no route.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from model.bundle.store import names, versions
from model.errors import BundleError
from model.images.preprocessing import InputSpec
from service.engine.loader import LoadedModel, Loader, LoadTimeoutError
from service.engine.threads import DaemonThreads, StoppingError
from service.errors import (
    DeadlineError,
    ModelRequiredError,
    NotReadyError,
    RolloutError,
    UnknownModelError,
    UnknownVersionError,
    VersionRefusedError,
)
from service.observability.metrics import Metrics
from service.registry.default_model import DefaultModel
from service.registry.rollout import RolloutSpec, RolloutStore, falls_to_canary
from service.settings import ServiceSettings

logger = structlog.stdlib.get_logger("service")

STABLE, CANARY = "stable", "canary"

_CHECK_SECONDS = 0.05
_FOLLOW_SECONDS = 1.0
_PATIENCE_SECONDS = 30.0
_DISK_SECONDS = 10.0
"""How long a disk may take to tell what a folder holds, or to keep a change."""

_AGAIN = 10
"""A version that took too long to load is tried again after so many times that."""

_CLOSING_SECONDS = 1.0
_STOPPING = "The server is stopping; send the request to another."

T = TypeVar("T")

Step = Callable[[RolloutSpec, int | None, int | None], RolloutSpec]
"""The release now, the stable version if any, the best lower one on disk -> the new release."""

Fingerprint = frozenset[tuple[str, int, int]]


@dataclass(frozen=True)
class LoadFailure:
    """A version that was not loaded, and why."""

    name: str
    version: int
    reason: str
    """Names files by NAME/VERSION/file, and nothing else of this machine."""


@dataclass(frozen=True)
class _FailedLoad:
    """A refusal, and when the version is tried again."""

    refusal: LoadFailure
    seen: Fingerprint
    """Of its folder: when that changes."""
    again: float = math.inf
    """Or at this time of `time.monotonic`."""

    def stands(self, seen: Fingerprint) -> bool:
        return self.seen == seen and time.monotonic() < self.again


@dataclass(frozen=True)
class ActiveVersions:
    """What of one model is in service."""

    stable: LoadedModel
    canary: LoadedModel | None
    release: RolloutSpec

    @property
    def all(self) -> tuple[LoadedModel, ...]:
        """Every version in service, the stable one first."""
        return (self.stable,) if self.canary is None else (self.stable, self.canary)


class Repository:
    """The models in service. Empty until `load` is done."""

    def __init__(self, settings: ServiceSettings, metrics: Metrics) -> None:
        self._settings = settings
        self.metrics = metrics
        self._pins = settings.pins
        self._loader = Loader(settings, metrics)
        self._disk = DaemonThreads("disk")
        self._releases = RolloutStore(settings.control_folder, settings.workers)
        self._default = DefaultModel(settings.models_folder, settings.control_folder)
        self._attempts: dict[str, int] = {}
        self._offers: dict[str, ActiveVersions] = {}
        self._on_disk: dict[str, list[int]] = {}
        self._opened: dict[tuple[str, int], LoadedModel] = {}
        self._refused: dict[tuple[str, int], _FailedLoad] = {}
        self._leaving: dict[asyncio.Task[None], LoadedModel] = {}
        self._lock = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._loading = True
        self._has_loaded = asyncio.Event()
        self._was_ready = False
        self._unreadable: str | None = None

    @property
    def offers(self) -> Sequence[ActiveVersions]:
        """Everything in service, by name."""
        return [self._offers[name] for name in sorted(self._offers)]

    @property
    def refusals(self) -> Sequence[LoadFailure]:
        """Every version on disk that was tried and refused, by name, the highest first."""
        found = [each.refusal for each in self._refused.values()]
        return sorted(found, key=lambda each: (each.name, -each.version))

    @property
    def unloaded(self) -> Sequence[str]:
        """Every model that was taken out of service, by name."""
        return sorted(name for name in self._on_disk if self._release(name).unloaded)

    def newest(self, name: str) -> str:
        """Return the version on disk that a model would serve if it may be loaded; or nothing."""
        return str(self._wanted(name) or "")

    @property
    def default(self) -> str | None:
        """The model of requests that name none."""
        if self._settings.default_model is not None:
            return self._settings.default_model
        recorded = self._default.name
        there = self._default.is_there or recorded in self._offers
        if there and (not self._pins or recorded in self._pins):
            return recorded
        return next(iter(self._offers)) if len(self._offers) == 1 else None

    async def load(self) -> None:
        """Put everything into service that can be; the application answers meanwhile."""
        await self._look_again(folder=True)
        self._loading = False
        self._has_loaded.set()
        problem = self.problem()
        self._say_ready()
        if problem is not None and not self._stopping.is_set():
            folder = str(self._settings.models_folder)
            logger.error("not ready", reason=problem, models_folder=folder)

    async def wait_until_loaded(self, seconds: float) -> None:
        """Wait until everything is in service that can be, but no longer than `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._has_loaded.wait()

    async def run(self) -> None:
        """Load, then look at the folder and the releases again and again, until told to stop."""
        await self.load()
        watched = self._settings.watch_seconds
        # Even where nobody looks at the folder, one worker's command has to reach the others.
        follow = self._settings.workers > 1
        while not await self._stopped_within(
            watched or (_FOLLOW_SECONDS if follow or self._has_to_begin else None)
        ):
            await self._look_again(folder=watched > 0 or self._has_to_begin)
            self._say_ready()

    def _say_ready(self) -> None:
        """Log when everything is there for the first time, perhaps after a fault was mended."""
        if not self._was_ready and self.problem() is None:
            self._was_ready = True
            logger.info("ready", models=sorted(self._offers))

    @property
    def _has_to_begin(self) -> bool:
        """Whether nothing could be put into service yet, for want of the releases."""
        return self._releases.unknown is not None

    async def _look_again(self, *, folder: bool) -> None:
        try:
            await self.refresh(folder=folder)
        except (DeadlineError, NotReadyError) as error:
            if not self._stopping.is_set():
                logger.error("the models folder could not be looked at", reason=str(error))  # noqa: TRY400
        except Exception:  # whatever a disk comes up with: what serves goes on serving
            logger.exception("the models folder could not be looked at")

    def stop(self) -> None:
        """End `run`: what a disk or a bundle keeps it waiting for is not waited for."""
        self._stopping.set()
        self._releases.stop()
        self._loader.stop()
        self._disk.abandon()

    async def _stopped_within(self, seconds: float | None) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._stopping.wait()
        except TimeoutError:
            return False

    async def refresh(self, *, folder: bool = True) -> None:
        """Bring what is in service in line with the releases, and with the folder."""
        async with self._lock:
            await self._read(folder=folder)
            if self._releases.unknown is not None:
                return  # what is wanted of any model is not known: nothing may serve by mistake
            generation = self._releases.generation
        for name in sorted({*self._on_disk, *self._offers}):
            if self._stopping.is_set():
                return
            async with self._lock:  # between two models a command may come in
                await self._settle(name)
        async with self._lock:
            self._tidy()
            await self._settle_default()
            await self._ask_disk(self._releases.applied, generation)

    async def close(self) -> None:
        """Answer what is queued, then let every model go."""
        async with self._lock:
            self._let_go(list(self._opened.values()))
            await asyncio.gather(*self._leaving)
        self.stop()
        with suppress(TimeoutError):
            await DaemonThreads("closing").call(_CLOSING_SECONDS, self._releases.close)

    def problem(self) -> str | None:
        """Say in one sentence why the service is not ready; None when it is."""
        if self._loading:
            return "The models are still being loaded; try again in a second."
        if self._releases.unknown is not None:
            return self._releases.unknown
        default = self._settings.default_model
        if self._offers and (default is None or default in self._offers):
            return None
        out = [name for name in self.unloaded if default in (None, name)]
        if out:
            return f"{out[0]} is unloaded; load it with python -m service.control load {out[0]}."
        reasons = [each.reason for each in self.refusals if default in (None, each.name)]
        if reasons:
            return reasons[0]
        if self._unreadable is not None:
            return self._unreadable
        wanted = "bundle" if default is None else f"bundle of the default model {default!r}"
        return f"The models folder holds no {wanted}; train one with python -m training."

    def get(self, name: str | None, version: str | None, request_id: str = "") -> LoadedModel:
        """Find a model in service; use it only within `with`, so that it stays.

        Args:
            name: None for the default one.
            version: a number, `stable` or `canary`; None for whichever the request falls to.
            request_id: decides whether the request is among a canary's share.

        Raises:
            NotReadyError: the models are still being loaded, or the default one could not be.
            ModelRequiredError: several models are loaded and none is the default.
            UnknownModelError, UnknownVersionError: it is not among what is loaded.
        """
        if self._loading or not self._offers or name is None:
            problem = self.problem()
            if problem is not None:
                raise NotReadyError(problem)
        wanted = name if name is not None else self.default
        if wanted is None:
            raise ModelRequiredError(
                f"Several models are loaded; name one with ?model=, of {self._loaded()}."
            )
        offer = self._offers.get(wanted)
        if offer is None and name is None:
            raise NotReadyError(self._default_is_out(wanted))
        if offer is None:
            raise UnknownModelError(f"No model {wanted!r} is loaded; there is {self._loaded()}.")
        return _chosen(offer, version, request_id)

    def _default_is_out(self, name: str) -> str:
        """Say why the default model does not answer, while others do."""
        return (
            f"{name}, the default model, is not in service; name one that is with ?model=, of "
            f"{self._loaded()}, or make one the default with python -m service.control default."
        )

    def versions(self, served: LoadedModel) -> Sequence[LoadedModel]:
        """Return every version in service of the model that `served` is of."""
        offer = self._offers.get(served.name)
        return (served,) if offer is None else offer.all

    async def reload(self, name: str) -> None:
        """Put a model into service that was taken out, and try again what was refused.

        Raises:
            UnknownModelError: there is none of that name.
            VersionRefusedError: the version that should serve cannot.
        """
        async with self._lock:
            await self._look(name)
            await self._change(name, RolloutSpec.loaded)
            refused = self._refused.get((name, self._wanted(name) or 0))
            if refused is not None:
                raise VersionRefusedError(refused.refusal.reason)
        await self._until_applied()

    async def unload(self, name: str) -> None:
        """Take a model out of service, once what it has in hand is answered.

        Raises:
            UnknownModelError: there is none of that name.
        """
        async with self._lock:
            await self._look(name)
            await self._change(name, RolloutSpec.taken_out)
        await self._until_applied()

    async def make_default(self, name: str) -> ActiveVersions:
        """Let a model answer the requests that name none, until another is made the default.

        Raises:
            UnknownModelError: there is none of that name.
            RolloutError: the settings name the default, or the model is not in service.
        """
        async with self._lock:
            await self._look(name)
            if self._settings.default_model is not None:
                raise RolloutError(
                    f"{self._settings.default_model} is the default by --default-model; change it "
                    "there, or leave it out there."
                )
            offer = self._offers.get(name)
            if offer is None:
                raise RolloutError(f"{name} is not in service; load it first.")
            await self._ask_disk(self._default.change, name)
            if self._settings.workers > 1:  # a change, so that the others look
                await self._ask_disk(self._releases.change, name, lambda release: release)
        await self._until_applied()
        return offer

    async def _settle_default(self) -> None:
        """Record the one model in service as the default where none is, or it is gone."""
        if self._settings.default_model is None and len(self._offers) == 1:
            (only,) = self._offers
            recorded = self._default.name
            if recorded is None or not (self._default.is_there or only == recorded):
                await self._ask_disk(self._default.settle, only)

    async def release(self, name: str, step: Step) -> ActiveVersions:
        """Change which versions of a model serve; nothing changes unless all of them can.

        Raises:
            UnknownModelError, UnknownVersionError: there is none of that name, or number.
            RolloutError: the settings hold its version, or there is nothing to change to.
            VersionRefusedError: a version cannot be put into service.
        """
        async with self._lock:
            await self._look(name)
            if self._pins.get(name) is not None:
                raise RolloutError(
                    f"{name} is held at version {self._pins[name]} by --models; change it there, "
                    "or leave the version out there."
                )
            before = self._release(name)
            wanted = step(before, *self._stable_and_lower(name))
            for version in (wanted.held, wanted.canary):
                if version is not None and not wanted.unloaded:
                    await self._require(name, version)

            def unless_changed(now: RolloutSpec) -> RolloutSpec:
                if now != before:
                    raise RolloutError(f"{name} was changed meanwhile; look at it and try again.")
                return wanted

            await self._change(name, unless_changed)
            changed = self._offers.get(name)
        await self._until_applied()
        if changed is None:
            raise RolloutError(f"It is kept for when {name} is in service; load it.")
        return changed

    def _stable_and_lower(self, name: str) -> tuple[int | None, int | None]:
        """Return the stable version, if any, and the best of those before it."""
        offer, held = self._offers.get(name), self._release(name).held
        stable = None if offer is None else offer.stable.number
        last = stable or held
        lower = [
            each
            for each in self._on_disk.get(name, [])
            if (last is None or each < last) and (name, each) not in self._refused
        ]
        return stable, max(lower, default=None)

    def _wanted(self, name: str) -> int | None:
        """Return the version that should be the stable one."""
        held = self._release(name).held
        return max(self._on_disk.get(name, []), default=None) if held is None else held

    async def _look(self, name: str) -> None:
        """Read folder and releases again; the model has to be there."""
        await self._read()
        if name not in self._on_disk and name not in self._offers:
            known = ", ".join(sorted(self._on_disk)) or "none"
            raise UnknownModelError(f"There is no model {name!r} to be loaded; there is {known}.")

    async def _require(self, name: str, version: int) -> None:
        if (name, version) in self._opened:
            return
        there = self._on_disk.get(name, [])
        if version not in there:
            raise UnknownVersionError(
                f"There is no version {version} of {name} in the models folder; "
                f"there is {', '.join(map(str, there)) or 'none'}."
            )
        self._forget((name, version))
        if await self._open(name, version, self._sent(name)) is None:
            raise VersionRefusedError(self._refused[name, version].refusal.reason)

    async def _change(self, name: str, step: Callable[[RolloutSpec], RolloutSpec]) -> None:
        await self._ask_disk(self._releases.change, name, step)
        await self._settle(name)
        self._tidy()

    async def _until_applied(self) -> None:
        """Wait until the other workers have followed."""
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                while not await self._ask_disk(self._releases.others_follow):
                    await asyncio.sleep(_CHECK_SECONDS)
        except TimeoutError:
            raise DeadlineError(
                f"The change is made, but not every worker has followed within "
                f"{_PATIENCE_SECONDS:g} seconds; the log may say why."
            ) from None

    async def _ask_disk(self, function: Callable[..., T], *arguments: object) -> T:
        """Call what reads or writes files.

        Raises:
            DeadlineError: the disk does not answer.
            NotReadyError: the service is stopping.
        """
        try:
            return await self._disk.call(_DISK_SECONDS, function, *arguments)
        except TimeoutError:
            raise DeadlineError(
                f"The disk has not answered within {_DISK_SECONDS:g} seconds; see to it, and try "
                "again."
            ) from None
        except StoppingError:
            raise NotReadyError(_STOPPING) from None

    async def _read(self, *, folder: bool = True) -> None:
        try:
            await self._ask_disk(self._releases.read)
            await self._ask_disk(self._default.read)
            if folder:
                self._on_disk = await self._ask_disk(self._listing)
                self._unreadable = None
        except DeadlineError as error:
            self._unreadable = str(error)
            raise
        except OSError as error:
            self._unreadable = (
                f"The models folder cannot be read ({error.strerror}); choose another with "
                "--models-folder."
            )

    def _listing(self) -> dict[str, list[int]]:
        folder = self._settings.models_folder
        return {
            name: versions(folder, name)
            for name in names(folder)
            if not self._pins or name in self._pins
        }

    def _tidy(self) -> None:
        """Let go what no model offers any more, and forget refusals of what is gone."""
        kept = {each for offer in self._offers.values() for each in offer.all}
        self._let_go(each for each in list(self._opened.values()) if each not in kept)
        for key in [key for key in self._refused if not self._is_there(*key)]:
            self._forget(key)
        self._show_present()

    def _show_present(self) -> None:
        """Tell the metrics which models and versions there still are."""
        served = [*self._opened.values(), *self._leaving.values()]
        there = {(each.name, each.version) for each in served}
        there |= {(name, str(version)) for name, version in self._refused}
        self.metrics.keep({*self._on_disk, *self._offers, *(name for name, _ in there)}, there)

    def _is_there(self, name: str, version: int) -> bool:
        release = self._release(name)
        return version in (*self._on_disk.get(name, ()), release.held, release.canary)

    def _release(self, name: str) -> RolloutSpec:
        release = self._releases.get(name)
        pin = self._pins.get(name)
        return release if pin is None else release.pinned(pin)

    async def _settle(self, name: str) -> None:
        """Open what one model lacks, then switch to it in one step."""
        release = self._release(name)
        before = self._offers.get(name)
        if release.unloaded or self._attempts.get(name, 0) != release.attempt:
            self._attempts[name] = release.attempt
            for key in [key for key in self._refused if key[0] == name]:
                self._forget(key)
        if release.unloaded:
            self._offers.pop(name, None)
            return
        stable = await self._find_stable(name, release, before)
        if stable is None:
            return
        canary = None
        if release.canary is not None and release.canary != stable.number:
            canary = await self._open(name, release.canary, stable.bundle.manifest.input)
        self._offers[name] = ActiveVersions(stable, canary, release)
        if before is None or before.stable is not stable:
            self.metrics.switches.labels(name).inc()
            logger.info("model in service", model=name, version=stable.number)

    async def _find_stable(
        self, name: str, release: RolloutSpec, before: ActiveVersions | None
    ) -> LoadedModel | None:
        candidates = self._on_disk.get(name, []) if release.held is None else [release.held]
        for version in candidates:
            served = await self._open(name, version, self._sent(name))
            if served is not None:
                return served
        return None if before is None else before.stable

    def _sent(self, name: str) -> InputSpec | None:
        """What clients of a model send; None while it has none."""
        offer = self._offers.get(name)
        return None if offer is None else offer.stable.bundle.manifest.input

    async def _open(self, name: str, version: int, like: InputSpec | None) -> LoadedModel | None:
        """Return a version ready to serve; None if it is refused, now or still."""
        key = name, version
        if key in self._opened:
            return self._opened[key]
        path = self._settings.models_folder / name / str(version)
        seen = await self._ask_disk(_fingerprint, path)
        known = self._refused.get(key)
        if known is not None and known.stands(seen):
            return None
        try:
            served = await self._loader.open(path, like)
        except StoppingError:
            raise NotReadyError(_STOPPING) from None
        except LoadTimeoutError as error:
            again = time.monotonic() + _AGAIN * self._settings.load_timeout_seconds
            self._refuse(key, path, error, seen, again)
            return None
        except Exception as error:  # BundleError, or what nobody foresaw: the rest still loads
            self._refuse(key, path, error, seen)
            return None
        self._forget(key)
        self._opened[key] = served
        self.metrics.model_info.labels(name, served.version).set(1)
        logger.info("model loaded", model=name, version=version)
        return served

    def _refuse(
        self,
        key: tuple[str, int],
        path: Path,
        error: Exception,
        seen: Fingerprint,
        again: float = math.inf,
    ) -> None:
        name, version = key
        refusal = LoadFailure(name, version, _told(error, path, f"{name}/{version}"))
        known = self._refused.get(key)
        self._refused[key] = _FailedLoad(refusal, seen, again)
        self.metrics.refused_versions.labels(name, str(version)).set(1)
        if known is None or known.refusal != refusal:
            logger.error("bundle refused", model=name, version=version, reason=str(error))

    def _forget(self, key: tuple[str, int]) -> None:
        if self._refused.pop(key, None) is not None:
            self.metrics.refused_versions.labels(key[0], str(key[1])).set(0)

    def _let_go(self, leaving: Iterable[LoadedModel]) -> None:
        for served in leaving:
            self._opened.pop((served.name, served.number), None)
            task = asyncio.create_task(self._end(served))
            self._leaving[task] = served
            task.add_done_callback(self._gone)

    def _gone(self, task: "asyncio.Task[None]") -> None:
        served = self._leaving.pop(task)
        if (served.name, served.number) not in self._opened:  # opened anew meanwhile
            self.metrics.model_info.labels(served.name, served.version).set(0)
        self._show_present()

    async def _end(self, served: LoadedModel) -> None:
        await served.let_go()
        logger.info("model let go", model=served.name, version=served.number)

    def _loaded(self) -> str:
        return ", ".join(sorted(self._offers)) or "none"


def _chosen(offer: ActiveVersions, version: str | None, request_id: str) -> LoadedModel:
    if version is None:
        if offer.canary and falls_to_canary(request_id, offer.release.share):
            return offer.canary
        return offer.stable
    known: Mapping[str, LoadedModel] = {STABLE: offer.stable, offer.stable.version: offer.stable}
    if offer.canary is not None:
        known = {**known, CANARY: offer.canary, offer.canary.version: offer.canary}
    if version not in known:
        there = " and ".join(each.version for each in offer.all)
        plural = "versions {} are" if offer.canary else "version {} is"
        raise UnknownVersionError(
            f"Version {version!r} of {offer.stable.name} is not loaded; {plural.format(there)}."
        )
    return known[version]


def _fingerprint(folder: Path) -> Fingerprint:
    """Tell whether a refused folder has changed: every file's name, size and time."""
    found = set()
    try:
        for file in folder.rglob("*"):
            status = file.lstat()
            found.add((str(file), status.st_size, status.st_mtime_ns))
    except OSError:  # being copied or removed this moment: look again
        return frozenset()
    return frozenset(found)


def _told(error: Exception, path: Path, place: str) -> str:
    """Say why a version is refused without the path of the folder that it lies in.

    place: of the version within the models folder, which `path` is.
    """
    if isinstance(error, BundleError):
        return str(error).replace(str(path), place)
    return f"{place} cannot be opened, for a reason that the log has."
