"""The configurations of deploy/nginx and deploy/haproxy, tried with the real programs."""

import http.client
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from service.settings import ServiceSettings
from tests.deployment.proxy_process import (
    HOST,
    TIMEOUT_SECONDS,
    ProxyName,
    RunningProxy,
    running_proxy,
)
from tests.deployment.recording_replica import recording_replica
from tests.pictures import encode
from tests.service.process import ServiceProcess, service_process
from tests.service.serving import PNG
from training.data.dataset import Split

pytestmark = pytest.mark.deployment

PROXIES: tuple[ProxyName, ...] = ("nginx", "haproxy")
MAX_BODY_BYTES: int = ServiceSettings.model_fields["max_body_bytes"].default
METRICS_PATHS = (
    *("/metrics", "/metrics/recent", "/metrics/", "/metrics?x=1", "/%6detrics", "/%6Detrics"),
    *("//metrics", "/./metrics", "/x/../metrics", "/metrics%2frecent", "/metrics;x", "/metrics%00"),
)
CONTROL_PATHS = (
    *("/models/digits/pin?version=1", "/models/digits/follow", "/models/digits/drift/reset"),
    *("/%6dodels/digits/follow", "/models%2fdigits/follow", "//models/digits/follow"),
    *("/v2/repository/models/digits/unload", "/v2/repository/%6dodels/digits/unload"),
    *("/v2/x/../repository/models/digits/unload", "/v2//repository/models/digits/unload"),
)
ORIGIN = "https://app.example.org"
SPOOFED = {
    "X-Forwarded-For": "10.0.0.1",
    "X-Forwarded-Proto": "ftp",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Port": "1",
    "X-Forwarded-Prefix": "/evil",
    "X-Real-IP": "10.0.0.1",
    "Forwarded": "for=10.0.0.1;proto=ftp",
}
CLIENTS, ROUNDS = 8, 24  # together fewer than an address may send at once


@pytest.fixture(scope="module")
def service(models_folder: Path) -> Iterator[ServiceProcess]:
    """A service whose public port changes models, so that what the proxy refuses is seen."""
    options = ("--control", "anyone", "--cors-origins", ORIGIN)
    with service_process(models_folder, *options) as process:
        yield process


@pytest.fixture(scope="module", params=PROXIES)
def proxy(
    request: pytest.FixtureRequest,
    service: ServiceProcess,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningProxy]:
    folder = tmp_path_factory.mktemp(request.param)
    with running_proxy(request.param, folder, [service.port]) as running:
        yield running


@pytest.fixture(scope="module")
def image(held_out: Split) -> bytes:
    return encode(held_out.images[0, 0])


def status_of(proxy: RunningProxy, method: str, path: str) -> int:
    """Send a path exactly as it is written, over HTTP/1.1, and return the status."""
    connection = http.client.HTTPSConnection(
        "127.0.0.1", proxy.https_port, context=proxy.tls(), timeout=TIMEOUT_SECONDS
    )
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    assert b"dropserve_" not in body
    return response.status


def test_prediction_has_the_bytes_that_the_service_gives(
    proxy: RunningProxy, service: ServiceProcess, image: bytes
) -> None:
    with proxy.client() as client:
        answer = client.post("/uncertainty", content=image, headers=PNG)
    assert answer.content == service.post("/uncertainty", image, "image/png").content
    assert answer.headers["X-Request-ID"]
    assert answer.headers["Strict-Transport-Security"].startswith("max-age=")


@pytest.mark.parametrize("name", PROXIES)
def test_proxy_reads_its_configuration_without_a_warning(name: ProxyName, tmp_path: Path) -> None:
    with recording_replica() as replica, running_proxy(name, tmp_path, [replica.port]):
        logs = [file.read_text() for file in tmp_path.glob("*log")]
    assert [log for log in logs if "warn" in log.lower()] == []


def test_plain_http_is_redirected(proxy: RunningProxy) -> None:
    url = f"http://127.0.0.1:{proxy.http_port}/models?x=1"
    answer = httpx.get(url, headers={"Host": HOST})
    assert (answer.status_code, answer.headers["Location"]) == (301, f"https://{HOST}/models?x=1")


@pytest.mark.parametrize(
    "path", ["/", "/ui/models", "/models", "/models/digits", "/v2/models/digits"]
)
def test_pages_and_models_are_reachable(proxy: RunningProxy, path: str) -> None:
    assert status_of(proxy, "GET", path) == 200


@pytest.mark.parametrize("path", ["/models", "/models/digits", "/models/digits/examples"])
def test_page_of_another_origin_may_ask_to_read_models(proxy: RunningProxy, path: str) -> None:
    asking = {"Origin": ORIGIN, "Access-Control-Request-Method": "GET"}
    asking["Access-Control-Request-Headers"] = "authorization"
    with proxy.client() as client:
        answer = client.options(path, headers=asking)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN


@pytest.mark.parametrize("path", METRICS_PATHS)
def test_metrics_are_not_reachable_however_they_are_spelled(
    proxy: RunningProxy, service: ServiceProcess, path: str
) -> None:
    assert status_of(proxy, "GET", path) in (400, 404)
    with service.client() as client:
        assert client.get("/metrics").status_code == 200


