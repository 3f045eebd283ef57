"""Reads the image files of tasks: data: URLs, and files of the one configured Label Studio.

A task names its image by a URL of whoever made it, so nothing else is fetched, no redirect is
followed, and bytes and time have limits. Knows no decoder.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

from model.errors import DropserveError
from service.codecs.body_to_images import decode_base64
from service.label_studio.access_token import AccessToken, TokenError, read_token
from service.label_studio.size_limited_download import read_answer
from service.label_studio_url import LabelStudioUrl
from service.settings import ServiceSettings

if TYPE_CHECKING:
    import httpx

_FETCH_SECONDS = 10.0
"""Longest time to fetch one file, its answer's head and body together."""
_DATA = "data:"
_REFUSED_TOKEN = (401, 403)
"""The statuses of an answer to a wrong token, or to one that may not read the file."""


class TaskImageError(DropserveError):
    """The image of a task cannot be read; the sentence says why."""


class TaskImages:
    """Reads the image files of tasks, within limits."""

    def __init__(
        self,
        url: LabelStudioUrl,
        token: str | None,
        max_bytes: int,
        transport: "httpx.AsyncBaseTransport | None" = None,
    ) -> None:
        """max_bytes: of one file. transport: replaces the network, for tests."""
        self._url = url
        self._token = None if token is None else AccessToken(url, token)
        self._max_bytes = max_bytes
        self._transport = transport
        self._tls = ssl.create_default_context()  # which takes too long for every request

    @classmethod
    def of(cls, settings: ServiceSettings) -> Self | None:
        """Return what the settings describe; None: there is no Label Studio; raises TokenError."""
        if settings.label_studio_url is None:
            return None
        file = settings.label_studio_token_file
        token = None if file is None else read_token(file)
        return cls(settings.label_studio_url, token, settings.max_body_bytes)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Callable[[Any], Awaitable[bytes]]]:
        """Open a connection; yield what returns the bytes of the file that a task's data names.

        It raises TaskImageError.
        """
        import httpx

        async with httpx.AsyncClient(
            timeout=_FETCH_SECONDS,
            follow_redirects=False,
            trust_env=False,
            verify=self._tls,
            headers={"Accept-Encoding": "identity"},
            transport=self._transport,
        ) as client:

            async def read(reference: Any) -> bytes:
                if not isinstance(reference, str) or not reference:
                    raise TaskImageError("The task names no image.")
                if reference[: len(_DATA)].lower() == _DATA:
                    return decode_base64(reference, "The task's image")
                return await self._fetch(client, reference)

            yield read

    async def _fetch(self, client: "httpx.AsyncClient", reference: str) -> bytes:
        import httpx

        shown = repr(reference.partition("?")[0][:200])  # a query may hold a signature
        try:
            url = self._url.file_url(reference)
            async with asyncio.timeout(_FETCH_SECONDS):
                return await self._download(client, url)
        except (ValueError, TokenError) as error:
            reason = str(error).rstrip(".")
            raise TaskImageError(f"The image {shown} is not fetched: {reason}.") from None
        except (TimeoutError, httpx.TimeoutException):
            raise TaskImageError(
                f"The image {shown} did not arrive within {_FETCH_SECONDS:g} seconds."
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise TaskImageError(
                f"The image {shown} was not reached at {self._url} ({type(error).__name__})."
            ) from None

    async def _download(self, client: "httpx.AsyncClient", url: str) -> bytes:
        headers = {} if self._token is None else {"Authorization": await self._token.header(client)}
        async with client.stream("GET", url, headers=headers) as answer:
            if answer.status_code != 200:
                cause = "token" if answer.status_code in _REFUSED_TOKEN else "log"
                raise ValueError(f"Label Studio answered {answer.status_code}; see its {cause}")
            return await read_answer(answer, self._max_bytes)


def why_label_studio_is_unusable(settings: ServiceSettings) -> str | None:
    """Return in one sentence why Label Studio cannot be served at all; None if it can, or none is.

    It asks no network.
    """
    from importlib.util import find_spec

    if settings.label_studio is None:
        return None
    missing = [name for name in ("defusedxml", "httpx") if find_spec(name) is None]
    if missing:
        return (
            f"--label-studio: it needs the package {missing[0]}; run pip install "
            "'.[label-studio]' in the project's folder."
        )
    try:
        TaskImages.of(settings)
    except TokenError as error:
        return str(error)
    return None
