"""Debian's nginx and HAProxy in front of the service, configured to refuse control routes (403).

Their configurations are written into a temporary folder; they listen on loopback alone.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.reliability.wire import Address

_PACKAGES = {"nginx": "nginx-light", "haproxy": "haproxy"}
_START_SECONDS = 10.0
_CONTROL = r"^/(v2/repository/models/[^/]+/(load|unload)|models/[^/]+/[a-z]+)$"

_NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream service {{ server 127.0.0.1:{service}; keepalive 16; }}
  proxy_http_version 1.1;
  proxy_set_header Upgrade $http_upgrade;
  proxy_set_header Connection "upgrade";
  server {{
    listen 127.0.0.1:{port};
    location ~ "{control}" {{ return 403; }}
    location / {{ proxy_pass http://service; }}
  }}
  server {{
    listen 127.0.0.1:{open_port};
    location / {{ proxy_pass http://service; }}
  }}
}}
"""

_HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend public
  bind 127.0.0.1:{port}
  http-request deny deny_status 403 if {{ path_reg {control} }}
  default_backend service
frontend open
  bind 127.0.0.1:{open_port}
  default_backend service
backend service
  http-reuse always
  server one 127.0.0.1:{service}
"""


class ProxyMissingError(Exception):
    """A proxy is not installed and cannot be; the message gives the reason."""


def install(name: str, log: Callable[[str], None]) -> None:
    """Install a proxy from the distribution's packages if it is absent.

    Raises:
        ProxyMissingError: it cannot be installed.
    """
    if _program(name):
        return
    if os.geteuid() or not shutil.which("apt-get"):
        raise ProxyMissingError(f"{name} is not installed here; apt-get install {name}.")
    log(f"installing {_PACKAGES[name]}")
    # RUNLEVEL=1: the package starts no server of its own.
    environment = {**os.environ, "RUNLEVEL": "1", "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", _PACKAGES[name]]
    done = subprocess.run(  # noqa: S603
        command, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ProxyMissingError(f"{name} cannot be installed: {done.stderr.strip()[-200:]}")


@contextmanager
def proxy(
    name: str, folder: Path, port: int, service: Address
) -> Iterator[tuple[Address, Address]]:
    """Run a proxy in front of the service.

    Yields its two addresses, on `port` and the next: the first refuses control routes, the second
    forwards them, without a header that reveals the client's address.
    """
    program = _program(name)
    assert program is not None, name
    template = _NGINX if name == "nginx" else _HAPROXY
    file = folder / f"{name}.conf"
    ports = {"port": port, "open_port": port + 1, "service": service[1]}
    file.write_text(template.format(folder=folder, control=_CONTROL, **ports))
    flags = ["-p", str(folder), "-c", str(file)] if name == "nginx" else ["-db", "-f", str(file)]
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603
            [program, *flags], stdout=log, stderr=subprocess.STDOUT, cwd=folder
        )
    try:
        _wait(("127.0.0.1", port), process, folder / f"{name}.log")
        yield ("127.0.0.1", port), ("127.0.0.1", port + 1)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait()


def _wait(address: Address, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection(address, 1):
            return
        time.sleep(0.05)
    output = log.read_text().replace(f"{log.parent}/", "").strip()
    raise ProxyMissingError(f"it does not start: {output[-300:]}")


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
