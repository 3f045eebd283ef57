"""`python -m service.control` against a real service: each action, and each kind of error."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from service.control.rollout_client import ControlSettings, main
from service.keys.key_file_changes import add_key
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


def control(service: ServiceProcess, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*arguments, "--port", str(service.port)]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    return output.out


def test_control_runs_every_action(
    service: ServiceProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    def output(*arguments: str) -> str:
        return control(service, capsys, *arguments)

    assert output("pin", "digits", "--version", "1") == "digits: stable version 1 (held)\n"
    canary = "digits: stable version 1 (held), canary version 2 with 10% of the requests\n"
    assert output("canary", "digits", "--version", "2") == canary
    canary = canary.replace("10%", "25%")
    assert output("canary", "digits", "--version", "2", "--share", "0.25") == canary
    assert output("promote", "digits") == "digits: stable version 2 (held)\n"
    assert output("rollback", "digits") == "digits: stable version 1 (held)\n"
    shadow = "digits: stable version 1 (held), shadow version 2 compared with 100% of its answers\n"
    assert output("shadow", "digits", "--version", "2") == shadow
    shadow = shadow.replace("100%", "5%")
    assert output("shadow", "digits", "--version", "2", "--share", "0.05") == shadow
    assert output("unshadow", "digits") == "digits: stable version 1 (held)\n"
    assert output("follow", "digits") == "digits: stable version 2 (the newest)\n"
    assert output("default", "digits") == "digits: answers requests that name no model\n"
    assert output("reset-drift", "digits") == "digits: tested for drift anew, version 2\n"
    assert output("unload", "digits") == "digits: unloaded\n"
    assert output("load", "digits") == "digits: loaded\n"


def test_interrupted_command_says_that_the_change_may_be_made_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_settings: ControlSettings) -> HTTPConnection:
        raise KeyboardInterrupt

    monkeypatch.setattr(ControlSettings, "connect", interrupted)
    assert main(["promote", "digits"]) == 130
    sentence = "Interrupted; the service may make the change all the same: see GET /models.\n"
    assert tuple(capsys.readouterr()) == ("", sentence)


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["promote", "digits"], 1, "There is no canary to promote; start one first."),
        (["unload", "digits-mc"], 1, "digits-mc is digits with dropout active, and serves as it "),
        (["promote", "cats"], 1, "There is no model 'cats' to be loaded; there is digits."),
        (["pin", "digits", "--version", "9"], 1, "There is no version 9 of digits in "),
        (["load", "a/../b"], 1, "There is nothing at "),
    ],
)
def test_control_prints_a_refusal_and_exits_with_1(
    service: ServiceProcess,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    sentence: str,
) -> None:
    assert main([*arguments, "--port", str(service.port)]) == status
    assert capsys.readouterr().err.startswith(sentence)


class OtherServer(BaseHTTPRequestHandler):
    """A server that is not Dropserve."""

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
        """Log nothing."""


@pytest.mark.parametrize("action", ["follow", "load"])
@pytest.mark.parametrize("kind", ["moved", "empty", "alike", "cut", "json"])
def test_control_detects_a_server_other_than_dropserve(
    capsys: pytest.CaptureFixture[str], kind: str, action: str
) -> None:
    with HTTPServer(("127.0.0.1", 0), OtherServer) as server:
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
def test_control_reports_an_invalid_url_in_one_sentence(
    capsys: pytest.CaptureFixture[str], url: str
) -> None:
    assert main(["follow", "digits", "--url", url]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: ACTION, MODEL"),
        (["start", "digits"], "ACTION: input should be 'canary', 'promote'"),
        (["pin", "digits"], "--version: for canary, shadow and pin, and needed there."),
        (["promote", "digits", "--version", "1"], "--version: for canary, shadow and"),
        (
            ["pin", "digits", "--version", "1", "--share", "0.5"],
            "--share: for canary and shadow alone",
        ),
        (["promote", "digits", "--url", "file:///etc"], "--url: 'file:///etc' is no http:// or h"),
        (
            ["promote", "digits", "--url", "https://a", "--tls-ca", "/dev/null"],
            "--tls-ca: /dev/null holds no CA certificates in PEM that can be read.",
        ),
        (["promote", "digits", "--tls-ca", "a"], "--tls-ca: for --url https://… alone; leave it"),
        (["promote", "digits", "--socket", "a", "--url", "http://b"], "--socket: --url is given"),
        (["promote", "digits", "--api-key-file", "a"], "--api-key-file: for --url alone, since a"),
    ],
)
def test_control_reports_wrong_usage_in_one_sentence_and_exits_with_2(
    arguments: list[str], sentence: str
) -> None:
    command = [sys.executable, "-m", "service.control", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        (["--url", "http://127.0.0.1:1"], "http://127.0.0.1:1 does not answer ("),
        (["--port", "1"], "control-1.sock does not answer (No such file"),
    ],
)
def test_control_exits_with_1_if_the_service_does_not_answer(
    capsys: pytest.CaptureFixture[str], place: list[str], sentence: str
) -> None:
    assert main(["promote", "digits", *place]) == 1
    printed = capsys.readouterr().err
    assert sentence in printed
    assert printed.count("\n") == 1


def test_control_sends_the_key_of_a_file_to_a_service_that_wants_one(
    bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_bundle(bundle_folder, tmp_path / "models")
    key_file = tmp_path / "operator.key"
    keys = tmp_path / "keys.json"
    key_file.write_text(f"{add_key(keys, 'operator', frozenset({'control'}), None)}\n")
    weak = tmp_path / "reader.key"
    weak.write_text(add_key(keys, "reader", frozenset({"read"}), None))
    options = ("--control", "anyone", "--api-keys-file", str(keys))
    with service_process(tmp_path / "models", *options) as service:
        command = ["pin", "digits", "--version", "1", "--url", service.url]
        assert main(command) == 1
        assert "key" in capsys.readouterr().err
        assert main([*command, "--api-key-file", str(weak)]) == 1
        assert "control" in capsys.readouterr().err
        assert main([*command, "--api-key-file", str(key_file)]) == 0
        assert capsys.readouterr().out == "digits: stable version 1 (held)\n"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read (No such file or directory)."),
        (b"", "holds no key; write the key"),
        (b"two words", "holds no key; write the key"),
        (b"ds-1\r\nX-Other: 1", "holds no key; write the key"),
        ("schl\u00fcssel".encode(), "holds no key; write the key"),
        (b"a" * 5000, "cannot be read ("),
    ],
)
def test_control_reports_a_file_without_a_key_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, sentence: str
) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    url = "http://127.0.0.1:1"
    assert main(["follow", "digits", "--url", url, "--api-key-file", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"--api-key-file: {file} ")
    assert sentence in error
    assert error.count("\n") == 1
