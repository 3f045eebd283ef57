"""KServe's inference client against a running service, in both protocols: `python FILE URL`."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput
from numpy.typing import NDArray

from tests.clients.checks import LABELS, NUMBERS, PIXELS, png_files, refused, run_checks

INFER_REQUEST: dict[str, Any] = {
    "id": "mine-1",
    "inputs": [
        {"name": "images", "shape": [4, 1, 8, 8], "datatype": "FP32", "data": NUMBERS.tolist()}
    ],
}


def connect(protocol: str = "v2") -> Any:
    return InferenceRESTClient(RESTConfig(protocol=protocol))


def request(
    values: NDArray[Any] = NUMBERS,
    datatype: str = "FP32",
    binary: bool = True,
    model: str = "digits",
    **options: Any,
) -> Any:
    tensor = InferInput("images", list(values.shape), datatype)
    tensor.set_data_from_numpy(values, binary_data=binary)
    return InferRequest(model, [tensor], **options)


def output(response: Any, name: str) -> Any:
    """Return an output as an array."""
    (found,) = (each for each in response.outputs if each.name == name)
    return found.as_numpy()


async def check_server_is_live_and_ready(url: str) -> None:
    async with connect() as client:
        assert await client.is_server_live(url) is True
        assert await client.is_server_ready(url) is True


async def check_models_are_ready(url: str) -> None:
    async with connect() as client:
        assert await client.is_model_ready(url, "digits") is True
        assert await client.is_model_ready(url, "digits-mc") is True
        assert await client.is_model_ready(url, "nope") is False


async def check_a_plain_dictionary(url: str) -> None:
    async with connect() as client:
        response = await client.infer(url, INFER_REQUEST, model_name="digits")
    assert (response.id, response.model_name) == ("mine-1", "digits")  # it drops the version
    assert [each.name for each in response.outputs] == ["probabilities", "label"]
    assert output(response, "label").tolist() == LABELS
    found = output(response, "probabilities")
    assert found.shape == (4, 10)
    assert np.allclose(found.sum(axis=1), 1, atol=1e-5)
    assert found.argmax(axis=1).tolist() == [int(each) for each in LABELS]


async def check_json_and_binary_give_the_same_response(url: str) -> None:
    """All forms of the request and of each output give the same response."""
    async with connect() as client:
        expected = output(
            await client.infer(url, INFER_REQUEST, model_name="digits"), "probabilities"
        )
        for binary_in in (True, False):
            for binary_out in (True, False, None):
                parameters = None if binary_out is None else {"binary_data": binary_out}
                requested = [RequestedOutput("probabilities", parameters), RequestedOutput("label")]
                sent = request(binary=binary_in, request_outputs=requested, request_id="mine-2")
                response = await client.infer(url, sent, model_name="digits")
                assert response.id == "mine-2"
                assert np.array_equal(output(response, "probabilities"), expected)
                assert output(response, "label").tolist() == LABELS


async def check_every_output_in_binary(url: str) -> None:
    async with connect() as client:
        headers: dict[str, str] = {}
        sent = request(parameters={"binary_data_output": True})
        response = await client.infer(url, sent, model_name="digits", response_headers=headers)
        assert "inference-header-content-length" in headers
        expected = output(
            await client.infer(url, INFER_REQUEST, model_name="digits"), "probabilities"
        )
    assert np.array_equal(output(response, "probabilities"), expected)
    assert output(response, "label").tolist() == LABELS


async def check_one_output_alone(url: str) -> None:
    async with connect() as client:
        sent = request(request_outputs=[RequestedOutput("label")])
        response = await client.infer(url, sent, model_name="digits")
    assert [each.name for each in response.outputs] == ["label"]
    assert output(response, "label").tolist() == LABELS


async def check_numbers_pixels_and_files_agree(url: str) -> None:
    files = np.array(png_files(), np.object_)
    async with connect() as client:
        expected = output(
            await client.infer(url, INFER_REQUEST, model_name="digits"), "probabilities"
        )
        for sent in (
            request(PIXELS, "UINT8"),
            request(PIXELS, "UINT8", binary=False),
            request(files, "BYTES"),
        ):
            response = await client.infer(url, sent, model_name="digits")
            assert np.array_equal(output(response, "probabilities"), expected)


async def check_generated_request_id_is_echoed(url: str) -> None:
    """The client generates an id if there is none, and never sends the version."""
    async with connect() as client:
        response = await client.infer(url, request(), model_name="digits")
    assert len(response.id) == len("00000000-0000-0000-0000-000000000000")


async def check_mc_dropout_outputs(url: str) -> None:
    async with connect() as client:
        responses = [
            await client.infer(
                url,
                request(model="digits-mc", parameters={"samples": 16, "seed": seed}),
                model_name="digits-mc",
            )
            for seed in (7, 7, 8)
        ]
    parameters = dict(responses[0].parameters)
    assert 0 < parameters.pop("max_risk") < 1
    used = {"method": "mc_dropout", "samples": 16, "seed": 7, "max_false_alarm": 0.01}
    assert parameters == used
    assert output(responses[0], "label").tolist() == LABELS
    for name in ("mean_probabilities", "mutual_information"):
        first, again, other = (output(response, name).tobytes() for response in responses)
        assert first == again, name
        assert first != other, name


async def check_errors_have_status_and_message(url: str) -> None:
    async with connect() as client:
        error = httpx.HTTPStatusError
        with refused(error, "No model 'nope' is loaded; there is digits.", "'404 Not Found'"):
            await client.infer(url, request(), model_name="nope")
        with refused(error, "There is no output 'logits'", "'400 Bad Request'"):
            sent = request(request_outputs=[RequestedOutput("logits")])
            await client.infer(url, sent, model_name="digits")
        with refused(error, "[4, 1, 8, 7]", "[N, 1, 8, 8]", "'400 Bad Request'"):
            await client.infer(url, request(NUMBERS[..., :7]), model_name="digits")


async def check_v1_models_are_ready(url: str) -> None:
    async with connect("v1") as client:
        assert await client.is_model_ready(url, "digits") is True
        assert await client.is_model_ready(url, "digits-mc") is True


async def check_v1_unknown_model(url: str) -> None:
    async with connect("v1") as client:
        with refused(httpx.HTTPStatusError, "No model 'nope' is loaded", "'404 Not Found'"):
            await client.is_model_ready(url, "nope")
        with refused(httpx.HTTPStatusError, "No model 'nope' is loaded", "'404 Not Found'"):
            await client.infer(url, {"instances": NUMBERS[:, 0].tolist()}, model_name="nope")


async def check_v1_predictions(url: str) -> None:
    async with connect() as client:
        expected = output(
            await client.infer(url, INFER_REQUEST, model_name="digits"), "probabilities"
        )
    async with connect("v1") as client:
        response = await client.infer(
            url, {"instances": NUMBERS[:, 0].tolist()}, model_name="digits"
        )
    assert list(response) == ["predictions"]
    assert [each["label"] for each in response["predictions"]] == LABELS
    found = np.array([each["probabilities"] for each in response["predictions"]], np.float32)
    assert np.array_equal(found, expected)


async def check_v1_mc_dropout_predictions(url: str) -> None:
    async with connect("v1") as client:
        sent = {"instances": NUMBERS[:, 0].tolist()}
        first, again = [await client.infer(url, sent, model_name="digits-mc") for _ in range(2)]
    assert first == again, "the default seed must be used"
    for prediction, label in zip(first["predictions"], LABELS, strict=True):
        assert prediction["label"] == label
        assert abs(sum(prediction["mean_probabilities"]) - 1) < 1e-5
        assert prediction["mutual_information"] >= 0


async def check_v1_refusals(url: str) -> None:
    async with connect("v1") as client:
        with refused(httpx.HTTPStatusError, '{"instances": [IMAGE, ...]}', "'400 Bad Request'"):
            await client.infer(url, {"rows": []}, model_name="digits")
        with refused(httpx.HTTPStatusError, "takes [8][8] numbers", "'400 Bad Request'"):
            await client.infer(url, {"instances": [[[0.5]]]}, model_name="digits")


if __name__ == "__main__":
    sys.exit(run_checks(globals()))
