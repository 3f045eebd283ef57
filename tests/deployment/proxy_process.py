"""Runs Debian's nginx or HAProxy as deploy/ configures it, with other ports and paths."""

import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
import pytest

from tests.conftest import ROOT
from tests.free_port import free_port

ProxyName = Literal["nginx", "haproxy"]
HOST = "dropserve.example.org"
START_SECONDS = 10
TIMEOUT_SECONDS = 60
_PACKAGES = {"nginx": "nginx-light", "haproxy": "haproxy"}
_FILES = {"nginx": "deploy/nginx/dropserve.conf", "haproxy": "deploy/haproxy/haproxy.cfg"}
# What Debian's own nginx.conf is around a file of conf.d.
_NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  include {folder}/dropserve.conf;
}}
"""


@dataclass(frozen=True)
class RunningProxy:
    """A proxy that listens on 127.0.0.1, with its ports and the certificate that it shows."""

    http_port: int
    https_port: int
    certificate: Path

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.https_port}"

    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certificate))

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, verify=self.tls(), timeout=TIMEOUT_SECONDS)


@contextmanager
def running_proxy(name: ProxyName, folder: Path, replicas: Sequence[int]) -> Iterator[RunningProxy]:
    """Run a proxy in front of one or two replicas on these ports. Fail where it is missing."""
    program = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if program is None:
        pytest.fail(f"There is no {name}; apt-get install {_PACKAGES[name]}.")
    certificate = make_certificate(folder)
    proxy = RunningProxy(free_port(), free_port(), certificate)
    configuration = _configure(name, folder, proxy, replicas)
    flags = ["-e", str(folder / "error.log"), "-c"] if name == "nginx" else ["-db", "-f"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, *flags, str(configuration)], stdout=log, stderr=log, cwd=folder
        )
    try:
        _wait_for_port(proxy.https_port, process, folder)
        yield proxy
    finally:
        process.kill()
        process.wait()


def make_certificate(folder: Path) -> Path:
    """Write `certificate.pem`, valid for HOST and 127.0.0.1, `key.pem`, and both in `both.pem`."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", f"/CN={HOST}", "-keyout", str(key)),
            *("-addext", f"subjectAltName=DNS:{HOST},IP:127.0.0.1", "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    (folder / "both.pem").write_text(certificate.read_text() + key.read_text())
    return certificate


def _configure(name: ProxyName, folder: Path, proxy: RunningProxy, replicas: Sequence[int]) -> Path:
    """Write the project's configuration with this machine's ports and paths; return its file."""
    text = (ROOT / _FILES[name]).read_text()
    for old, new in _replacements(name, folder, proxy, replicas).items():
        assert old in text, f"{old!r} is not in {_FILES[name]} any more"
        text = text.replace(old, new)
    file = folder / Path(_FILES[name]).name
    file.write_text(text)
    if name == "haproxy":
        return file
    around = folder / "nginx.conf"
    around.write_text(_NGINX.format(folder=folder))
    return around


def _replacements(
    name: ProxyName, folder: Path, proxy: RunningProxy, replicas: Sequence[int]
) -> dict[str, str]:
    second = f"127.0.0.1:{replicas[-1]}"
    if name == "nginx":
        letsencrypt = f"/etc/letsencrypt/live/{HOST}"
        found = {
            "    listen [::]:80;\n": "",
            "    listen [::]:443 ssl http2;\n": "",
            "listen 80;": f"listen 127.0.0.1:{proxy.http_port};",
            "listen 443 ": f"listen 127.0.0.1:{proxy.https_port} ",
            f"{letsencrypt}/fullchain.pem": str(folder / "certificate.pem"),
            f"{letsencrypt}/privkey.pem": str(folder / "key.pem"),
            "/var/log/nginx": str(folder),
            "127.0.0.1:8000": f"127.0.0.1:{replicas[0]}",
        }
        unused = "# server 127.0.0.1:8001"
    else:
        found = {
            "bind :80\n": f"bind 127.0.0.1:{proxy.http_port}\n",
            "bind :443 ": f"bind 127.0.0.1:{proxy.https_port} ",
            "/etc/haproxy/dropserve.pem": str(folder / "both.pem"),
            "127.0.0.1:8000": f"127.0.0.1:{replicas[0]}",
        }
        unused = "# server two 127.0.0.1:8001"
        if os.geteuid():  # only root may change these
            found |= dict.fromkeys(
                ("    chroot /var/lib/haproxy\n", "    user haproxy\n", "    group haproxy\n"), ""
            )
    if len(replicas) > 1:
        found[unused] = unused.removeprefix("# ").replace("127.0.0.1:8001", second)
    return found


def _wait_for_port(port: int, process: "subprocess.Popen[bytes]", folder: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    pause = threading.Event()
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), START_SECONDS):
            return
        pause.wait(0.02)
    logs = [file.read_text() for file in folder.glob("*log") if file.is_file()]
    pytest.fail("It does not listen:\n" + "\n".join(logs))
