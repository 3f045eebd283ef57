"""Debian's Prometheus on the configuration of deploy/monitoring/, in seconds instead of minutes."""

import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.monitoring.monitoring_files import MONITORING, RULES

DEADLINE_SECONDS = 90
WINDOW = "20s"
"""In place of the rules' five, ten and fifteen minutes, and of the dashboard's rate interval."""


class PrometheusProcess:
    """A running Prometheus that scrapes one instance of the service every second."""

    def __init__(self, folder: Path, url: str, ca: Path | None, key: str | None) -> None:
        _write_configuration(folder, url, ca, key)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                    "--enable-feature=exemplar-storage",
                ],
                stdout=log,
                stderr=log,
            )
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE_SECONDS)

    def wait_until(self, what: str, is_so: Callable[[], bool]) -> None:
        """Ask again and again, until it is so; fail with what did not come to be."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        pause = threading.Event()
        while not self._asked(is_so):
            assert time.monotonic() < deadline, f"{what}\n{self._log.read_text()[-3000:]}"
            pause.wait(0.2)

    def is_ready(self) -> bool:
        return self._http.get("/-/ready").is_success

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the samples that an expression gives now; fail where it is not PromQL."""
        answer = self._http.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", f"{expression}: {answer}"
        result: list[dict[str, Any]] = answer["data"]["result"]
        return [each for each in result if each["value"][1] != "NaN"]

    def exemplars(self, expression: str) -> list[dict[str, Any]]:
        """Return the exemplars of the last minute of the series of an expression."""
        now = time.time()
        asked = {"query": expression, "start": str(now - 60), "end": str(now + 1)}
        answer = self._http.get("/api/v1/query_exemplars", params=asked).json()
        return [each for series in answer["data"] for each in series["exemplars"]]

    def wait_for_data(self, expression: str) -> None:
        self.wait_until(f"No data: {expression}", lambda: bool(self.query(expression)))

    def rules(self) -> list[dict[str, Any]]:
        """Return every rule with its health."""
        groups = self._http.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def firing(self) -> dict[str, str]:
        """Return the summaries of the alerts that fire now, by name."""
        found = self._http.get("/api/v1/alerts").json()["data"]["alerts"]
        return {
            each["labels"]["alertname"]: each["annotations"]["summary"]
            for each in found
            if each["state"] == "firing"
        }

    def wait_for_alert(self, name: str) -> str:
        """Wait until an alert fires; return its summary."""
        self.wait_until(f"{name} does not fire.", lambda: name in self.firing())
        return self.firing()[name]

    def end(self) -> None:
        self._http.close()
        self._process.kill()
        self._process.wait()

    def _asked(self, is_so: Callable[[], bool]) -> bool:
        try:
            return is_so()
        except (httpx.TransportError, KeyError):  # it is starting
            return False


@contextmanager
def prometheus_process(
    folder: Path, url: str, ca: Path | None = None, key: str | None = None
) -> Iterator[PrometheusProcess]:
    """Start Prometheus and wait until it answers.

    url: of the service.
    ca: the certificate of the authority that has signed the service's, for https.
    key: one of the scope `metrics`, where the service needs one.
    """
    try:
        process = PrometheusProcess(folder, url, ca, key)
    except FileNotFoundError:
        pytest.fail("There is no prometheus; apt-get install --no-install-recommends prometheus.")
    try:
        process.wait_until("Prometheus is not ready.", process.is_ready)
        yield process
    finally:
        process.end()


def _write_configuration(folder: Path, url: str, ca: Path | None, key: str | None) -> None:
    """Write the project's configuration and rules, with short intervals and without waiting."""
    configuration = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (scrape,) = configuration["scrape_configs"]
    scheme, _, target = url.partition("://")
    scrape["scheme"] = scheme
    scrape["static_configs"] = [{"targets": [target]}]
    if ca is not None:
        scrape["tls_config"] = {"ca_file": str(ca)}
    if key is not None:
        (folder / "key").write_text(key)
        scrape["authorization"] = {"credentials_file": str(folder / "key")}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    (folder / "rules").mkdir()
    for file in RULES.glob("*.yml"):
        text = re.sub(r"\[\d+m\]", f"[{WINDOW}]", file.read_text())
        text = re.sub(r"^ +for: .*\n", "", text, flags=re.MULTILINE)
        (folder / "rules" / file.name).write_text(text)
