"""`python -m service.feedback ACTION FILE`: show, export, reset. The service may run meanwhile."""

import sys
from collections import Counter
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

from model.cli_and_env_settings import load_or_exit
from model.command_exit_status import run_command
from model.errors import DropserveError
from model.uncertainty.binomial_interval import Interval
from model.uncertainty.sequential_test_of_coverage_and_risk import PromisedRateTest
from service.feedback.feedback_file import FeedbackFile, as_sentence
from service.feedback.feedback_settings import FeedbackSettings
from service.feedback.image_export import export_images, models_with_kept_images
from service.feedback.model_versions_with_feedback import forget_tests, read_figures, read_versions
from service.feedback.remembered_answer import VersionIdentity
from service.feedback.version_figures import VersionFigures
from service.settings import ServiceSettings

_UNBOUNDED = 2**46
_DIGEST_DIGITS = 8
_LEVEL: float = ServiceSettings.model_fields["feedback_alarm_rate"].default
"""Only tells from which evidence on a future alarm is raised; alarms so far are in the file."""


class NothingFoundError(DropserveError):
    """The file has nothing of what is asked."""


class SeveralModelsError(DropserveError):
    """Images of several models are asked for, which are no one set of classes."""


def main(arguments: list[str] | None = None) -> int:
    """Do what the arguments say, and return the exit status."""
    settings = load_or_exit(FeedbackSettings, arguments)
    return run_command(lambda: _run(settings), "Interrupted; the same command begins anew.")


def _run(settings: FeedbackSettings) -> int:
    with closing(FeedbackFile.open(settings.file, _UNBOUNDED, create=False)) as file:
        sys.stdout.write(_act(settings, file))
    return 0


def _act(settings: FeedbackSettings, file: FeedbackFile) -> str:
    """Do it, and return what is printed."""
    with as_sentence(file.path):
        versions = _chosen(settings, read_versions(file.connection))
        if settings.action == "show":
            return _table(file, versions)
        if settings.action == "export":
            assert settings.output is not None
            return _export(file, versions.keys(), settings.output)
    with file.transaction(flushed=True) as connection:
        forget_tests(connection, list(versions))
    return f"{_names(versions.values())}: tested anew\n"


def _chosen(
    settings: FeedbackSettings, versions: dict[int, VersionIdentity]
) -> dict[int, VersionIdentity]:
    """Return the versions that the settings name.

    Raises:
        NothingFoundError: there is none.
    """
    chosen = {
        row: each
        for row, each in versions.items()
        if settings.model in (None, each.model)
        and str(settings.version or each.version) == each.version
    }
    if not chosen:
        there = _names(versions.values()) or "no version"
        raise NothingFoundError(f"{settings.file} has nothing of that; it has {there}.")
    return chosen


def _export(file: FeedbackFile, versions: Collection[int], output: Path) -> str:
    """Write the kept images of one model, and return what is printed.

    Raises:
        SeveralModelsError: there are such of several models.
        ExportError: they cannot be written.
    """
    models = models_with_kept_images(file.connection, versions)
    if len(models) > 1:
        raise SeveralModelsError(
            f"{file.path} has kept images of several models, and classes of one name would become "
            f"one; name one with --model: {', '.join(models)}."
        )
    counts = export_images(file.connection, versions, output)
    lines = [f"{name}: {count} images\n" for name, count in sorted(counts.items())]
    subject = " of ".join(["images", *models])
    return "".join(lines) + f"{sum(counts.values())} {subject} in {output}\n"


def _names(versions: Collection[VersionIdentity]) -> str:
    return ", ".join(dict.fromkeys(f"{each.model} {each.version}" for each in versions))


def _table(file: FeedbackFile, versions: dict[int, VersionIdentity]) -> str:
    """Return a block of lines for each version."""
    bundles = Counter((each.model, each.version) for each in versions.values())
    blocks = []
    for row, version in versions.items():
        figures = read_figures(file.connection, row, _LEVEL)
        is_one = bundles[version.model, version.version] == 1
        bundle = "" if is_one else f" (bundle {version.digest[:_DIGEST_DIGITS]})"
        head = f"{version.model} {version.version}{bundle}: {figures.total.labels} labels\n"
        blocks.append(head + "".join(_lines(figures)))
    return "\n".join(blocks)


def _lines(figures: VersionFigures) -> list[str]:
    lines = [
        f"  {name.replace('_', ' '):<22}{_shown(interval)}\n"
        for name, interval in figures.shares().items()
        if interval is not None
    ]
    for name, mean in (
        ("set size", figures.set_size),
        ("calibration error", figures.calibration_error),
    ):
        if mean is not None:
            lines.append(f"  {name:<22}{mean:.4f}\n")
    if figures.risk is not None:
        lines.append(_tested("max_risk", figures.risk))
    return lines + [
        _tested(f"coverage {each.coverage:g} ({each.sets})", each.test)
        for each in figures.coverages
    ]


def _tested(promise: str, test: PromisedRateTest) -> str:
    state = "no alarm" if test.alarm is None else f"broken since label {test.alarm.event}"
    return f"  {promise:<22}{state}, p = {test.p_value:.2g}\n"


def _shown(interval: Interval) -> str:
    return f"{interval.estimate:.4f}  ({interval.low:.4f} to {interval.high:.4f})"
