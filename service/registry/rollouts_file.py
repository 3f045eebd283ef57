"""The rollouts of all models as a file that somebody else writes, such as a mounted ConfigMap.

The file says what is wanted, and is followed when it changes; no command changes it. Knows no
bundle.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from model.bundle.bounded_reading import read_file
from model.bundle.store import check_name
from service.errors import RolloutError
from service.registry.peer_process_records import Peer
from service.registry.rollout_spec import RolloutSpec

logger = structlog.stdlib.get_logger("service")

_MAX_BYTES = 2**20


class WantedModel(BaseModel):
    """What is wanted of one model; the fields are named as in GET /models."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: int | None = Field(None, ge=1, description="the stable version; null: the newest")
    canary: int | None = Field(None, ge=1, description="a version on trial beside it")
    canary_share: float | None = Field(None, gt=0, le=1, description="of the requests; with canary")
    shadow: int | None = Field(None, ge=1, description="a version compared with it")
    shadow_share: float = Field(1, gt=0, le=1, description="of the stable version's answers")
    unloaded: bool = Field(False, description="out of service")

    @model_validator(mode="after")
    def _require_consistent(self) -> Self:
        beside = [each for each in (self.canary, self.shadow) if each is not None]
        if beside and self.version is None:
            raise ValueError("a canary or shadow needs a version beside it")
        if self.version in beside or len(set(beside)) < len(beside):
            raise ValueError("version, canary and shadow have to differ")
        if (self.canary is None) != (self.canary_share is None):
            raise ValueError("canary and canary_share need each other")
        return self

    @property
    def rollout(self) -> RolloutSpec:
        """The rollout that the service follows."""
        return RolloutSpec(
            held=self.version,
            canary=self.canary,
            share=self.canary_share or 0,
            shadow=self.shadow,
            shadow_share=0 if self.shadow is None else self.shadow_share,
            unloaded=self.unloaded,
        )


class WantedVersions(BaseModel):
    """The content of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    default: str | None = Field(None, description="the model of requests that name none")
    models: dict[str, WantedModel] = Field(default_factory=dict)

    @field_validator("models")
    @classmethod
    def _check_names(cls, models: dict[str, WantedModel]) -> dict[str, WantedModel]:
        for name in models:
            check_name(name)
        return models


class RolloutsFile:
    """The rollouts as the file had them when it was last valid."""

    def __init__(self, file: Path) -> None:
        """Read nothing yet; file: JSON, which may be a symbolic link that changes."""
        self._file = file
        self._text = b""
        self._wanted: WantedVersions | None = None
        self._problem: str | None = None
        self.models: Mapping[str, RolloutSpec] = {}
        """The rollouts by model; models without one follow their newest version."""
        self.generation = 0
        """How many contents have been valid so far."""

    @property
    def default_model(self) -> str | None:
        """The model of requests that name none, if the file names it."""
        return None if self._wanted is None else self._wanted.default

    @property
    def is_valid(self) -> bool:
        """Whether the file was valid when it was last read."""
        return self._problem is None

    @property
    def unread_reason(self) -> str | None:
        """Why the file has never been valid; None if it has. Until then no model may be active."""
        if self._wanted is not None:
            return None
        return self._problem or f"{self._file.name} has not been read yet."

    def get(self, name: str) -> RolloutSpec:
        """Return the rollout of a model."""
        return self.models.get(name, RolloutSpec())

    def read(self) -> None:
        """Read the file again; if it is not valid, log that once and keep the last valid one."""
        try:
            text = read_file(self._file, _MAX_BYTES)
            if text != self._text or self._wanted is None:
                self._follow(WantedVersions.model_validate_json(text))
                self._text = text
        except (OSError, ValidationError) as error:
            self._report(f"{self._file.name} (--rollouts) cannot be followed ({_reason(error)}).")
            return
        self._problem = None

    def require_changeable(self) -> None:
        """Refuse the change of a command.

        Raises:
            RolloutError: always.
        """
        raise RolloutError(
            f"The file {self._file.name} (--rollouts) says which versions serve; change it there."
        )

    def change(self, _name: str, _step: Callable[[RolloutSpec], RolloutSpec]) -> None:
        """Refuse the change; raises RolloutError."""
        self.require_changeable()

    def mark_applied(self, generation: int, missing: Mapping[str, Sequence[int]]) -> None:
        """Do nothing: nobody waits for this process."""

    def beat(self) -> None:
        """Do nothing: nobody waits for this process."""

    def lagging_peers(self) -> Sequence[Peer]:
        """Return none: there is no command that would wait for them."""
        return ()

    def peers_without_versions(self, _name: str) -> Sequence[Peer]:
        """Return none: there is no command that would name them."""
        return ()

    def stop(self) -> None:
        """Do nothing: there is nothing to wait for."""

    def close(self) -> None:
        """Do nothing: there is nothing to remove."""

    def _follow(self, wanted: WantedVersions) -> None:
        self._wanted = wanted
        self.models = {name: each.rollout for name, each in wanted.models.items()}
        self.generation += 1
        logger.info("rollouts file", models=sorted(wanted.models), default=wanted.default)

    def _report(self, problem: str) -> None:
        if problem != self._problem:
            logger.error("rollouts file invalid", file=str(self._file), reason=problem)
        self._problem = problem


def _reason(error: OSError | ValidationError) -> str:
    """Return what is wrong in a few words: the first of several errors, and its place."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    reason = first["msg"].removeprefix("Value error, ")
    return f"{place}: {reason}" if place else reason
