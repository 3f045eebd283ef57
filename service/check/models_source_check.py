"""Checks that bundles can be fetched: package, cache and source. Fetches nothing."""

from collections.abc import Iterator, Mapping, Sequence

from service.check.findings import Finding, error, fine, warning
from service.check.rights_and_disk_room_check import why_not_writable
from service.models_source.bundle_cache import BundleCache
from service.models_source.remote_bundles import RemoteBundles, SourceError
from service.models_source.source_polling import why_source_is_unusable
from service.models_source.synchronisation import Wanted
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
            serves = f"what was fetched into {cache.folder} serves meanwhile."
            yield warning(_SUBJECT, f"{reason} It is tried again, and {serves}")
        else:
            yield error(_SUBJECT, f"{reason} Nothing was fetched before, so nothing would serve.")
        return
    yield _describe(settings, str(url), published, cached)


def _describe(
    settings: ServiceSettings,
    place: str,
    published: Mapping[str, Sequence[int]],
    cached: Mapping[str, Sequence[int]],
) -> Finding:
    """Return which versions the source has, and which of them would be fetched."""
    wanted = Wanted(settings.models_source_versions, settings.pins)
    names = {name: wanted.of(name, published.get(name, ())) for name in settings.pins or published}
    absent = [name for name in names if not {*names[name]} & {*published.get(name, ())}]
    if absent or not names:
        what = f"version of {absent[0]} that is wanted" if absent else "version of any model"
        return error(_SUBJECT, f"{place} has no {what}; publish one there as NAME/VERSION/.")
    new = [
        f"{name} version {version}"
        for name in sorted(names)
        for version in names[name]
        if version not in cached.get(name, ())
    ]
    listed = ", ".join(f"{name} {published[name][0]}" for name in sorted(names))
    fetched = f"it would fetch {', '.join(new)}, unexamined here" if new else "all is fetched"
    return fine(_SUBJECT, f"{place} has, with the newest version, {listed}; {fetched}.")
