"""Fetches one version: its manifest, then its files, each against its digest in the manifest.

Knows neither which versions are wanted nor when they are looked for.
"""

import errno
import os
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

from model.bundle.store import MANIFEST_FILE, Manifest, max_bytes, parse_manifest
from model.errors import BundleError
from service.models_source.bundle_cache import BundleCache
from service.models_source.remote_bundles import RemoteBundles, SourceError

MAX_FILES = 10_000
"""Most files of a version."""
MOST_SECONDS = 3600.0
"""How long all files of a version may take that arrive steadily."""


class StoppedError(Exception):
    """The service is stopping, so the fetch was given up."""


class VersionFetch:
    """Fetches versions from a source into a cache, whose lock the caller holds."""

    def __init__(
        self,
        source: RemoteBundles,
        cache: BundleCache,
        max_version_bytes: int,
        is_stopping: Callable[[], bool],
    ) -> None:
        """Fetch nothing yet.

        max_version_bytes: of all files of a version together.
        is_stopping: asked between the pieces of a file.
        """
        self._source = source
        self._cache = cache
        self._max_version_bytes = max_version_bytes
        self._is_stopping = is_stopping
        self._deadline = 0.0
        """When the version that is being fetched has to be here, of `time.monotonic`."""

    def fetch(self, name: str, version: int, manifest: bytes) -> None:
        """Fetch the version that a manifest describes.

        Raises:
            SourceError: it is not whole, differs from its digests, is too large, or lies in the
                place of another; nothing of it is left.
            OSError: the cache cannot be written, for example since the disk is full.
            StoppedError: the service is stopping.
        """
        parsed = self._parse(name, version, manifest)
        self._deadline = time.monotonic() + MOST_SECONDS
        with self._cache.draft(name, version) as draft:
            remaining = self._max_version_bytes - len(manifest)
            for file, digest in parsed.files.items():
                remaining -= self._fetch_file(f"{name}/{version}", file, digest, draft, remaining)
            _write(draft / MANIFEST_FILE, iter([manifest]))

    def _parse(self, name: str, version: int, manifest: bytes) -> Manifest:
        place = f"{self._source.place}/{name}/{version}"
        try:
            parsed = parse_manifest(manifest, f"{place}/{MANIFEST_FILE}")
        except BundleError as error:
            raise SourceError(str(error)) from None
        if (parsed.name, parsed.version) != (name, version):
            raise SourceError(
                f"{place} holds {parsed.name} version {parsed.version}; publish it as "
                f"{parsed.name}/{parsed.version}."
            )
        if len(parsed.files) > MAX_FILES:
            raise SourceError(f"{place} has more than {MAX_FILES:,} files; publish fewer.")
        return parsed

    def _fetch_file(self, folder: str, file: str, digest: str, draft: Path, remaining: int) -> int:
        """Fetch and verify a file; return its size in bytes."""
        limit = min(max_bytes(file), remaining)
        actual = sha256()

        def hashed() -> Iterator[bytes]:
            for chunk in self._source.read_chunks(f"{folder}/{file}", limit):
                if self._is_stopping():
                    raise StoppedError
                if time.monotonic() > self._deadline:
                    raise SourceError(
                        f"{self._source.place}/{folder} did not arrive within "
                        f"{MOST_SECONDS:,.0f} seconds; see to the network."
                    )
                actual.update(chunk)
                yield chunk

        target = draft / file
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            size = _write(target, hashed())
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            raise SourceError(
                f"{self._source.place}/{folder}: its manifest names {file} beside another file of "
                "that name; export it again."
            ) from None
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise SourceError(
                f"{self._source.place}/{folder}: its manifest names a file by a longer name than "
                f"the cache's disk takes ({file}); export it with a shorter one."
            ) from None
        if actual.hexdigest() != digest:
            raise SourceError(
                f"{self._source.place}/{folder}/{file} differs from its SHA-256 in the manifest; "
                "copy the bundle there again."
            )
        return size


def _write(file: Path, chunks: Iterator[bytes]) -> int:
    """Write a new file and bring it to the disk; return its size in bytes."""
    size = 0
    with file.open("xb") as stream:
        for chunk in chunks:
            size += stream.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())
    return size
