"""The rollout of one model: which version should be active, its canary, and its shadow.

Knows neither where rollouts are kept nor what is loaded.
"""

from pydantic import BaseModel, ConfigDict, Field

from service.errors import RolloutError


class RolloutSpec(BaseModel):
    """Which versions of one model should be active; the fields are those of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    held: int | None = Field(
        None, description="the pinned stable version; null: the newest that loads"
    )
    canary: int | None = Field(None, description="a version on trial beside the stable one")
    share: float = Field(0, ge=0, le=1, description="of the requests, for the canary")
    previous: int | None = Field(None, description="the version that a rollback returns to")
    unloaded: bool = Field(False, description="out of service")
    attempt: int = Field(0, description="increased to retry versions that failed to load")
    shadow: int | None = Field(None, description="a version compared with the stable one")
    shadow_share: float = Field(0, ge=0, le=1, description="of the stable version's answers")

    @property
    def versions(self) -> tuple[int, ...]:
        """The versions that are named: the pinned one, the canary, the shadow."""
        named = self.held, self.canary, self.shadow
        return tuple(each for each in named if each is not None)

    def as_loaded(self) -> "RolloutSpec":
        """Put the model back into service, and retry versions that failed to load."""
        return self.model_copy(update={"unloaded": False, "attempt": self.attempt + 1})

    def as_unloaded(self) -> "RolloutSpec":
        """Take the model out of service; pin, canary and history are kept."""
        return self.model_copy(update={"unloaded": True})

    def pinned(self, version: int) -> "RolloutSpec":
        """Pin one version, whichever newer ones appear."""
        return self._with_versions(held=version)

    def unpinned(self) -> "RolloutSpec":
        """Serve the newest version that loads."""
        return self._with_versions()

    def with_canary(self, stable: int | None, version: int, share: float) -> "RolloutSpec":
        """Give `version` a share of the requests, and pin `stable` for the others.

        Raises:
            RolloutError: there is no stable version, or `version` is the stable one.
        """
        if stable is None:
            raise RolloutError("The model is not in service; load it first.")
        if version == stable:
            raise RolloutError(f"Version {version} is the stable one already; name another.")
        return self._with_versions(held=stable, canary=version, share=share)

    def promoted(self, stable: int | None) -> "RolloutSpec":
        """Make the canary the stable version.

        Raises:
            RolloutError: there is no canary.
        """
        if self.canary is None:
            raise RolloutError("There is no canary to promote; start one first.")
        return self._with_versions(held=self.canary, previous=stable)

    def rolled_back(self, lower: int | None) -> "RolloutSpec":
        """End the canary; without one, return to the previous stable version.

        lower: the next lower version on disk, used where no previous one is recorded.

        Raises:
            RolloutError: there is nothing to return to.
        """
        if self.canary is not None:
            return self._with_versions(held=self.held)
        target = self.previous if self.previous is not None else lower
        if target is None:
            raise RolloutError("There is no earlier version to roll back to; copy one back first.")
        return self._with_versions(held=target)

    def with_shadow(self, stable: int | None, version: int, share: float) -> "RolloutSpec":
        """Compare `version` with a share of the stable version's answers, and pin `stable`.

        Raises:
            RolloutError: there is no stable version, or `version` answers requests itself.
        """
        if stable is None:
            raise RolloutError("The model is not in service; load it first.")
        if version in (stable, self.canary):
            role = "stable one" if version == stable else "canary"
            raise RolloutError(f"Version {version} is the {role} already; name another.")
        changes = {"held": stable, "shadow": version, "shadow_share": share}
        return self.model_copy(update=changes)

    def without_shadow(self) -> "RolloutSpec":
        """End the shadow; the stable version stays pinned.

        Raises:
            RolloutError: there is none.
        """
        if self.shadow is None:
            raise RolloutError("There is no shadow version to end; start one first.")
        return self.model_copy(update={"shadow": None, "shadow_share": 0.0})

    def _with_versions(self, **wanted: int | float | None) -> "RolloutSpec":
        return RolloutSpec.model_validate(
            {"unloaded": self.unloaded, "attempt": self.attempt, **wanted}
        )
