"""The report of a replay as text for people."""

from collections.abc import Iterator

from service.replay.disagreement import Disagreement
from service.replay.replay_run import Replay

_HEAD = (
    *("logged version", "route", "answers", "same bytes", "other label", "other abstention"),
    *("abstained logged / now", "probability differs by: median", "p99", "max"),
)
_SHOWN_CHANGES = 5


def render(replay: Replay) -> str:
    """Return the report, with a line break at its end."""
    rows: list[tuple[str, ...]] = [_HEAD]
    for (version, route), each in sorted(replay.comparisons.items()):
        rows.append((version, route, *_cells(each)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([*_introduction(replay), "", *table, *_changes(replay)]) + "\n"


def _introduction(replay: Replay) -> Iterator[str]:
    settings, logged = replay.settings, replay.logged
    replayed = sum(each.answers for each in replay.comparisons.values())
    yield (
        f"{replayed:,} of {logged.lines:,} answers of {settings.model}, replayed with version "
        f"{settings.version}."
    )
    for count, why in (
        (logged.without_image, "without a stored image"),
        (logged.unreadable, "that cannot be read"),
        (replay.other_shape, f"with images of another size than version {settings.version} takes"),
        (replay.refused, f"by a method that version {settings.version} does not have"),
    ):
        if count:
            yield f"Left out: {count:,} {why}."
    if replay.changed_bytes:
        yield (
            f"{replay.changed_bytes:,} answers of version {settings.version} itself have other "
            "bytes now: the bundle, the processor or ONNX Runtime is another one."
        )


def _cells(each: Disagreement) -> tuple[str, ...]:
    differences = each.probability_differences()
    abstention, abstained = "-", "-"
    if each.with_abstention:
        abstention = _share(each.abstentions, each.with_abstention)
        abstained = f"{each.abstained_logged:,} / {each.abstained_now:,}"
    return (
        f"{each.answers:,}",
        _share(each.same_bytes, each.answers),
        _share(each.labels, each.answers),
        abstention,
        abstained,
        *(f"{differences[name]:.2g}" for name in ("median", "p99", "max")),
    )


def _changes(replay: Replay) -> Iterator[str]:
    for (version, route), each in sorted(replay.comparisons.items()):
        for (logged, now), count in each.label_changes.most_common(_SHOWN_CHANGES):
            yield f"{route}, version {version}: {logged!r} is now {now!r} in {count:,} answers"


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})"
