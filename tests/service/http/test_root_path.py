"""The service below a path prefix, asked directly and through nginx.

nginx passes the prefix on, or removes it, or removes it and names it in X-Forwarded-Prefix.
"""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.pictures import Pixels, encode
from tests.service.nginx import nginx
from tests.service.process import ServiceProcess, service_process
from tests.service.serving import PNG, TIMEOUT_SECONDS, check_error, metric

ROOT_PATH, OTHER_PREFIX = "/on/dropserve", "/other"
LABELS = {"route": "/v1/models", "method": "GET", "status": "200"}
LOCATIONS = {
    "kept": "location /on/dropserve/ { proxy_pass URL; }",
    "removed": "location /on/dropserve/ { proxy_pass URL/; }",
    "removed and named": "location /other/ { proxy_pass URL/; "
    "proxy_set_header X-Forwarded-Prefix /other; }",
}


@pytest.fixture(scope="module")
def service(models_folder: Path) -> Iterator[ServiceProcess]:
    options = ["--root-path", ROOT_PATH, "--trusted-proxies", "127.0.0.1"]
    with service_process(models_folder, *options) as process:
        yield process


@pytest.fixture(scope="module", params=["direct", "direct, without it", *LOCATIONS])
def base(
    request: pytest.FixtureRequest,
    service: ServiceProcess,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """Return the address below which a client finds the service."""
    if request.param not in LOCATIONS:
        yield service.url + (ROOT_PATH if request.param == "direct" else "")
        return
    locations = LOCATIONS[request.param].replace("URL", service.url)
    with nginx(tmp_path_factory.mktemp("nginx"), locations) as address:
        yield address + (OTHER_PREFIX if request.param == "removed and named" else ROOT_PATH)


def test_every_kind_of_request_is_answered_below_the_prefix(
    base: str, service: ServiceProcess, digit: Pixels
) -> None:
    """The first takes the fast path, the others do not."""
    with httpx.Client(timeout=TIMEOUT_SECONDS) as client:
        for _ in range(2):  # the second is like the first, which is remembered
            predicted = client.post(f"{base}/predict", content=encode(digit), headers=PNG)
            assert predicted.status_code == 200
        form = client.post(f"{base}/predict?model=digits", files={"file": encode(digit)})
        assert form.json() == predicted.json()
        assert client.get(f"{base}/models/digits").json()["manifest"]["name"] == "digits"
        assert client.get(f"{base}/v2/models/digits%2Dmc/ready").status_code == 200
        assert client.get(f"{base}/health/ready").json() == {"ready": True}
        missing = client.get(f"{base}/nothing")
    check_error(missing, 404, "not_found", "There is nothing at /nothing; …")


def test_pages_and_all_that_they_load_are_below_the_prefix(base: str) -> None:
    with httpx.Client(timeout=TIMEOUT_SECONDS) as client:
        for page in ("docs", "redoc"):
            text = client.get(f"{base}/{page}").text
            addresses = [part.partition('"')[0] for part in text.split('="docs/')[1:]]
            assert len(addresses) >= 3
            for address in addresses:
                assert client.head(f"{base}/docs/{address}").status_code == 200


def test_description_names_the_prefix_that_its_reader_uses(base: str) -> None:
    (server,) = httpx.get(f"{base}/openapi.json").json()["servers"]
    expected = httpx.URL(base).path.rstrip("/") or ROOT_PATH  # which is the public one
    assert server == {"url": expected}


def test_prefix_without_a_slash_leads_to_the_page_below_it(
    base: str, service: ServiceProcess
) -> None:
    if base == service.url:
        pytest.skip("there is no prefix in this address")
    found = httpx.get(base, follow_redirects=True)
    assert str(found.url) == f"{base}/"
    assert found.status_code == 200


def test_log_and_metrics_name_the_route_without_the_prefix(service: ServiceProcess) -> None:
    with service.client() as client:
        before = metric(client.get("/metrics").text, "dropserve_requests_total", **LABELS)
        client.get(f"{ROOT_PATH}/v1/models")
        client.get("/v1/models")
        after = metric(client.get("/metrics").text, "dropserve_requests_total", **LABELS)
    assert after == before + 2
    service.wait_for("request")
    assert not [
        line for line in service.logged("request") if line["path"].startswith(ROOT_PATH + "/")
    ]


@pytest.mark.parametrize("path", ["/", "/ui/models", "/docs", "/redoc", "/ui/static/style.css"])
def test_page_has_each_security_header_once(service: ServiceProcess, path: str) -> None:
    check_security_headers(httpx.get(service.url + path))


def test_answer_and_error_have_each_security_header_once(
    service: ServiceProcess, digit: Pixels
) -> None:
    """The first takes the fast path, the others do not."""
    for answered in (
        httpx.post(f"{service.url}/predict", content=encode(digit), headers=PNG),
        httpx.post(f"{service.url}/predict?model=digits", content=encode(digit), headers=PNG),
        httpx.get(f"{service.url}/openapi.json"),
        httpx.get(f"{service.url}/nothing"),
        httpx.get(f"{service.url}/models/digits/examples"),
        httpx.get(f"{service.url}/metrics"),
    ):
        check_security_headers(answered)
        assert answered.headers["Content-Security-Policy"].startswith("default-src 'none'; frame")


def check_security_headers(response: httpx.Response) -> None:
    expected = {
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "X-Frame-Options": "DENY",
    }
    for name, value in expected.items():
        assert response.headers.get_list(name) == [value], (response.url, name)
    (policy,) = response.headers.get_list("Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
