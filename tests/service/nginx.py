"""Runs Debian's nginx in front of a service under test."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.free_port import free_port
from tests.service.serving import TIMEOUT_SECONDS

_PROGRAM = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
_CONFIGURATION = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log off; absolute_redirect off; proxy_http_version 1.1;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{
    listen 127.0.0.1:{port};
    {locations}
  }}
}}
"""


@contextmanager
def nginx(folder: Path, locations: str) -> Iterator[str]:
    """Run nginx with these locations in a folder; yield its address. Skip where it is missing."""
    if _PROGRAM is None:
        pytest.skip("nginx is not installed; apt-get install nginx-light")
    port = free_port()
    file, log = folder / "nginx.conf", folder / "error.log"
    file.write_text(_CONFIGURATION.format(folder=folder, port=port, locations=locations))
    process = subprocess.Popen(
        [_PROGRAM, "-p", str(folder), "-e", str(log), "-c", str(file)], stderr=subprocess.DEVNULL
    )
    try:
        _wait_for_port(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(TIMEOUT_SECONDS)


def _wait_for_port(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), TIMEOUT_SECONDS).close()
        except ConnectionRefusedError:
            continue
        return
    raise AssertionError("nginx does not listen")
