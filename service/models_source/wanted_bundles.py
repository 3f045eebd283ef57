"""What a process wants of a source, and what has to stay in the cache for it. Reads nothing."""

import json
from collections.abc import Collection, Mapping, Sequence

from pydantic import BaseModel, ConfigDict

Versions = Mapping[str, Sequence[int]]
"""Versions by model."""

_DECIDE_A_POLL = {"newest", "pins", "named", "may_remove"}


class Wanted(BaseModel):
    """What one process wants. Others that share its cache read it as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    newest: int
    """How many versions of each model, from the highest on."""
    pins: Mapping[str, int | None] = {}
    """The only models, each with its only version or None; empty: all models."""
    named: Versions = {}
    """Further versions."""
    kept: frozenset[tuple[str, int]] = frozenset()
    """Models and versions that stay however old they are, as they serve; they are not fetched."""
    failed: frozenset[tuple[str, int]] = frozenset()
    """Models and versions that cannot be loaded, and so are in the place of no other."""
    may_remove: bool = True
    """Whether all that has to stay is known."""

    def of(self, name: str, published: Collection[int]) -> list[int]:
        """Return the wanted ones of a model's published versions, the most needed first.

        These are the ones that are named; then come the highest.
        """
        pin = self.pins.get(name)
        if pin is not None:
            return [pin]
        named = sorted(self.names(name) & {*published}, reverse=True)
        return list(dict.fromkeys((*named, *self._highest(published))))

    def names(self, name: str) -> set[int]:
        """Return the versions of a model that are wanted whichever others there are."""
        pin = self.pins.get(name)
        return {*self.named.get(name, ()), *(() if pin is None else (pin,))}

    def keeps(self, name: str, published: Collection[int]) -> set[int]:
        """Return the versions of a model that stay, of cached ones that are published, too."""
        kept = (version for model, version in self.kept if model == name)
        return {*self._highest(published), *self.names(name), *kept}

    @property
    def request(self) -> str:
        """A text that differs where a poll might do something else."""
        return json.dumps(self.model_dump(include=_DECIDE_A_POLL), sort_keys=True)

    def _highest(self, versions: Collection[int]) -> list[int]:
        return sorted(versions, reverse=True)[: self.newest]
