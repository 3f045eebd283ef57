"""A real Label Studio in a process of its own, with a Python that has it. It calls no one."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

_PYTHON = os.environ.get("DROPSERVE_LABEL_STUDIO_PYTHON")  # read before a fixture removes it
_START_SECONDS = 240
_USER, _PASSWORD, _TOKEN = "tester@example.org", "a-password-of-tests", "0" * 40
_DATABASE = "empty.sqlite3"
_VARIABLES = {
    "COLLECT_ANALYTICS": "false",
    "LATEST_VERSION_CHECK": "false",
    "SENTRY_DSN": "",
    "FRONTEND_SENTRY_DSN": "",
    "ML_BLOCK_LOCAL_IP": "false",  # backends and webhooks on this machine
    "SSRF_PROTECTION_ENABLED": "false",
}


class LabelStudio:
    """A running Label Studio, and a client of one of its users."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(
            base_url=url, headers={"Authorization": f"Token {_TOKEN}"}, timeout=60
        )

    def close(self) -> None:
        self._client.close()

    def get(self, path: str, **query: Any) -> Any:
        answer = self._client.get(path, params=query)
        assert answer.is_success, answer.text
        return answer.json()

    def send(self, method: str, path: str, content: Any = None, **options: Any) -> Any:
        answer = self._client.request(method, path, json=content, **options)
        assert answer.is_success, f"{answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def upload(self, project: int, files: dict[str, bytes]) -> list[int]:
        """Import image files; return the numbers of their tasks, in the order of the names."""
        for name, content in files.items():
            answer = self._client.post(
                f"/api/projects/{project}/import", files={"file": (name, content, "image/png")}
            )
            assert answer.is_success, answer.text
        tasks = self.get("/api/tasks", project=project, page_size=100)["tasks"]
        return sorted(each["id"] for each in tasks)

    def personal_access_token(self) -> str:
        """Return a token as a user makes one under Account & Settings."""
        token: str = self.send("POST", "/api/token/")["token"]
        return token


@contextmanager
def running_label_studio(port: int) -> Iterator[LabelStudio]:
    """Run Label Studio with an empty database; it ends with the block."""
    if _PYTHON is None:
        pytest.fail("DROPSERVE_LABEL_STUDIO_PYTHON is not set; run make label-studio-test.")
    empty = _empty_database(Path(_PYTHON))
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(empty, Path(folder) / _DATABASE)
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    *(*_command("start", Path(_PYTHON), folder), "--enable-legacy-api-token"),
                    *("--internal-host", "127.0.0.1", "--port", str(port)),
                    *("--username", _USER, "--password", _PASSWORD, "--user-token", _TOKEN),
                ],
                cwd=folder,
                env=_environment(folder),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(process, url, log)
            with closing(LabelStudio(url)) as running:
                yield running
        finally:
            process.kill()
            process.wait()


def _empty_database(python: Path) -> Path:
    """Return the file of an empty database, which is made once: that takes half a minute."""
    made = python.parent.parent / _DATABASE
    if not made.exists():
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(
                [*_command("init", python, folder), "--quiet"],
                env=_environment(folder),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_START_SECONDS,
                check=True,
            )
            draft = made.with_suffix(".draft")
            shutil.copy(Path(folder) / _DATABASE, draft)
            draft.replace(made)
    return made


def _command(action: str, python: Path, folder: str) -> list[str]:
    return [
        *(str(python.with_name("label-studio")), action, "--no-browser"),
        *("--data-dir", folder, "--database", f"{folder}/{_DATABASE}"),
    ]


def _environment(folder: str) -> dict[str, str]:
    return os.environ | _VARIABLES | {"HOME": folder, "XDG_DATA_HOME": folder}


def _wait(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    """Wait until it answers; it says nothing on its own that could be waited for."""
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    pytest.fail(f"Label Studio did not start:\n{log.read_text(errors='replace')[-4000:]}")
