"""`python -m service.control ACTION MODEL`: change which versions a running service serves.

A client of its HTTP API. Knows no bundle.
"""

import http.client
import json
import sys
import urllib.error
import urllib.parse
import urllib.request
from email.message import Message
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from model.commandline import USAGE_STATUS, CommandSettings, load_or_exit

_REQUEST_ID_HEADER = "X-Request-ID"  # as service.middleware has it, without its imports
_LOADING = ("load", "unload")
_TAKES_VERSION = ("canary", "pin")
_PATIENCE_SECONDS = 120


class ControlSettings(CommandSettings):
    """Change which versions of a model a running service serves."""

    model_config = SettingsConfigDict(
        env_prefix="DROPSERVE_CLIENT_", cli_prog_name="python -m service.control"
    )

    action: CliPositionalArg[
        Literal["canary", "promote", "rollback", "pin", "follow", "load", "unload", "default"]
    ] = Field(
        description="canary: give a version a share of the requests. promote: make the canary the "
        "stable version. rollback: end the canary or, without one, return to the version before. "
        "pin: hold one version. follow: serve the newest again. load, unload: put the model into "
        "service, take it out. default: let the model answer requests that name none"
    )
    model: CliPositionalArg[str] = Field(description="the model")
    version: int | None = Field(None, ge=1, description="of canary and pin: the version")
    share: float | None = Field(
        None, gt=0, le=1, description="of canary: its share of the requests; 0.1 if left out"
    )
    url: str = Field("http://127.0.0.1:8000", description="where the service listens")

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if (self.version is None) == (self.action in _TAKES_VERSION):
            raise ValueError(f"--version: for {' and '.join(_TAKES_VERSION)}, and needed there.")
        if self.share is not None and self.action != "canary":
            raise ValueError("--share: for canary alone; leave it out.")
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"--url: {self.url!r} is no http:// or https:// address.")
        return self

    @property
    def request(self) -> urllib.request.Request:
        """The request that does it."""
        name = urllib.parse.quote(self.model, safe="")
        given = {"version": self.version, "share": self.share}
        query = urllib.parse.urlencode({key: each for key, each in given.items() if each})
        folder = "/v2/repository" if self.action in _LOADING else ""
        address = f"{self.url.rstrip('/')}{folder}/models/{name}/{self.action}"
        if query:
            address += f"?{query}"
        return urllib.request.Request(address, method="POST")  # noqa: S310 (checked above)


def main(arguments: list[str]) -> int:
    """Ask for the change and say what came of it; return the exit status."""
    settings = load_or_exit(ControlSettings, arguments)
    # Neither a proxy nor a redirect: the one service that was named, or nothing.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)
    try:
        with opener.open(settings.request, timeout=_PATIENCE_SECONDS) as answer:
            sys.stdout.write(_told(settings, answer.read(), answer.headers))
    except urllib.error.HTTPError as error:
        sys.stderr.write(f"{_reason(error)}\n")
        return 1
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        sys.stderr.write(
            f"{settings.url} does not answer ({reason}); name the service with --url.\n"
        )
        return USAGE_STATUS
    except (http.client.HTTPException, ValueError, KeyError, TypeError):
        sys.stderr.write(f"{settings.url} does not answer as Dropserve does; check --url.\n")
        return USAGE_STATUS
    return 0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """Let a redirect be the error that it is."""


def _told(settings: ControlSettings, body: bytes, headers: Message) -> str:
    if _REQUEST_ID_HEADER not in headers:
        raise ValueError("every answer of Dropserve has one")
    if not body:
        return f"{settings.model}: {settings.action}ed\n"
    now: dict[str, Any] = json.loads(body)
    if settings.action == "default":
        return f"{now['name']}: answers requests that name no model\n"
    kind = "held" if now["held"] else "the newest"
    told = f"{now['name']}: stable version {now['version']} ({kind})"
    if now["canary"] is not None:
        told += f", canary version {now['canary']} with {now['canary_share']:.0%} of the requests"
    return told + "\n"


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["error"])
    except (http.client.HTTPException, ValueError, KeyError, TypeError):
        return f"The service answered {error.code}; is --url Dropserve's?"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
