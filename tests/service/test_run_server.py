"""Tests of startup, shutdown and failures to start, with real processes."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from benchmarks.reliability.clients import REFUSED, Client, ClientStats
from benchmarks.reliability.wire import request
from service.api import schemas
from service.app import create_app
from service.http.fast_path.fast_path_protocol import FastPathProtocol
from service.http.graceful_shutdown import GracefulServer
from service.http.http_protocol import HttpProtocol
from service.run_server import (
    ShutdownSignal,
    StartError,
    _make_rate_table,
    _uvicorn_config,
    _warn_if_open,
    serve_in_process,
)
from service.settings import ServiceSettings
from tests.certificates import Authority
from tests.conftest import ROOT
from tests.pictures import Pixels, encode
from tests.service.process import ServiceProcess, SlowRequest, run_service, service_process
from tests.service.serving import check_sentence

TLS_FILES = {"tls_certificate": Path("server.pem"), "tls_key": Path("server.key")}


@pytest.fixture(autouse=True)
def _services_inherit_no_ignored_sighup() -> Iterator[None]:
    """Let a service start as from a shell, also where the tests run under nohup.

    A handler, unlike an ignored signal, is not inherited.
    """
    before = signal.signal(signal.SIGHUP, lambda *_: None)
    yield
    signal.signal(signal.SIGHUP, before)


def send_to_parent(service: ServiceProcess, number: signal.Signals) -> None:
    service.send(number)


def send_to_all(service: ServiceProcess, number: signal.Signals) -> None:
    service.send_to_all(number)


@pytest.mark.parametrize(
    ("number", "send", "workers"),
    [
        (signal.SIGTERM, send_to_parent, 1),
        (signal.SIGTERM, send_to_parent, 2),
        (signal.SIGINT, send_to_all, 1),
        (signal.SIGINT, send_to_all, 2),
        (signal.SIGHUP, send_to_all, 1),
    ],
)
def test_signal_drains_the_request_in_flight_and_refuses_connections(
    models_folder: Path,
    digit: Pixels,
    workers: int,
    number: signal.Signals,
    send: Callable[[ServiceProcess, signal.Signals], None],
) -> None:
    with service_process(models_folder, workers=workers) as service:
        expected = service.post("/predict", encode(digit), "image/png")
        with SlowRequest(service, encode(digit)) as request:
            send(service, number)
            service.wait_until_refusing()
            assert request.finish() == (200, expected.content)
        assert service.exit_status() == 0
        statuses = [line["status"] for line in service.logged("request")]
    assert (expected.status_code, statuses) == (200, [200, 200])


def test_sighup_of_a_terminal_replaces_the_workers_and_loses_no_request(
    models_folder: Path, digit: Pixels
) -> None:
    with service_process(models_folder, workers=2) as service:
        before = service.workers()
        for pid in (*before, service.pid):
            os.kill(pid, signal.SIGHUP)
        while any(Path(f"/proc/{pid}").exists() for pid in before):
            assert service.post("/predict", encode(digit), "image/png").status_code == 200
        service.wait_for("ready", count=4)
        assert not service.logged("worker died")
        service.send(signal.SIGTERM)
        assert service.exit_status() == 0


def test_sighup_of_a_terminal_does_not_end_a_worker_in_the_middle_of_a_request(
    models_folder: Path, digit: Pixels
) -> None:
    with service_process(models_folder, workers=2) as service:
        with SlowRequest(service, encode(digit)) as request:
            for pid in service.workers():
                os.kill(pid, signal.SIGHUP)
            service.send(signal.SIGTERM)
            service.wait_until_refusing()
            assert request.finish()[0] == 200
        assert service.exit_status() == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_sighup_that_was_ignored_before_as_by_nohup_stays_so(
    models_folder: Path, workers: int
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with service_process(models_folder, workers=workers) as service:
            status = Path(f"/proc/{service.pid}/status").read_text()
    finally:
        signal.signal(signal.SIGHUP, before)
    found = re.search(r"SigIgn:\s*([0-9a-f]+)", status)
    assert found is not None
    assert int(found[1], 16) & 1 << signal.SIGHUP - 1


def test_workers_drain_together_until_a_second_sigterm(models_folder: Path, digit: Pixels) -> None:
    def predict(by: httpx.Client) -> httpx.Response:
        return by.post("/predict", content=encode(digit), headers={"Content-Type": "image/png"})

    with (
        service_process(models_folder, "--drain-delay", "3600", workers=2) as service,
        httpx.Client(base_url=service.url) as kept,
        service.client() as client,
        service.control() as control,
    ):
        expected = predict(kept)
        assert "Connection" not in expected.headers
        service.send(signal.SIGTERM)
        assert service.wait_for("draining")["seconds"] == 3600
        wait_until_draining(client)
        answered = predict(kept), predict(client)
        assert [each.content for each in answered] == [expected.content] * 2
        assert [each.headers["Connection"] for each in answered] == ["close"] * 2
        assert client.get("/health/live").status_code == 200
        assert control.get("/health/ready").json()["code"] == "not_ready"
        service.send(signal.SIGTERM)
        assert service.exit_status() == 0


def wait_until_draining(client: httpx.Client) -> None:
    """Wait until many health checks in a row fail: both workers have got the signal."""
    failed = 0
    while failed < 16:
        failed = failed + 1 if client.get("/health/ready").status_code == 503 else 0


def test_no_request_is_lost_from_sigterm_to_the_end(models_folder: Path, digit: Pixels) -> None:
    stats = ClientStats()

    async def end_under_load() -> None:
        clients = [Client(address, [message], stats) for message in messages for _ in range(4)]
        stop = asyncio.Event()
        tasks = [asyncio.create_task(each.run(stop)) for each in clients]
        while stats.good < 100:
            await asyncio.sleep(0)
        service.send(signal.SIGTERM)
        status = await asyncio.to_thread(service.exit_status)
        stop.set()
        await asyncio.gather(*tasks)
        assert status == 0

    body = encode(digit)
    messages = [
        request("POST", "/predict", body, "Content-Type: image/png"),
        request("POST", "/predict", body, "Content-Type: image/png", "Connection: close"),
    ]
    with service_process(models_folder, "--drain-delay", ".3") as service:
        address = "127.0.0.1", service.port
        asyncio.run(end_under_load())
        assert len(service.logged("draining")) == 1
    outcomes = {name for name in stats.counts if name not in {"sent", REFUSED}}
    assert (outcomes, stats.counts["sent"]) == ({"200"}, stats.good)


def test_request_that_outlasts_the_grace_is_answered_503_and_exit_status_is_0(
    models_folder: Path, digit: Pixels
) -> None:
    with service_process(models_folder, "--grace-seconds", "1") as service:
        with SlowRequest(service, encode(digit)) as request:
            service.send(signal.SIGTERM)
            status, body = request.read_response()
        assert service.exit_status() == 0
    error = schemas.Error.model_validate_json(body)
    assert (status, error.code) == (503, "not_ready")
    assert error.error == "The server is stopping; send the request to another."


def test_idle_connection_does_not_delay_the_shutdown(models_folder: Path) -> None:
    with service_process(models_folder) as service, httpx.Client(base_url=service.url) as client:
        assert client.get("/health/live").status_code == 200
        service.send(signal.SIGTERM)
        assert service.exit_status() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_during_startup_exits_with_status_0(
    models_folder: Path, number: signal.Signals
) -> None:
    service = ServiceProcess(models_folder)
    try:
        service.wait_until_listening()
        service.send(number)
        assert service.exit_status() == 0
    finally:
        service.end()


def test_serve_in_process_ends_at_once_after_a_signal_during_startup(models_folder: Path) -> None:
    settings = ServiceSettings(models_folder=models_folder)
    shutdown_signal = ShutdownSignal(settings.grace_seconds)
    shutdown_signal.is_received = True
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serve_in_process(settings, [listener], shutdown_signal)


def test_signal_during_startup_interrupts_nothing() -> None:
    """Neither a callback nor an extension module gets an exception to lose or to wrap."""
    code = """
