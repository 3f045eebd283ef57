"""Checks that bundles can be fetched: package, cache and source. Fetches nothing."""

from collections.abc import Iterator
from pathlib import Path

from service.check.findings import Finding, error, fine, warning
from service.check.rights_and_disk_room_check import why_not_writable
from service.models_source.bundle_cache import BundleCache
from service.models_source.remote_bundles import RemoteBundles, SourceError
from service.models_source.source_polling import why_source_is_unusable
from service.models_source.wanted_bundles import Versions, Wanted
from service.settings import ServiceSettings

_SUBJECT = "models source"


def check_models_source(settings: ServiceSettings) -> Iterator[Finding]:
    """Yield what the source has, and what keeps the service from fetching it."""
    url = settings.source_url
    if url is None:
        return
    unusable = why_source_is_unusable(settings)
    if unusable is not None:
        yield error(_SUBJECT, unusable)
        return
    cache = BundleCache(settings.bundles_folder, str(url))
    problem = why_not_writable(cache.folder) or cache.why_unusable()
    if problem is not None:
        yield error(_SUBJECT, f"--models-cache: {problem}")
        return
    cached = cache.versions()
    try:
        published = RemoteBundles.at(url).list_versions(settings.pins)
    except SourceError as reason:
        if cached:
            yield warning(_SUBJECT, f"{reason} It is tried again. {_serves(cache.folder)}")
        else:
            yield error(_SUBJECT, f"{reason} Nothing was fetched before, so nothing would serve.")
        return
    yield _describe(settings, cache.folder, published, cached)


def _describe(
    settings: ServiceSettings, folder: Path, published: Versions, cached: Versions
) -> Finding:
    """Return which versions the source has, and which of them would be fetched into `folder`."""
    place = settings.source_url
    wanted = Wanted(newest=settings.models_source_versions, pins=settings.pins)
    names = sorted(settings.pins or {*published, *cached})
    absent = [name for name in names if not _usable(wanted, name, published)]
    if absent or not names:
        what = f"version of {absent[0]} that is wanted" if absent else "version of any model"
        sentence = f"{place} has no {what}; publish one there as NAME/VERSION/."
        if names and all(_usable(wanted, name, cached) for name in absent):
            return warning(_SUBJECT, f"{sentence} {_serves(folder)}")
        return error(_SUBJECT, sentence)
    new = [
        f"{name} version {version}"
        for name in names
        for version in wanted.of(name, published[name])
        if version not in cached.get(name, ())
    ]
    listed = ", ".join(f"{name} {published[name][0]}" for name in names)
    fetched = f"it would fetch {', '.join(new)}, unexamined here" if new else "all is fetched"
    return fine(_SUBJECT, f"{place} has, with the newest version, {listed}; {fetched}.")


def _usable(wanted: Wanted, name: str, versions: Versions) -> set[int]:
    """Return the versions of a model that are there and wanted."""
    there = versions.get(name, ())
    return {*wanted.of(name, there)} & {*there}


def _serves(folder: Path) -> str:
    return f"What was fetched into {folder} serves meanwhile."