@pytest.mark.parametrize("path", CONTROL_PATHS)
def test_models_cannot_be_changed_however_it_is_spelled(
    proxy: RunningProxy, service: ServiceProcess, path: str
) -> None:
    assert status_of(proxy, "POST", path) in (403, 404)
    with service.client() as client:
        assert client.post("/models/digits/follow").status_code == 200, "the service would do it"


@pytest.mark.parametrize("name", PROXIES)
def test_what_a_client_claims_of_itself_is_replaced_or_removed(
    name: ProxyName, tmp_path: Path
) -> None:
    with (
        recording_replica() as replica,
        running_proxy(name, tmp_path, [replica.port]) as proxy,
        proxy.client() as client,
    ):
        client.post("/predict", content=b"x", headers={**SPOOFED, "Host": HOST})
        client.get("/models", headers=[*SPOOFED.items(), *SPOOFED.items()])
    for received in replica.received:
        host = received.values("host")
        assert received.values("x-forwarded-for") == ["127.0.0.1"]
        assert received.values("x-forwarded-proto") == ["https"]
        assert received.values("x-forwarded-host") == host
        assert received.values("x-forwarded-port") == [str(proxy.https_port)]
        for removed in ("x-forwarded-prefix", "x-real-ip", "forwarded"):
            assert received.values(removed) == []
    assert replica.received[0].values("host") == [HOST]


@pytest.mark.parametrize("name", PROXIES)
def test_largest_body_passes_and_a_larger_one_is_refused_in_the_services_form(
    name: ProxyName, tmp_path: Path
) -> None:
    with (
        recording_replica() as replica,
        running_proxy(name, tmp_path, [replica.port]) as proxy,
        proxy.client() as client,
    ):
        largest = client.post("/predict", content=bytes(MAX_BODY_BYTES))
        larger = client.post("/predict", content=bytes(MAX_BODY_BYTES + 1))
    assert largest.status_code == 200
    assert (larger.status_code, larger.json()["code"]) == (413, "body_too_large")
    assert [each.body_length for each in replica.received] == [MAX_BODY_BYTES]


@pytest.mark.parametrize("name", PROXIES)
def test_one_address_cannot_send_without_end(name: ProxyName, tmp_path: Path) -> None:
    with (
        recording_replica() as replica,
        running_proxy(name, tmp_path, [replica.port]) as proxy,
        proxy.client() as client,
    ):
        while (answer := client.get("/models")).status_code == 200:
            assert len(replica.received) < 3_000
    assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
    assert answer.headers["Retry-After"] == "1"


@pytest.mark.parametrize("name", PROXIES)
def test_broken_connection_is_tried_again_elsewhere_and_only_once(
    name: ProxyName, tmp_path: Path
) -> None:
    with (
        recording_replica("hangs up") as broken,
        recording_replica() as sound,
        running_proxy(name, tmp_path, [broken.port, sound.port]) as proxy,
        proxy.client() as client,
    ):
        statuses = [client.post("/predict", content=b"x").status_code for _ in range(6)]
        passed_over = len(broken.received)
        sound.behaviour = "hangs up"
        with suppress(httpx.RemoteProtocolError):  # HAProxy may hang up, too
            assert client.post("/predict", content=b"x").status_code in (502, 503)
    assert statuses == [200] * 6
    assert passed_over >= 1
    attempts = len(broken.received) - passed_over + len(sound.received) - 6
    assert 1 <= attempts <= 3


@pytest.mark.parametrize("name", PROXIES)
def test_overload_is_passed_on_and_not_repeated(name: ProxyName, tmp_path: Path) -> None:
    with (
        recording_replica("is overloaded") as one,
        recording_replica("is overloaded") as two,
        running_proxy(name, tmp_path, [one.port, two.port]) as proxy,
        proxy.client() as client,
    ):
        answers = [client.post("/predict", content=b"x") for _ in range(5)]
        answers += [client.get("/models") for _ in range(5)]
    assert [each.status_code for each in answers] == [503] * 10
    assert len(one.received) + len(two.received) == 10


@pytest.mark.parametrize("name", PROXIES)
def test_a_replica_ends_under_load_and_no_request_is_lost(
    name: ProxyName, models_folder: Path, image: bytes, tmp_path: Path
) -> None:
    statuses: list[int] = []
    half = threading.Event()
    with (
        service_process(models_folder) as first,
        service_process(models_folder) as second,
        running_proxy(name, tmp_path, [first.port, second.port]) as proxy,
    ):

        def send(_: int) -> None:
            with proxy.client() as client:
                for _ in range(ROUNDS):
                    answer = client.post("/predict", content=image, headers=PNG)
                    statuses.append(answer.status_code)
                    if len(statuses) >= CLIENTS * ROUNDS // 2:
                        half.set()

        with ThreadPoolExecutor(CLIENTS) as pool:
            work = pool.map(send, range(CLIENTS))
            assert half.wait(TIMEOUT_SECONDS)
            first.send(signal.SIGTERM)
            list(work)
        assert first.exit_status() == 0
    assert statuses == [200] * (CLIENTS * ROUNDS)