import os, signal
from service.run_server import ShutdownSignal

handler = ShutdownSignal(grace_seconds=60)
signal.signal(signal.SIGTERM, handler)
os.kill(os.getpid(), signal.SIGTERM)
print(handler.is_received)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


@pytest.mark.parametrize("fast_path", [True, False])
def test_no_fast_path_serves_with_the_plain_protocol(models_folder: Path, fast_path: bool) -> None:
    settings = ServiceSettings(models_folder=models_folder, fast_path=fast_path)

    async def protocol_class() -> type:
        config = _uvicorn_config(settings, create_app(settings))
        config.load()
        server = GracefulServer(config)
        server.lifespan = config.lifespan_class(config)
        await server.lifespan.startup()
        try:
            return type(server._create_protocol(is_control=False))
        finally:
            await server.lifespan.shutdown()

    expected = FastPathProtocol if fast_path else HttpProtocol
    assert asyncio.run(protocol_class()) is expected


@pytest.fixture(scope="module")
def running(models_folder: Path) -> Iterator[ServiceProcess]:
    with service_process(models_folder, "--max-body-bytes", "100000") as service:
        yield service


def test_listening_line_has_the_free_port_that_was_chosen(running: ServiceProcess) -> None:
    listening = running.wait_for("listening")
    assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d+", listening["url"])
    assert (listening["level"], listening["workers"]) == ("info", 1)
    response = httpx.get(f"{running.url}/health/ready")
    assert (response.status_code, response.json()) == (200, {"ready": True})
    assert "server" not in response.headers


