"""Reads what is published at a source: its versions, and the bytes of a file.

An object store lists its folders; an https server has an index file that names the versions. Knows
no cache. The credentials are those that the library finds in the environment.
"""

import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from model.bundle.store import VERSION_NUMBER, check_name
from model.errors import DropserveError
from service.source_url import SourceUrl

if TYPE_CHECKING:
    from obstore.store import ObjectStore

INDEX_FILE = "index.json"
_MAX_INDEX_BYTES = 16 * 2**20
_MAX_REASON_CHARACTERS = 200
_MAX_SENTENCE_CHARACTERS = 800
_KEPT_AT_THE_END = 200

_ALLOW_HTTP = "AWS_ALLOW_HTTP"
"""A variable of the library, which it does not read itself where it is given options."""
_CONNECT_TIMEOUT = timedelta(seconds=10)
_READ_TIMEOUT = timedelta(seconds=30)
"""For each piece of an answer."""
_WHOLE_TIMEOUT = timedelta(hours=1)
"""For a whole file."""
_WINDOW_SECONDS = 60.0
_LEAST_BYTES_PER_SECOND = 10_000
"""A file that brings fewer in a window is given up, so that others do not wait for it."""
_RETRIES = 2
"""Of one request; beyond that the next poll tries again."""


_Version = Annotated[int, Field(ge=1, lt=10**18, strict=True)]
"""As long as a folder's name may be, see `VERSION_NUMBER`."""


class SourceError(DropserveError):
    """A source, or a version there, cannot be read or used; the sentence has no credentials.

    What a source has may stand in it, a name of megabytes too; its middle is left out then.
    """

    def __init__(self, sentence: str) -> None:
        if len(sentence) > _MAX_SENTENCE_CHARACTERS:
            head = sentence[: _MAX_SENTENCE_CHARACTERS - _KEPT_AT_THE_END]
            sentence = f"{head}…{sentence[-_KEPT_AT_THE_END:]}"
        super().__init__(sentence)


