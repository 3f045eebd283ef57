"""`python -m service.control ACTION MODEL`: change which versions a running service serves.

A client of its HTTP API, by the listener for control. Knows no bundle.
"""

import http.client
import json
import socket
import sys
from contextlib import closing
from http import HTTPStatus
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote, urlencode, urlsplit

from pydantic import Field, model_validator
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from model.settings import USAGE_STATUS, CommandSettings, load_or_exit
from service.http.listeners import default_control_socket

_REQUEST_ID_HEADER = "X-Request-ID"  # as service.http.middleware has it, without its imports
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
    port: int = Field(
        8000, ge=1, le=65_535, description="the service's public port, by which its socket is found"
    )
    socket: Path | None = Field(
        None, description="Unix socket of the service's control listener, if it was given one"
    )
    url: str | None = Field(
        None, description="address of the control listener, if it has a port: http://127.0.0.1:PORT"
    )

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if (self.version is None) == (self.action in _TAKES_VERSION):
            raise ValueError(f"--version: for {' and '.join(_TAKES_VERSION)}, and needed there.")
        if self.share is not None and self.action != "canary":
            raise ValueError("--share: for canary alone; leave it out.")
        if self.url is not None and self.socket is not None:
            raise ValueError("--socket: --url is given too; give one of them.")
        if self.url is not None and not self.url.startswith("http://"):
            raise ValueError(f"--url: {self.url!r} is no http:// address.")
        return self

    @property
    def path(self) -> str:
        """The path and query of the request that does it."""
        name = quote(self.model, safe="")
        given = {"version": self.version, "share": self.share}
        query = urlencode({key: each for key, each in given.items() if each})
        folder = "/v2/repository" if self.action in _LOADING else ""
        return f"{folder}/models/{name}/{self.action}" + (f"?{query}" if query else "")

    @property
    def place(self) -> str:
        """Where the service listens for control."""
        return self.url or str(self.socket or default_control_socket(self.port))

    def connect(self) -> http.client.HTTPConnection:
        """Make the connection; raises ValueError where the address is none."""
        if self.url is None:
            return _UnixConnection(self.place)
        address = urlsplit(self.url)
        if not address.hostname:
            raise ValueError("no host")
        return http.client.HTTPConnection(address.hostname, address.port, timeout=_PATIENCE_SECONDS)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a socket of the file system."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_PATIENCE_SECONDS)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def main(arguments: list[str]) -> int:
    """Ask for the change and say what came of it; return the exit status."""
    settings = load_or_exit(ControlSettings, arguments)
    try:
        # Neither a proxy nor a redirect: the one service that was named, or nothing.
        with closing(settings.connect()) as connection:
            folder = urlsplit(settings.url or "").path.rstrip("/")
            connection.request("POST", folder + settings.path)
            answer = connection.getresponse()
            body = answer.read()
        if answer.status != HTTPStatus.OK:
            sys.stderr.write(f"{_reason(answer, body)}\n")
            return 1
        sys.stdout.write(_told(settings, answer, body))
    except OSError as error:
        sys.stderr.write(
            f"{settings.place} does not answer ({error.strerror or error}); name the service's "
            "control listener with --port, --socket or --url.\n"
        )
        return USAGE_STATUS
    except (http.client.HTTPException, ValueError, KeyError, TypeError):
        sys.stderr.write(
            f"{settings.place} does not answer as Dropserve does; check --port, --socket or "
            "--url.\n"
        )
        return USAGE_STATUS
    return 0


def _told(settings: ControlSettings, answer: HTTPResponse, body: bytes) -> str:
    if _REQUEST_ID_HEADER not in answer.headers:
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


def _reason(answer: HTTPResponse, body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return f"The service answered {answer.status}; is it Dropserve's?"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