def test_body_over_the_limit_is_refused_with_or_without_content_length(
    running: ServiceProcess,
) -> None:
    """Over a real connection the response arrives while the body is still being sent."""
    headers = {"Content-Type": "image/png"}
    with running.client() as client:
        pieces = (bytes(100_000) for _ in range(30))
        chunked = client.post("/predict", content=pieces, headers=headers)
        declared = client.post("/predict", content=bytes(3_000_000), headers=headers)
    for response in (chunked, declared):
        error = schemas.Error.model_validate_json(response.content)
        assert (response.status_code, error.code) == (413, "body_too_large")
    assert "transfer-encoding" in chunked.request.headers


def test_ipv6_address_is_served_and_logged_as_a_url(models_folder: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with service_process(models_folder, "--host", "::1") as service:
        assert service.url.startswith("http://[::1]:")
        assert httpx.get(f"{service.url}/health/live").status_code == 200


def test_service_without_a_bundle_is_live_and_logs_why_it_is_not_ready(tmp_path: Path) -> None:
    service = ServiceProcess(tmp_path)
    try:
        service.wait_until_listening()
        reason = service.wait_for("not ready")["reason"]
        ready, live = (httpx.get(f"{service.url}/health/{which}") for which in ("ready", "live"))
        service.send(signal.SIGTERM)
        assert service.exit_status() == 0
    finally:
        service.end()
    check_sentence(reason, "The models folder holds no bundle; train one with python -m training.")
    assert (ready.status_code, ready.json()) == (503, {"error": reason, "code": "not_ready"})
    assert live.status_code == 200


def test_taken_port_exits_with_one_sentence_and_status_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_service("--port", str(port))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"Cannot listen on 127.0.0.1 port {port} (Address already in use); "
        "choose another with --host and --port.\n"
    )


def test_foreign_host_exits_with_one_sentence_and_status_1() -> None:
    done = run_service("--host", "192.0.2.1", "--port", "0")
    assert (done.returncode, done.stdout) == (1, "")
    check_sentence(done.stderr, "Cannot listen on 192.0.2.1 port 0 (…); choose another with …\n")


def test_table_of_rates_that_finds_no_room_is_a_refused_start_of_status_1(tmp_path: Path) -> None:
    with pytest.raises(StartError) as refused:
        _make_rate_table(tmp_path / "removed")
    assert refused.value.exit_status == 1
    sentence = "The rates of clients cannot be shared between workers (No such …); free space …"
    check_sentence(str(refused.value), sentence)


