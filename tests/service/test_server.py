"""Real processes: how the service starts, stops, and fails to start."""

import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from service.api import schemas
from service.server import ShutdownSignal, serve_here
from service.settings import ServiceSettings
from tests.pictures import Pixels, encode
from tests.service.process import ServiceProcess, SlowRequest, run_service, service_process
from tests.service.serving import check_sentence


def to_parent(service: ServiceProcess, number: signal.Signals) -> None:
    service.send(number)


def to_all(service: ServiceProcess, number: signal.Signals) -> None:
    service.send_to_all(number)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("number", "send"),
    [(signal.SIGTERM, to_parent), (signal.SIGINT, to_all)],
    ids=["SIGTERM", "Ctrl-C"],
)
def test_a_signal_lets_the_request_in_flight_finish_and_takes_no_other(
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


def test_a_request_that_outlasts_the_grace_is_told_and_the_process_still_ends_well(
    models_folder: Path, digit: Pixels
) -> None:
    with service_process(models_folder, "--grace-seconds", "1") as service:
        with SlowRequest(service, encode(digit)) as request:
            service.send(signal.SIGTERM)
            status, body = request.answer()
        assert service.exit_status() == 0
    error = schemas.Error.model_validate_json(body)
    assert (status, error.code) == (503, "not_ready")
    assert error.error == "The server is stopping; send the request to another."


def test_an_idle_connection_does_not_delay_the_end(models_folder: Path) -> None:
    with service_process(models_folder) as service, httpx.Client(base_url=service.url) as client:
        assert client.get("/health/live").status_code == 200
        service.send(signal.SIGTERM)
        assert service.exit_status() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_starting_ends_it_well(models_folder: Path, number: signal.Signals) -> None:
    service = ServiceProcess(models_folder)
    try:
        service.wait_until_listening()
        service.send(number)
        assert service.exit_status() == 0
    finally:
        service.end()


def test_a_signal_whose_exception_was_lost_ends_it_too(models_folder: Path) -> None:
    ending = ShutdownSignal()
    with pytest.raises(SystemExit, match="0"):
        ending(signal.SIGTERM, None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serve_here(ServiceSettings(models_folder=models_folder), [listener], ending)


@pytest.fixture(scope="module")
def running(models_folder: Path) -> Iterator[ServiceProcess]:
    with service_process(models_folder, "--max-body-bytes", "100000") as service:
        yield service


def test_listening_is_logged_with_the_port_that_was_free(running: ServiceProcess) -> None:
    listening = running.wait_for("listening")
    assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d+", listening["url"])
    assert (listening["level"], listening["workers"]) == ("info", 1)
    response = httpx.get(f"{running.url}/health/ready")
    assert (response.status_code, response.json()) == (200, {"ready": True})
    assert "server" not in response.headers


def test_a_body_over_the_limit_is_refused_with_or_without_its_length(
    running: ServiceProcess,
) -> None:
    """Over a real connection the answer comes while the body is still being sent."""
    headers = {"Content-Type": "image/png"}
    with running.client() as client:
        pieces = (bytes(100_000) for _ in range(30))
        chunked = client.post("/predict", content=pieces, headers=headers)
        declared = client.post("/predict", content=bytes(3_000_000), headers=headers)
    for response in (chunked, declared):
        error = schemas.Error.model_validate_json(response.content)
        assert (response.status_code, error.code) == (413, "body_too_large")
    assert "transfer-encoding" in chunked.request.headers


def test_an_ipv6_address_is_served_and_shown_as_a_url(models_folder: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with service_process(models_folder, "--host", "::1") as service:
        assert service.url.startswith("http://[::1]:")
        assert httpx.get(f"{service.url}/health/live").status_code == 200


def test_without_a_bundle_it_stays_alive_and_says_why(tmp_path: Path) -> None:
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


def test_a_taken_port_is_one_sentence_and_status_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_service("--port", str(port))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"Cannot listen on 127.0.0.1 port {port} (Address already in use); "
        "choose another with --host and --port.\n"
    )


def test_a_host_that_is_not_this_machine_is_one_sentence_and_status_1() -> None:
    done = run_service("--host", "192.0.2.1", "--port", "0")
    assert (done.returncode, done.stdout) == (1, "")
    check_sentence(done.stderr, "Cannot listen on 192.0.2.1 port 0 (…); choose another with …\n")


@pytest.mark.parametrize(
    ("options", "environment", "sentence"),
    [
        (["--prot", "1"], {}, "unrecognized arguments: --prot 1; --help lists the options.\n"),
        ([], {"DROPSERVE_PORT": "70000"}, "--port: input should be less than or equal to 65535, …"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(
    options: list[str], environment: dict[str, str], sentence: str
) -> None:
    done = run_service(*options, **environment)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    check_sentence(done.stderr, sentence)


def test_help_is_written_to_standard_output() -> None:
    done = run_service("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: python -m service" in done.stdout
    assert "DROPSERVE_MAX_BODY_BYTES" in done.stdout
