"""Published clients by https, with and without their own certificate: `python FILE URL CA PEM`.

PEM: the client's certificate and key, in one file.
"""

import ssl
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import httpx
import requests
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

from tests.clients.checks import LABELS, NUMBERS, png_files, refused, run_checks

TIMEOUT_SECONDS = 60
ROUTE = "/predict"
PNG = {"Content-Type": "image/png"}


def context(*, with_certificate: bool = True) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=sys.argv[2])
    if with_certificate:
        made.load_cert_chain(sys.argv[3])
    return made


def images() -> triton.InferInput:
    made = triton.InferInput("images", list(NUMBERS.shape), "FP32")
    made.set_data_from_numpy(NUMBERS)
    return made


def labels(found: object) -> list[str]:
    return [each.decode() if isinstance(each, bytes) else str(each) for each in found]  # type: ignore[attr-defined]


def check_tritonclient(url: str) -> None:
    address = url.removeprefix("https://")
    with triton.InferenceServerClient(address, ssl=True, ssl_context_factory=context) as client:
        assert client.is_model_ready("digits")
        assert labels(client.infer("digits", [images()]).as_numpy("label")) == LABELS


def check_tritonclient_without_certificate(url: str) -> None:
    def without() -> ssl.SSLContext:
        return context(with_certificate=False)

    address = url.removeprefix("https://")
    with (
        refused(OSError),
        triton.InferenceServerClient(address, ssl=True, ssl_context_factory=without) as client,
    ):
        client.is_server_ready()


async def check_tritonclient_aio(url: str) -> None:
    address = url.removeprefix("https://")
    async with triton_aio.InferenceServerClient(address, ssl=True, ssl_context=context()) as client:
        response = await client.infer("digits", [images()])
        assert labels(response.as_numpy("label")) == LABELS


async def check_kserve_v2(url: str) -> None:
    async with InferenceRESTClient(RESTConfig(protocol="v2", verify=context())) as client:
        assert await client.is_model_ready(url, "digits") is True
        numbers = InferInput("images", list(NUMBERS.shape), "FP32")
        numbers.set_data_from_numpy(NUMBERS, binary_data=True)
        response = await client.infer(url, InferRequest("digits", [numbers]), model_name="digits")
        (found,) = (each for each in response.outputs if each.name == "label")
        assert labels(found.as_numpy()) == LABELS


async def check_kserve_without_certificate(url: str) -> None:
    config = RESTConfig(protocol="v2", verify=context(with_certificate=False), retries=0)
    async with InferenceRESTClient(config) as client:
        with refused(OSError, "certificate required"):
            await client.is_server_ready(url)


def check_requests_and_httpx(url: str) -> None:
    (png, *_) = png_files()
    responses = (
        requests.post(
            url + ROUTE,
            data=png,
            headers=PNG,
            verify=sys.argv[2],
            cert=sys.argv[3],
            timeout=TIMEOUT_SECONDS,
        ),
        httpx.post(
            url + ROUTE, content=png, headers=PNG, verify=context(), timeout=TIMEOUT_SECONDS
        ),
    )
    for response in responses:
        assert response.json()["predictions"][0]["label"] == LABELS[0]


def curl(url: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["curl", "-sS", "--cacert", sys.argv[2], *options, f"{url}/v2/health/ready"],
        capture_output=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


def check_curl(url: str) -> None:
    for options in (["--tls-max", "1.2"], ["--tlsv1.3"], ["--http2"]):
        found = curl(url, "--cert", sys.argv[3], *options)
        assert found.stdout == b'{"ready":true}', found
    refused_one = curl(url)
    assert (refused_one.returncode != 0, refused_one.stdout) == (True, b"")


if __name__ == "__main__":
    sys.exit(run_checks(globals()))
