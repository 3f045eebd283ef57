"""A model's shadow version: its state, and what its comparison has found so far."""

from service.registry.active_versions import ActiveVersions
from service.registry.model_repository import Repository
from service.shadow.background_comparison import ShadowComparison
from service.shadow.shadow_counts import VersionPair

_MAX_NAMED_LABELS = 3
_OUTCOMES = ("compared", "dropped", "failed")
_DIFFERENCE = "probability_difference"


async def shadow_summary(
    versions: ActiveVersions, repository: Repository, shadows: ShadowComparison
) -> dict[str, object] | None:
    """Build the `schemas.ShadowSummary` of a model; None: it has no shadow."""
    rollout, name = versions.rollout, versions.stable.name
    if rollout.shadow is None:
        return None
    pair = VersionPair(name, versions.stable.version, str(rollout.shadow))
    totals = await shadows.counts.totals(pair)
    compared = totals.get(f"{_DIFFERENCE}_count", 0)
    state, reason = "comparing", _other_labels(versions)
    if versions.shadow is None:
        state, reason = "refused", repository.load_failure(name, rollout.shadow)
    elif (problem := shadows.problem(pair)) is not None:
        state, reason = "failing", problem
    return {
        "version": pair.shadow,
        "share": rollout.shadow_share,
        "state": state,
        "reason": reason,
        "images": {each: int(totals.get(f"images_total.{each}", 0)) for each in _OUTCOMES},
        "labels_differ": int(totals.get("label_differences_total", 0)),
        "abstentions_compared": int(totals.get("abstentions_compared_total", 0)),
        "abstentions_differ": int(totals.get("abstention_differences_total", 0)),
        "mean_probability_difference": totals[f"{_DIFFERENCE}_sum"] / compared
        if compared
        else None,
    }


def _other_labels(versions: ActiveVersions) -> str | None:
    """Say which labels only one of both versions has; None: they have the same."""
    if versions.shadow is None:
        return None
    stable = versions.stable.bundle.manifest.class_names
    shadow = versions.shadow.bundle.manifest.class_names
    new, gone = _only_in(shadow, stable), _only_in(stable, shadow)
    if not new and not gone:
        return None
    parts = [f"{text} {names}" for text, names in (("adds", new), ("lacks", gone)) if names]
    return f"Its labels are others: it {' and '.join(parts)}; an answer with one of them differs."


def _only_in(names: tuple[str, ...], others: tuple[str, ...]) -> str:
    found = [repr(name) for name in names if name not in set(others)]
    more = len(found) - _MAX_NAMED_LABELS
    return ", ".join(found[:_MAX_NAMED_LABELS]) + (f" and {more} more" if more > 0 else "")
