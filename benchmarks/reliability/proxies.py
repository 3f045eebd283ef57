"""Debian's nginx and HAProxy in front of the service.

Either stands before one service and refuses control routes (403), or before several replicas. Their
configurations are written into a temporary folder; they listen on loopback alone.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
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


_BALANCING_NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  upstream replicas {{
    least_conn;
    {servers}
    keepalive 32;
  }}
  server {{
    listen 127.0.0.1:{port};
    keepalive_requests 1000000;
    location / {{
      proxy_pass http://replicas;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_connect_timeout 1s;
      proxy_next_upstream error timeout http_503 non_idempotent;
      add_header X-Replica "$upstream_addr" always;
      add_header X-Tries "$upstream_status" always;
    }}
  }}
}}
"""
_BALANCING_HAPROXY = """
defaults
  mode http
  timeout connect 1s
  timeout client 30s
  timeout server 30s
  timeout check 1s
  option redispatch 1
frontend public
  bind 127.0.0.1:{port}
  http-after-response set-header X-Replica %[srv_name]
  default_backend replicas
backend replicas
  balance leastconn
  option httpchk GET /health/ready
  http-check expect status 200
  default-server check inter 200ms fall 2 rise 1
  {servers}
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
    template = _NGINX if name == "nginx" else _HAPROXY
    ports = {"port": port, "open_port": port + 1, "service": service[1]}
    configuration = template.format(folder=folder, control=_CONTROL, **ports)
    with _running(name, folder, configuration, port):
        yield ("127.0.0.1", port), ("127.0.0.1", port + 1)


@contextmanager
def balancer(name: str, folder: Path, port: int, replicas: Sequence[Address]) -> Iterator[Address]:
    """Run a proxy in front of several replicas of the service.

    HAProxy asks each for /health/ready five times a second, and sends a request once. nginx, whose
    free edition has no such checks, sends a request to another replica where one does not answer
    or answers 503. Yields its address. The responses have the replica in `X-Replica`, and nginx'
    the status of each try in `X-Tries`. HAProxy closes a kept-alive connection without a response
    where a replica did so to it, and so lets the client try again.
    """
    if name == "nginx":
        each, end, template = (
            "server {}:{} max_fails=1 fail_timeout=1s;",
            "\n    ",
            _BALANCING_NGINX,
        )
    else:
        each, end, template = "server {0}:{1} {0}:{1}", "\n  ", _BALANCING_HAPROXY
    servers = end.join(each.format(*address) for address in replicas)
    configuration = template.format(folder=folder, port=port, servers=servers)
    with _running(name, folder, configuration, port):
        yield ("127.0.0.1", port)


@contextmanager
def _running(name: str, folder: Path, configuration: str, port: int) -> Iterator[None]:
    program = _program(name)
    assert program is not None, name
    file = folder / f"{name}.conf"
    file.write_text(configuration)
    flags = ["-p", str(folder), "-c", str(file)] if name == "nginx" else ["-db", "-f", str(file)]
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603
            [program, *flags], stdout=log, stderr=subprocess.STDOUT, cwd=folder
        )
    try:
        _wait(("127.0.0.1", port), process, folder / f"{name}.log")
        yield
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
