"""Publishes bundles at a source in memory, and looks at the cache that they are fetched into."""

from collections.abc import Mapping
from pathlib import Path

from obstore.store import MemoryStore

from service.models_source.bundle_cache import BundleCache
from service.models_source.remote_bundles import RemoteBundles
from service.models_source.synchronisation import Poll, Synchronisation
from service.models_source.version_fetch import VersionFetch
from service.models_source.wanted_bundles import Wanted

PLACE = "memory://bundles"


class Published:
    """A source in memory; `bundles` has bundles that can be published there, by version."""

    def __init__(self, bundles: Mapping[int, Path]) -> None:
        self.store = MemoryStore()
        self.bundles = bundles

    def put(self, bundle: Path, path: str) -> None:
        """Publish all files of a bundle below a path."""
        for file in bundle.rglob("*"):
            if file.is_file():
                self.store.put(f"{path}/{file.relative_to(bundle)}", file.read_bytes())

    def remove(self, prefix: str) -> None:
        """Remove all files below a path."""
        for batch in self.store.list(prefix):
            self.store.delete([each["path"] for each in batch])


class Fetching:
    """What one process fetches from a source into a cache."""

    def __init__(self, published: Published, folder: Path, max_bytes: int = 2**30) -> None:
        self.cache = BundleCache(folder, PLACE)
        self.is_stopping = False
        source = RemoteBundles(published.store, PLACE)
        fetch = VersionFetch(source, self.cache, max_bytes, lambda: self.is_stopping)
        self._synchronisation = Synchronisation(source, self.cache, fetch)

    def poll(self, wanted: Wanted | None = None, fresh_seconds: float = 0) -> Poll:
        return self._synchronisation.poll(wanted or Wanted(newest=2), fresh_seconds)

    def close(self) -> None:
        """End, as far as other processes see it."""
        self._synchronisation.close()

    def versions(self) -> dict[str, list[int]]:
        """Return what is in the cache, and fail if a draft is."""
        assert not list(self.cache.folder.glob(".drafts/*"))
        return self.cache.versions()