class SourceIndex(BaseModel):
    """`index.json`: the versions of every model at an https source."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: dict[Annotated[str, AfterValidator(check_name)], tuple[_Version, ...]]


@dataclass(frozen=True)
class RemoteFile:
    """A file that was read as a whole."""

    content: bytes
    e_tag: str | None
    """Changes when the file does; None where the server sends none."""


def missing_package() -> str | None:
    """Return in one sentence which package sources need that is not installed; None if none."""
    if find_spec("obstore") is not None:
        return None
    return "it needs the package obstore; run pip install '.[source]' in the project's folder."


class RemoteBundles:
    """The bundles at one source. Every method may block as long as the source's timeouts."""

    def __init__(self, store: "ObjectStore", place: str, *, has_index: bool = False) -> None:
        """Read nothing yet.

        place: how errors name the source.
        has_index: whether `index.json` names the versions, instead of the store's folders.
        """
        self._store = store
        self.place = place
        self._has_index = has_index

    @classmethod
    def at(cls, url: SourceUrl) -> Self:
        """Return the bundles at a URL; nothing is read yet.

        Raises:
            SourceError: the library cannot use the URL, or what the environment says about it.
        """
        from obstore.store import from_url

        allows_http = url.scheme == "http" or os.environ.get(_ALLOW_HTTP, "").lower() == "true"
        headers = {} if url.authorization is None else {"Authorization": url.authorization}
        with _described(url.place, "it cannot be used"):
            store = from_url(
                url.place,
                client_options={
                    "connect_timeout": _CONNECT_TIMEOUT,
                    "read_timeout": _READ_TIMEOUT,
                    "timeout": _WHOLE_TIMEOUT,
                    "default_headers": headers,
                    "allow_http": allows_http,
                },
                retry_config={"max_retries": _RETRIES, "retry_timeout": 2 * _READ_TIMEOUT},
            )
        return cls(store, url.place, has_index=url.has_index)

    def list_versions(self, names: Collection[str]) -> dict[str, list[int]]:
        """Return the versions of every model, the highest first.

        names: the only models to return; empty: all.

        Raises:
            SourceError: the source cannot be read.
        """
        found = self._read_index() if self._has_index else self._list_folders(names)
        return {
            name: sorted(found[name], reverse=True)
            for name in sorted(found)
            if found[name] and (not names or name in names)
        }

    def read(self, path: str, limit: int, e_tag: str | None = None) -> RemoteFile | None:
        """Return a file of at most `limit` bytes; None if it still has the tag `e_tag`.

        Raises:
            SourceError: the file cannot be read, or is larger.
        """
        from obstore.exceptions import NotModifiedError

        with _described(f"{self.place}/{path}"):
            try:
                result = self._store.get(path, options={"if_none_match": e_tag} if e_tag else {})
            except NotModifiedError:
                if e_tag is None:  # the server answers what nobody asked
                    raise
                return None
            tag = result.meta["e_tag"]
            return RemoteFile(b"".join(self._chunks(path, result, limit)), tag)

    def read_chunks(self, path: str, limit: int) -> Iterator[bytes]:
        """Yield a file of at most `limit` bytes piece by piece; errors as `read`."""
        with _described(f"{self.place}/{path}"):
            yield from self._chunks(path, self._store.get(path), limit)

    def _chunks(self, path: str, result: "_Readable", limit: int) -> Iterator[bytes]:
        remaining = limit
        since, arrived = time.monotonic(), 0
        for chunk in result.stream(1):  # as it arrives
            remaining -= len(chunk)
            arrived += len(chunk)
            if remaining < 0:
                raise SourceError(
                    f"{self.place}/{path} is larger than the {limit:,} bytes that it may have."
                )
            seconds = time.monotonic() - since
            if seconds >= _WINDOW_SECONDS:
                if arrived < _LEAST_BYTES_PER_SECOND * seconds:
                    raise SourceError(
                        f"{self.place}/{path} arrives more slowly than "
                        f"{_LEAST_BYTES_PER_SECOND:,} bytes a second; see to the network."
                    )
                since, arrived = time.monotonic(), 0
            yield bytes(chunk)

    def _list_folders(self, names: Collection[str]) -> dict[str, list[int]]:
        with _described(self.place):
            return {
                name: [
                    int(number)
                    for number in self._folders(name)
                    if VERSION_NUMBER.fullmatch(number)
                ]
                for name in names or self._folders(None)
                if _is_name(name)
            }

    def _folders(self, parent: str | None) -> list[str]:
        listed = self._store.list_with_delimiter(parent)
        return [each.rpartition("/")[2] for each in listed["common_prefixes"]]

    def _read_index(self) -> dict[str, list[int]]:
        index = self.read(INDEX_FILE, _MAX_INDEX_BYTES)
        try:
            models = SourceIndex.model_validate_json(b"" if index is None else index.content).models
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise SourceError(
                f"{self.place}/{INDEX_FILE} is no index ({where}: {first['msg']}); write "
                '{"models": {"NAME": [1, 2]}}.'
            ) from None
        return {name: list(set(models[name])) for name in models}


if TYPE_CHECKING:
    from obstore import GetResult as _Readable


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except ValueError:
        return False
    return True


@contextmanager
def _described(what: str, failure: str = "it cannot be read") -> Iterator[None]:
    """Turn an error of the library into a SourceError about `what`."""
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

    try:
        yield
    except FileNotFoundError:
        raise SourceError(f"{what}: it is not there.") from None
    except (PermissionDeniedError, UnauthenticatedError):
        raise SourceError(
            f"{what}: access is denied; give the service credentials that may list and read it."
        ) from None
    except (BaseError, ValueError, OSError) as error:
        raise SourceError(f"{what}: {failure} ({_reason(error)}).") from None


def _reason(error: Exception) -> str:
    """Return what went wrong, without the times and the debug output that the library adds."""
    first = str(error).partition("\n")[0]
    reason = (first.partition(" - ")[2] or first).strip().rstrip(".")
    return reason[:_MAX_REASON_CHARACTERS]
