"""Checks every version in the models folder, and whether the service would get ready with them.

Those that would serve are kept in memory, as in a worker, and the memory of the process is measured
before the others are tried. Nothing is written, and no rollout is changed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from service.check.findings import Finding, error, fine, warning
from service.check.loading_every_version import VersionTrials
from service.errors import DeadlineError
from service.registry import not_ready_reasons
from service.registry.default_model import DefaultModel
from service.registry.file_access_timeout import Disk
from service.registry.models_folder_scan import ModelsFolder
from service.registry.rollout_spec import RolloutSpec
from service.registry.wanted_versions import Rollouts, rollouts_of
from service.settings import ServiceSettings

_SUBJECT = "models"
_CLOCK_TOLERANCE = timedelta(minutes=5)


@dataclass
class CheckedVersions:
    """What was found of the versions, and the memory that those in service take."""

    findings: list[Finding] = field(default_factory=list)
    worker_bytes: int | None = None
    """Of this process and its sandbox process with the versions in service; None: none serves."""


async def check_versions(settings: ServiceSettings) -> CheckedVersions:
    """Load and try every version that the settings do not leave out."""
    folder = ModelsFolder(settings)
    try:
        on_disk = await Disk().call(folder.list_bundles, settings.pins)
    except OSError as reason:
        sentence = not_ready_reasons.unreadable_folder(settings.bundles_folder, reason)
        return CheckedVersions([error(_SUBJECT, sentence)])
    except DeadlineError as reason:
        return CheckedVersions([error(_SUBJECT, str(reason))])
    if settings.models_source is not None and not on_disk:
        return CheckedVersions()  # nothing was fetched yet; the check of the source says more
    trials = VersionTrials(settings, folder)
    try:
        rollouts = rollouts_of(settings)
        rollouts.read()
        plans = _plans(settings, rollouts, on_disk)
        default = settings.default_model or rollouts.default_model
        return await _try_all(plans, settings, default, trials)
    finally:
        await trials.close()


@dataclass
class _Plan:
    """Which versions of a model should serve, and which are there besides."""

    name: str
    rollout: RolloutSpec
    versions: Sequence[int]
    """On disk, pinned or on trial, the highest first."""
    named_by: str
    """The setting that names the model, if it is not on disk."""
    stable: int | None = None
    """The version that serves; None: not known yet, or none does."""

    @property
    def candidates(self) -> Sequence[int]:
        """The versions of which the first that passes serves."""
        if self.rollout.unloaded:
            return ()
        return self.versions if self.rollout.held is None else [self.rollout.held]

    @property
    def beside_stable(self) -> Sequence[int]:
        """The versions that are kept in memory beside the stable one: its canary and its shadow."""
        beside = (self.rollout.canary, self.rollout.shadow) if self.stable is not None else ()
        return [each for each in beside if each is not None]


def _plans(
    settings: ServiceSettings, rollouts: Rollouts, on_disk: Mapping[str, Sequence[int]]
) -> list[_Plan]:
    named = () if settings.rollouts is None else rollouts.models
    plans = []
    for name in sorted({*on_disk, *settings.pins, *named}):
        if settings.pins and name not in settings.pins:
            continue
        rollout, pin = rollouts.get(name), settings.pins.get(name)
        if pin is not None:  # --models has priority, as in the service
            rollout = rollout.pinned(pin)
        versions = sorted({*on_disk.get(name, ()), *rollout.versions}, reverse=True)
        named_by = "--models" if name in settings.pins else "--rollouts"
        plans.append(_Plan(name, rollout, versions, named_by))
    return plans


async def _try_all(
    plans: Sequence[_Plan], settings: ServiceSettings, default: str | None, trials: VersionTrials
) -> CheckedVersions:
    for plan in plans:
        for version in plan.candidates:
            if await trials.passes(plan.name, version):
                plan.stable = version
                break
        for version in plan.beside_stable:
            await trials.passes(plan.name, version)
    serving = [plan for plan in plans if plan.stable is not None]
    checked = CheckedVersions()
    if serving:
        checked.findings += await _check_sandbox(trials)
        checked.worker_bytes = trials.memory_bytes()
    for plan in plans:
        for version in plan.versions:
            await trials.passes(plan.name, version, keep=False)
        checked.findings += _plan_findings(plan, trials, settings.rollouts)
    checked.findings += _readiness(plans, settings, default)
    checked.findings += _clock(trials)
    return checked


async def _check_sandbox(trials: VersionTrials) -> list[Finding]:
    reason = await trials.sandbox_refusal()
    if reason is None:
        return []
    return [
        error(
            "sandbox",
            f"No process can be started that reads large images: {reason} Allow the service more "
            "processes and memory.",
        )
    ]


def _plan_findings(plan: _Plan, trials: VersionTrials, rollouts: Path | None) -> Iterator[Finding]:
    """Yield every refused version: an error where the model has no other one."""
    for version in plan.versions:
        reason = trials.refusal(plan.name, version)
        if reason is None:
            continue
        subject = f"{plan.name} version {version}"
        if plan.stable is None and version in plan.candidates:
            yield error(subject, f"refused. {reason}")
        else:
            others = "no request needs it" if plan.stable is None else f"{plan.stable} serves"
            yield warning(subject, f"refused, and {others}. {reason}")
    if not plan.versions:
        yield error(
            _SUBJECT,
            f"{plan.named_by} names {plan.name}, of which there is no version; publish one, or "
            "leave it out.",
        )
    if plan.rollout.unloaded:
        yield fine(_SUBJECT, not_ready_reasons.unloaded(plan.name, rollouts))


def _readiness(
    plans: Sequence[_Plan], settings: ServiceSettings, default: str | None
) -> Iterator[Finding]:
    """Yield which versions serve, or why the service would not get ready."""
    serving = {plan.name: plan.stable for plan in plans if plan.stable is not None}
    if default is not None and default not in serving:
        yield from _not_ready([plan for plan in plans if plan.name == default], settings, default)
    elif not serving:
        yield from _not_ready(plans, settings, None)
    if not serving:
        return
    if default is None and len(serving) > 1 and not _has_recorded_default(settings, serving):
        yield warning(
            _SUBJECT,
            "several serve and none is the default, so requests that name none are refused; name "
            "one with --default-model.",
        )
    names = ", ".join(f"{name} version {version}" for name, version in serving.items())
    yield fine(_SUBJECT, f"{names}: verified, self-tested, and tried on the examples.")


def _not_ready(
    plans: Sequence[_Plan], settings: ServiceSettings, default: str | None
) -> Iterator[Finding]:
    """Yield why no model serves, or not the default one, unless a refused version says it."""
    unloaded = [plan.name for plan in plans if plan.rollout.unloaded]
    if unloaded:
        yield error(_SUBJECT, not_ready_reasons.unloaded(unloaded[0], settings.rollouts))
    elif not plans and not settings.bundles_folder.exists():
        yield error(
            _SUBJECT,
            f"The models folder {settings.bundles_folder} does not exist; name another with "
            "--models-folder, or train a bundle with python -m training.",
        )
    elif not plans:
        sentence = not_ready_reasons.no_bundle(default, settings.served_model_name)
        yield error(_SUBJECT, sentence)


def _has_recorded_default(settings: ServiceSettings, serving: Mapping[str, int]) -> bool:
    recorded = DefaultModel(settings.bundles_folder, settings.control_folder)
    recorded.read()
    return recorded.name in serving


def _clock(trials: VersionTrials) -> Iterator[Finding]:
    """Yield a warning if a bundle comes from the future, as keys and certificates expire by it."""
    now = datetime.now(UTC)
    if trials.latest_publication is None:
        return
    published, which = trials.latest_publication
    if published > now + _CLOCK_TOLERANCE:
        yield warning(
            "clock",
            f"It is {now:%Y-%m-%d %H:%M}Z here, but {which} was published at "
            f"{published:%Y-%m-%d %H:%M}Z; set the clock, as keys expire by it.",
        )