def test_taken_control_port_exits_with_one_sentence_and_status_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        control_port = str(taken.getsockname()[1])
        done = run_service("--port", "0", "--control-port", control_port)
    assert (done.returncode, done.stdout) == (1, "")
    sentence = "Cannot listen for control (Address already in use); choose another place with …\n"
    check_sentence(done.stderr, sentence)


@pytest.mark.parametrize(
    ("options", "environment", "sentence"),
    [
        (["--prot", "1"], {}, "unrecognized arguments: --prot 1; --help lists the options.\n"),
        (["--provider", "cuda"], {}, "--provider cuda: the ONNX Runtime …pip uninstall …"),
        ([], {"DROPSERVE_PORT": "70000"}, "--port: input should be less than or equal to 65535, …"),
    ],
)
def test_invalid_option_exits_with_one_sentence_and_status_2(
    options: list[str], environment: dict[str, str], sentence: str
) -> None:
    done = run_service(*options, **environment)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    check_sentence(done.stderr, sentence)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "--api-keys-file: …keys.json cannot be read (No such file or directory); make it …"),
        (["--no-auth"], "--api-keys-file: --no-auth is given too; give one of them.\n"),
    ],
)
def test_keys_that_cannot_be_used_exit_with_one_sentence_and_status_2(
    options: list[str], sentence: str, tmp_path: Path
) -> None:
    done = run_service("--port", "0", "--api-keys-file", str(tmp_path / "keys.json"), *options)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    check_sentence(done.stderr, sentence)


@pytest.mark.parametrize(
    ("days", "options", "sentence"),
    [
        (-1, [], "--tls-certificate: …server.pem has expired; renew the certificate.\n"),
        (1, ["--tls-client-ca", "no.pem"], "--tls-client-ca: no.pem cannot be read (…); name …\n"),
    ],
)
def test_certificate_that_cannot_be_used_exits_with_one_sentence_and_status_2(
    days: int, options: list[str], sentence: str, tmp_path: Path
) -> None:
    pair = Authority().issue(tmp_path, days=days)
    done = run_service("--port", "0", *pair.options, *options)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    check_sentence(done.stderr, sentence)


@pytest.mark.parametrize(
    ("host", "options", "is_warned"),
    [
        ("127.0.0.1", {}, False),
        ("0.0.0.0", {}, True),
        ("0.0.0.0", {"auth": False}, False),
        ("0.0.0.0", {"api_keys_file": Path("keys.json")}, False),
        ("0.0.0.0", TLS_FILES, True),
        ("0.0.0.0", TLS_FILES | {"tls_client_ca": Path("ca.pem")}, False),
    ],
)
def test_port_that_other_machines_reach_without_keys_is_warned_of(
    host: str, options: dict[str, Any], is_warned: bool
) -> None:
    with socket.create_server((host, 0)) as listener, capture_logs() as log:
        _warn_if_open(ServiceSettings(**options), listener)
    assert [(line["event"], line["log_level"]) for line in log] == [
        ("no keys", "warning")
    ] * is_warned
    assert all("--api-keys-file, or --no-auth" in line["hint"] for line in log)


def test_worker_without_a_usable_certificate_accepts_nothing_until_there_is_one(
    models_folder: Path, tmp_path: Path
) -> None:
    pair = Authority().issue(tmp_path, days=-1)
    settings = ServiceSettings(
        models_folder=models_folder, tls_certificate=pair.certificate, tls_key=pair.key
    )

    async def start() -> list[bool]:
        config = _uvicorn_config(settings, create_app(settings))
        config.load()
        server = GracefulServer(config)
        server.lifespan = config.lifespan_class(config)
        starting = asyncio.create_task(server.startup([]))
        found = []
        while not server.lifespan.state:
            await asyncio.sleep(0)
        found.append(server.started)
        Authority().issue(tmp_path)
        await starting
        found.append(server.started)
        await server.lifespan.shutdown()
        return found

    assert asyncio.run(start()) == [False, True]


def test_help_is_written_to_standard_output() -> None:
    done = run_service("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: python -m service" in done.stdout
    assert "DROPSERVE_MAX_BODY_BYTES" in done.stdout
