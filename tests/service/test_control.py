"""`python -m service.control` against a real service: each command, and each mistake."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from service.control import main
from tests.bundles import copy_bundle
from tests.conftest import ROOT
from tests.service.process import ServiceProcess, service_process


@pytest.fixture(scope="module")
def service(
    bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    models = tmp_path_factory.mktemp("models")
    for version in (1, 2):
        copy_bundle(bundle_folder, models, version=version)
    with service_process(models) as process:
        yield process


def control(service: ServiceProcess, capsys: pytest.CaptureFixture[str], *given: str) -> str:
    assert main([*given, "--port", str(service.port)]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    return told.out


def test_a_version_is_tried_promoted_and_taken_back(
    service: ServiceProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*given: str) -> str:
        return control(service, capsys, *given)

    assert said("pin", "digits", "--version", "1") == "digits: stable version 1 (held)\n"
    canary = "digits: stable version 1 (held), canary version 2 with 10% of the requests\n"
    assert said("canary", "digits", "--version", "2") == canary
    canary = canary.replace("10%", "25%")
    assert said("canary", "digits", "--version", "2", "--share", "0.25") == canary
    assert said("promote", "digits") == "digits: stable version 2 (held)\n"
    assert said("rollback", "digits") == "digits: stable version 1 (held)\n"
    assert said("follow", "digits") == "digits: stable version 2 (the newest)\n"
    assert said("default", "digits") == "digits: answers requests that name no model\n"
    assert said("unload", "digits") == "digits: unloaded\n"
    assert said("load", "digits") == "digits: loaded\n"


@pytest.mark.parametrize(
    ("given", "status", "sentence"),
    [
        (["promote", "digits"], 1, "There is no canary to promote; start one first."),
        (["promote", "cats"], 1, "There is no model 'cats' to be loaded; there is digits."),
        (["pin", "digits", "--version", "9"], 1, "There is no version 9 of digits in "),
        (["load", "a/../b"], 1, "There is nothing at "),
    ],
)
def test_what_the_service_refuses_is_said_and_ends_in_1(
    service: ServiceProcess,
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    status: int,
    sentence: str,
) -> None:
    assert main([*given, "--port", str(service.port)]) == status
    assert capsys.readouterr().err.startswith(sentence)


class Elsewhere(BaseHTTPRequestHandler):
    """Another server than Dropserve."""

    def do_POST(self) -> None:
        kind = self.path.split("/")[2]
        self.send_response(302 if kind == "moved" else 200)
        self.send_header("Location", "http://127.0.0.1:1/")
        if kind == "alike":
            self.send_header("X-Request-ID", "1")
        if kind == "cut":
            self.send_header("Content-Length", "9")
        self.end_headers()
        self.wfile.write(b"" if kind == "empty" else b"{}")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize("action", ["follow", "load"])
@pytest.mark.parametrize("kind", ["moved", "empty", "alike", "cut", "json"])
def test_another_server_is_told_from_dropserve(
    capsys: pytest.CaptureFixture[str], kind: str, action: str
) -> None:
    with HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/{kind}"
        url = url if action == "follow" else url.replace(f"/{kind}", f"/v/{kind}")
        assert main([action, "digits", "--url", url]) != 0
        thread.join()
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "url", ["http://localhost:abc", "http://a b/", "http://[::1", "http://x/\u00e9"]
)
def test_an_address_that_is_none_is_one_sentence(
    capsys: pytest.CaptureFixture[str], url: str
) -> None:
    assert main(["follow", "digits", "--url", url]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "the following arguments are required: ACTION, MODEL"),
        (["start", "digits"], "--action: input should be 'canary', 'promote'"),
        (["pin", "digits"], "--version: for canary and pin, and needed there."),
        (["promote", "digits", "--version", "1"], "--version: for canary and pin, and needed"),
        (["pin", "digits", "--version", "1", "--share", "0.5"], "--share: for canary alone; leave"),
        (["promote", "digits", "--url", "file:///etc"], "--url: 'file:///etc' is no http:// addr"),
        (
            ["promote", "digits", "--url", "http://127.0.0.1:1"],
            "1 does not answer (",
        ),
        (["promote", "digits", "--port", "1"], "control-1.sock does not answer (No such file"),
        (["promote", "digits", "--socket", "a", "--url", "http://b"], "--socket: --url is given"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(given: list[str], sentence: str) -> None:
    command = [sys.executable, "-m", "service.control", *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
