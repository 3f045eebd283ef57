"""One run of `python -m service.replay`: lines and images -> answers now -> a report."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from model.errors import DropserveError
from service.replay.disagreement import Disagreement
from service.replay.logged_answers import LoggedAnswer, LoggedAnswers
from service.replay.replay_settings import ReplaySettings
from service.replay.replayed_version import ReplayedVersion
from service.scoring.model_choice import candidate_bundles
from service.traffic_log.traffic_record import TrafficOptions

_BATCH_IMAGES, _PENDING_IMAGES = 64, 1024
"""Images of one run of the network, and of those that wait for others asked in the same way."""

_Key = tuple[bool, TrafficOptions | None]
"""Whether the answer is native, and how it was asked for."""


class ReplayError(DropserveError):
    """Nothing in the log can be replayed."""


@dataclass
class Replay:
    """The outcome of a replay."""

    settings: ReplaySettings
    logged: LoggedAnswers
    other_shape: int = 0
    """Answers whose image the version does not take."""
    refused: int = 0
    """Answers that the version cannot be asked for, by a method that it does not have."""
    comparisons: dict[tuple[str, str], Disagreement] = field(
        default_factory=lambda: defaultdict(Disagreement)
    )
    """By the version in the log, and the route."""

    @property
    def changed_bytes(self) -> int:
        """Answers of the very version that answers now whose bytes have changed."""
        return sum(
            each.answers - each.same_bytes
            for (version, _), each in self.comparisons.items()
            if version == str(self.settings.version)
        )

    def to_json(self) -> dict[str, Any]:
        """Return all figures."""
        return {
            "folder": str(self.settings.folder),
            "model": self.settings.model,
            "version": str(self.settings.version),
            "lines": self.logged.lines,
            "replayed": sum(each.answers for each in self.comparisons.values()),
            "without_image": self.logged.without_image,
            "unreadable": self.logged.unreadable,
            "other_shape": self.other_shape,
            "refused": self.refused,
            "comparisons": [
                {"logged_version": version, "route": route, **each.to_json()}
                for (version, route), each in sorted(self.comparisons.items())
            ],
        }


async def run(settings: ReplaySettings) -> Replay:
    """Replay a log.

    Raises:
        DropserveError: the log or the version cannot be used, or nothing can be replayed.
    """
    (bundle,) = candidate_bundles(settings)
    replay = Replay(settings, LoggedAnswers(settings.folder, settings.model))
    version = await ReplayedVersion.open(bundle, settings.service_settings())
    try:
        await _replay_all(replay, version)
    finally:
        await version.close()
    _require_answers(replay)
    return replay


async def _replay_all(replay: Replay, version: ReplayedVersion) -> None:
    waiting: defaultdict[_Key, list[LoggedAnswer]] = defaultdict(list)
    count = 0
    for logged in replay.logged:
        if logged.image.shape != version.shape:
            replay.other_shape += 1
            continue
        key = logged.is_native, logged.options
        waiting[key].append(logged)
        count += 1
        if len(waiting[key]) >= _BATCH_IMAGES:
            batch = waiting.pop(key)
            count -= len(batch)
            await _answer(replay, version, batch)
        elif count >= _PENDING_IMAGES:
            batches, count = list(waiting.values()), 0
            waiting.clear()
            for batch in batches:
                await _answer(replay, version, batch)
    for batch in waiting.values():
        await _answer(replay, version, batch)


async def _answer(replay: Replay, version: ReplayedVersion, batch: Sequence[LoggedAnswer]) -> None:
    """Answer images that were asked in the same way, and compare."""
    first = batch[0]
    images = [each.image for each in batch]
    try:
        rows = await version.answer(images, first.options, first.route)
    except DropserveError:
        replay.refused += len(batch)
        return
    for logged, row in zip(batch, rows, strict=True):
        replay.comparisons[logged.version, logged.route].add(logged, row)


def _require_answers(replay: Replay) -> None:
    """Raise ReplayError if nothing was compared."""
    if replay.comparisons:
        return
    settings, logged = replay.settings, replay.logged
    if not logged.lines:
        models = ", ".join(sorted(logged.models)) or "none"
        raise ReplayError(
            f"No line in {settings.folder} is of {settings.model}; there are lines of: {models}."
        )
    if logged.without_image:
        raise ReplayError(
            f"No line in {settings.folder} has its image; log with --traffic-log-images."
        )
    raise ReplayError(
        f"No line in {settings.folder} can be replayed: {logged.unreadable} cannot be read, "
        f"{replay.other_shape} have images of another size than version {settings.version} takes, "
        f"and {replay.refused} ask for a method that it does not have."
    )
