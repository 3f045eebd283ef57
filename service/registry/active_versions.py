"""The versions of one model in service: a stable one and perhaps a canary and a shadow."""

from collections.abc import Mapping
from dataclasses import dataclass

from service.engine.model_loader import LoadedModel
from service.errors import UnknownVersionError
from service.registry.canary_and_shadow_traffic_split import routes_to_canary
from service.registry.rollout_spec import RolloutSpec

STABLE, CANARY = "stable", "canary"


@dataclass(frozen=True)
class ActiveVersions:
    """The versions of one model in service, and the rollout that they follow."""

    stable: LoadedModel
    canary: LoadedModel | None
    rollout: RolloutSpec
    shadow: LoadedModel | None = None
    """Answers no client: its answers are compared with those of the stable version."""

    @property
    def all(self) -> tuple[LoadedModel, ...]:
        """Every version that answers requests, the stable one first."""
        return (self.stable,) if self.canary is None else (self.stable, self.canary)

    @property
    def loaded(self) -> tuple[LoadedModel, ...]:
        """Every version that must stay loaded."""
        return self.all if self.shadow is None else (*self.all, self.shadow)

    def set_priorities(self) -> None:
        """Let the shadow run behind the versions that answer requests."""
        for model in self.loaded:
            model.batcher.is_background = model is self.shadow

    @property
    def canary_share(self) -> float:
        """The canary's share of the requests that name no version, 0..1; 0 without a canary."""
        return 0.0 if self.canary is None else self.rollout.share


def select_version(
    active: ActiveVersions, version: str | None, request_id: str | None
) -> LoadedModel:
    """Return the version that answers a request.

    version: a number, `stable` or `canary`; None: the canary for its share of the request ids, and
        the stable version for all others and without an id.

    Raises:
        UnknownVersionError: the version is not in service.
    """
    if version is None:
        if active.canary is None or request_id is None:
            return active.stable
        to_canary = routes_to_canary(request_id, active.rollout.share)
        return active.canary if to_canary else active.stable
    known: Mapping[str, LoadedModel] = {STABLE: active.stable, active.stable.version: active.stable}
    if active.canary is not None:
        known = {**known, CANARY: active.canary, active.canary.version: active.canary}
    if version not in known:
        numbers = " and ".join(each.version for each in active.all)
        plural = "versions {} are" if active.canary else "version {} is"
        raise UnknownVersionError(
            f"Version {version!r} of {active.stable.name} is not loaded; {plural.format(numbers)}."
        )
    return known[version]
