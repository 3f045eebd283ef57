"""The token of a Label Studio user, as the header that its files need.

A legacy token is sent as it is. A personal access token, which is a JWT, is exchanged for one that
is good for a few minutes. Knows no file of a task.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

from model.bundle.bounded_reading import read_file
from model.errors import DropserveError
from service.label_studio.size_limited_download import read_answer
from service.label_studio_url import LabelStudioUrl

if TYPE_CHECKING:
    import httpx

_MAX_BYTES = 4096
_MAX_ANSWER_BYTES = 2**14
_KEEP_SECONDS = 60
"""A Label Studio's access token is good for five minutes."""


class TokenError(DropserveError):
    """The token cannot be read, or Label Studio does not take it."""


class _Exchanged(BaseModel):
    """What Label Studio gives for a personal access token."""

    access: str = Field(pattern=r"^[\w.-]+$")


class AccessToken:
    """One user's token."""

    def __init__(self, url: LabelStudioUrl, token: str) -> None:
        self._url = url
        self._token = token
        self._header, self._good_until = "", 0.0

    async def header(self, client: "httpx.AsyncClient") -> str:
        """Return the value of the header Authorization.

        Raises:
            TokenError: Label Studio does not exchange it.
            httpx.HTTPError: Label Studio was not reached.
        """
        if self._token.count(".") != 2:
            return f"Token {self._token}"
        if time.monotonic() >= self._good_until:
            self._header = f"Bearer {await self._exchange(client)}"
            self._good_until = time.monotonic() + _KEEP_SECONDS
        return self._header

    async def _exchange(self, client: "httpx.AsyncClient") -> str:
        """Return an access token for the personal one; raises as `header` does."""
        url = f"{self._url}/api/token/refresh/"
        async with client.stream("POST", url, json={"refresh": self._token}) as answer:
            if not answer.is_success:
                raise TokenError(f"Label Studio does not take the token ({answer.status_code}).")
            try:
                content = await read_answer(answer, _MAX_ANSWER_BYTES)
                return _Exchanged.model_validate_json(content).access
            except ValueError:
                raise TokenError("Label Studio gives no access token for the token.") from None


def read_token(file: Path) -> str:
    """Return the token that a file holds; raises TokenError."""
    try:
        content = read_file(file, _MAX_BYTES).strip().decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise TokenError(
            f"--label-studio-token-file: {file} cannot be read ({reason}); name "
            "a file that this user may read."
        ) from None
    if not content.isprintable() or not content or " " in content:
        raise TokenError(
            f"--label-studio-token-file: {file} holds no token; write into it the one that Label "
            "Studio shows under Account & Settings, and nothing else."
        )
    return content
