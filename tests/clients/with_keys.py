"""Published clients with a key, against a service that wants one: `python FILE URL KEY`."""

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import httpx
import requests
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from tritonclient.utils import InferenceServerException

from tests.clients.checks import LABELS, NUMBERS, png_files, refused, run_checks

TIMEOUT_SECONDS = 60
WRONG = {"X-API-Key": "ds-00000000-" + "A" * 43}


def both_headers() -> Iterator[dict[str, str]]:
    """Yield both ways to send the key, each in a new dictionary: clients add headers to it."""
    yield {"Authorization": f"Bearer {sys.argv[2]}"}
    yield {"X-API-Key": sys.argv[2]}


def labels(found: object) -> list[str]:
    return [each.decode() if isinstance(each, bytes) else str(each) for each in found]  # type: ignore[attr-defined]


def check_tritonclient(url: str) -> None:
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        assert client.is_server_ready()
        images = triton.InferInput("images", list(NUMBERS.shape), "FP32")
        images.set_data_from_numpy(NUMBERS)
        for headers in both_headers():
            assert client.is_model_ready("digits", headers=headers)
            assert client.get_model_metadata("digits", headers=headers)["versions"] == ["1"]
            response = client.infer("digits", [images], headers=headers)
            assert labels(response.as_numpy("label")) == LABELS


def check_tritonclient_refused(url: str) -> None:
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        assert not client.is_model_ready("digits")
        with refused(InferenceServerException, "This needs a key"):
            client.get_model_metadata("digits")
        with refused(InferenceServerException, "This key is not known here"):
            client.get_model_metadata("digits", headers=dict(WRONG))
        with refused(InferenceServerException, "needs the scope 'control'"):
            client.unload_model("digits", headers=next(both_headers()))


async def check_tritonclient_aio(url: str) -> None:
    async with triton_aio.InferenceServerClient(url.removeprefix("http://")) as client:
        images = triton.InferInput("images", list(NUMBERS.shape), "FP32")
        images.set_data_from_numpy(NUMBERS)
        for headers in both_headers():
            response = await client.infer("digits", [images], headers=headers)
            assert labels(response.as_numpy("label")) == LABELS


async def check_kserve_v2(url: str) -> None:
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        for headers in both_headers():
            assert await client.is_model_ready(url, "digits", headers=dict(headers)) is True
            images = InferInput("images", list(NUMBERS.shape), "FP32")
            images.set_data_from_numpy(NUMBERS, binary_data=True)
            request = InferRequest("digits", [images])
            response = await client.infer(url, request, headers=headers, model_name="digits")
            (found,) = (each for each in response.outputs if each.name == "label")
            assert labels(found.as_numpy()) == LABELS


async def check_kserve_v1(url: str) -> None:
    body = {"instances": NUMBERS[:, 0].tolist()}
    async with InferenceRESTClient(RESTConfig(protocol="v1")) as client:
        for headers in both_headers():
            response = await client.infer(url, body, headers=headers, model_name="digits")
            assert [each["label"] for each in response["predictions"]] == LABELS


async def check_kserve_refused(url: str) -> None:
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        images = InferInput("images", list(NUMBERS.shape), "FP32")
        images.set_data_from_numpy(NUMBERS, binary_data=True)
        with refused(httpx.HTTPStatusError, "401"):
            await client.infer(url, InferRequest("digits", [images]), model_name="digits")


def check_requests_and_httpx(url: str) -> None:
    (png, *_), kind = png_files(), {"Content-Type": "image/png"}
    address = f"{url}/predict"
    for headers in both_headers():
        sent = headers | kind
        responses = (
            requests.post(address, data=png, headers=sent, timeout=TIMEOUT_SECONDS),
            httpx.post(address, content=png, headers=sent, timeout=TIMEOUT_SECONDS),
        )
        for response in responses:
            assert response.status_code == 200, response.text
            assert response.json()["predictions"][0]["label"] == LABELS[0]


if __name__ == "__main__":
    sys.exit(run_checks(globals()))
