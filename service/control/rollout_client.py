"""`python -m service.control ACTION MODEL`: change which versions a running service serves.

A client of the HTTP API, over the control listener. Knows no bundle.
"""

import http.client
import json
import socket
import ssl
import sys
from contextlib import closing
from http import HTTPStatus
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote, urlencode, urlsplit

from pydantic import Field, model_validator
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from model.cli_and_env_settings import USAGE_EXIT_STATUS, CommandSettings, load_or_exit
from model.command_exit_status import run_command
from service.control.api_key_to_send import ApiKeyFileError, read_api_key
from service.http.listeners import default_control_socket

_REQUEST_ID_HEADER = "X-Request-ID"  # as in service.http.middleware, whose imports are slow
_LOAD_ACTIONS = ("load", "unload")
_WITH_VERSION = ("canary", "shadow", "pin")
_WITH_SHARE = ("canary", "shadow")
_RESET_DRIFT = "reset-drift"
_TIMEOUT_SECONDS = 120
_HTTPS = "https://"


class ControlSettings(CommandSettings):
    """Change which versions of a model a running service serves."""

    model_config = SettingsConfigDict(
        env_prefix="DROPSERVE_CLIENT_", cli_prog_name="python -m service.control"
    )

    action: CliPositionalArg[
        Literal[
            "canary",
            "promote",
            "rollback",
            "shadow",
            "unshadow",
            "pin",
            "follow",
            "load",
            "unload",
            "default",
            "reset-drift",
        ]
    ] = Field(
        description="canary: give a version a share of the requests. promote: make the canary the "
        "stable version. rollback: end the canary or, without one, return to the version before. "
        "shadow: compare a version with the stable one, out of the way. unshadow: end that. "
        "pin: hold one version. follow: serve the newest again. load, unload: put the model into "
        "service, take it out. default: let the model answer requests that name none. reset-drift: "
        "end the drift alarm and test anew"
    )
    model: CliPositionalArg[str] = Field(description="the model")
    version: int | None = Field(None, ge=1, description="of canary, shadow and pin: the version")
    share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="of canary: its share of the requests, 0.1 if left out; of shadow: the share "
        "of the stable version's answers that are compared, 1 if left out",
    )
    port: int = Field(
        8000, ge=1, le=65_535, description="the service's public port, by which its socket is found"
    )
    socket: Path | None = Field(
        None, description="Unix socket of the service's control listener, if it was given one"
    )
    url: str | None = Field(
        None,
        description="address of the control listener, if it has a port: http://127.0.0.1:PORT; or "
        "of a public port that permits it, also https://HOST:PORT",
    )
    tls_ca: Path | None = Field(
        None,
        description="with --url https://…: file of CA certificates in PEM that are trusted instead "
        "of the system's",
    )

    api_key_file: Path | None = Field(
        None, description="with --url: file that holds an API key of the scope control"
    )

    @model_validator(mode="after")
    def _require_consistent(self) -> Self:
        if (self.version is None) == (self.action in _WITH_VERSION):
            raise ValueError("--version: for canary, shadow and pin, and needed there.")
        if self.share is not None and self.action not in _WITH_SHARE:
            raise ValueError("--share: for canary and shadow alone; leave it out.")
        if self.api_key_file is not None and self.url is None:
            raise ValueError("--api-key-file: for --url alone, since a socket needs no key.")
        if self.url is not None and self.socket is not None:
            raise ValueError("--socket: --url is given too; give one of them.")
        if self.url is not None and not self.url.startswith(("http://", _HTTPS)):
            raise ValueError(f"--url: {self.url!r} is no http:// or https:// address.")
        if self.tls_ca is not None:
            if self.url is None or not self.url.startswith(_HTTPS):
                raise ValueError("--tls-ca: for --url https://… alone; leave it out.")
            _tls_context(self.tls_ca)
        return self

    @property
    def path(self) -> str:
        """The path and query of the request."""
        name = quote(self.model, safe="")
        parameters = {"version": self.version, "share": self.share}
        query = urlencode({key: value for key, value in parameters.items() if value})
        prefix = "/v2/repository" if self.action in _LOAD_ACTIONS else ""
        action = "drift/reset" if self.action == _RESET_DRIFT else self.action
        return f"{prefix}/models/{name}/{action}" + (f"?{query}" if query else "")

    def headers(self) -> dict[str, str]:
        """Return the headers of the request; raises ApiKeyFileError."""
        if self.api_key_file is None:
            return {}
        return {"Authorization": f"Bearer {read_api_key(self.api_key_file)}"}

    @property
    def address(self) -> str:
        """The URL or the socket of the control listener."""
        return self.url or str(self.socket or default_control_socket(self.port))

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection, not open yet.

        Raises:
            ValueError: the URL is not valid.
        """
        if self.url is None:
            return _UnixConnection(self.address)
        url = urlsplit(self.url)
        if not url.hostname:
            raise ValueError("no host")
        if url.scheme == "http":
            return http.client.HTTPConnection(url.hostname, url.port, timeout=_TIMEOUT_SECONDS)
        return http.client.HTTPSConnection(
            url.hostname, url.port, timeout=_TIMEOUT_SECONDS, context=_tls_context(self.tls_ca)
        )


def _tls_context(ca: Path | None) -> ssl.SSLContext:
    """Return a context that trusts the certificates of a file; None: those of the system."""
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError:
        raise ValueError(
            f"--tls-ca: {ca} holds no CA certificates in PEM that can be read."
        ) from None


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def main(arguments: list[str] | None = None) -> int:
    """Send the change, print its result, and return the exit status."""
    settings = load_or_exit(ControlSettings, arguments)
    return run_command(
        lambda: _change(settings),
        "Interrupted; the service may make the change all the same: see GET /models.",
    )


def _change(settings: ControlSettings) -> int:
    try:
        # http.client uses no proxy and follows no redirect: only the named service is changed.
        with closing(settings.connect()) as connection:
            prefix = urlsplit(settings.url or "").path.rstrip("/")
            connection.request("POST", prefix + settings.path, headers=settings.headers())
            response = connection.getresponse()
            body = response.read()
        if response.status != HTTPStatus.OK:
            sys.stderr.write(f"{_error_of(response, body)}\n")
            return 1
        sys.stdout.write(_format_result(settings, response, body))
    except ssl.SSLCertVerificationError as error:
        sys.stderr.write(
            f"{settings.address} is not trusted ({error.verify_message}); name its CA with "
            "--tls-ca.\n"
        )
        return USAGE_EXIT_STATUS
    except ApiKeyFileError as error:
        sys.stderr.write(f"{error}\n")
        return USAGE_EXIT_STATUS
    except OSError as error:
        sys.stderr.write(
            f"{settings.address} does not answer ({error.strerror or error}); name the service's "
            "control listener with --port, --socket or --url.\n"
        )
        return 1
    except (http.client.HTTPException, ValueError, KeyError, TypeError):
        sys.stderr.write(
            f"{settings.address} does not answer as Dropserve does; check --port, --socket or "
            "--url.\n"
        )
        return USAGE_EXIT_STATUS
    return 0


def _format_result(settings: ControlSettings, response: HTTPResponse, body: bytes) -> str:
    """Describe the versions that are now active; ValueError if the server is not Dropserve."""
    if _REQUEST_ID_HEADER not in response.headers:
        raise ValueError(f"no {_REQUEST_ID_HEADER} header")
    if not body:
        return f"{settings.model}: {settings.action}ed\n"
    summary: dict[str, Any] = json.loads(body)
    if settings.action == _RESET_DRIFT:
        versions = ", ".join(summary["versions"])
        return f"{summary['model']}: tested for drift anew, version {versions}\n"
    if settings.action == "default":
        return f"{summary['name']}: answers requests that name no model\n"
    kind = "held" if summary["held"] else "the newest"
    text = f"{summary['name']}: stable version {summary['version']} ({kind})"
    if summary["canary"] is not None:
        share = f"{100 * summary['canary_share']:g}% of the requests"
        text += f", canary version {summary['canary']} with {share}"
    if summary["shadow"] is not None:
        share = f"{100 * summary['shadow']['share']:g}% of its answers"
        text += f", shadow version {summary['shadow']['version']} compared with {share}"
    return text + "\n"


def _error_of(response: HTTPResponse, body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return f"The service answered {response.status}; is it Dropserve's?"
