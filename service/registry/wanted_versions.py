"""What the service needs of the place where the wanted versions are kept, and which place that is.

Commands change a folder that replicas share; a file that somebody else writes is only followed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from service.registry.peer_process_records import Peer
from service.registry.rollout_spec import RolloutSpec
from service.registry.rollout_store import RolloutStore
from service.registry.rollouts_file import RolloutsFile
from service.settings import ServiceSettings


class Rollouts(Protocol):
    """The rollouts of all models, as last read; see `RolloutStore` and `RolloutsFile`."""

    @property
    def generation(self) -> int:
        """Increases with each change."""

    @property
    def models(self) -> Mapping[str, RolloutSpec]:
        """The rollouts by model; models without one follow their newest version."""

    @property
    def default_model(self) -> str | None:
        """The model of requests that name none, if it is kept here."""

    @property
    def unread_reason(self) -> str | None:
        """Why they have never been read; None if they have."""

    @property
    def is_valid(self) -> bool:
        """Whether what is wanted could be read the last time."""

    def get(self, name: str, /) -> RolloutSpec:
        """Return the rollout of a model."""

    def read(self) -> None:
        """Read them again."""

    def require_changeable(self) -> None:
        """Raise RolloutError unless commands may change them."""

    def change(self, name: str, step: Callable[[RolloutSpec], RolloutSpec], /) -> None:
        """Change the rollout of a model."""

    def mark_applied(self, generation: int, missing: Mapping[str, Sequence[int]], /) -> None:
        """Record that this process has applied a generation."""

    def beat(self) -> None:
        """Record that this process lives."""

    def lagging_peers(self) -> Sequence[Peer]:
        """Return the live peers that have not applied what was last read here."""

    def peers_without_versions(self, name: str, /) -> Sequence[Peer]:
        """Return the live peers that could not load a version that a model's rollout names."""

    def stop(self) -> None:
        """Stop waiting."""

    def close(self) -> None:
        """Remove what others would wait for."""


def rollouts_of(settings: ServiceSettings) -> RolloutStore | RolloutsFile:
    """Return the rollouts that the settings name; nothing is read yet."""
    if settings.rollouts is not None:
        return RolloutsFile(settings.rollouts)
    return RolloutStore(settings.control_folder)
