"""Triton's asyncio client against a running service: `python FILE URL`.

It is a separate client, based on aiohttp, which requests compressed responses by default.
"""

import asyncio
import itertools
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import tritonclient.http.aio as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from tests.clients.checks import LABELS, NUMBERS, PIXELS, png_files, refused, run_checks

COMPRESSIONS = [None, "gzip", "deflate"]


def connect(url: str) -> Any:
    """Return a client, which takes HOST:PORT."""
    return triton.InferenceServerClient(url.removeprefix("http://"))


def images(values: NDArray[Any], datatype: str = "FP32", binary: bool = True) -> Any:
    tensor = triton.InferInput("images", list(values.shape), datatype)
    return tensor.set_data_from_numpy(values, binary_data=binary)


async def probabilities(client: Any, tensor: Any, **options: Any) -> NDArray[np.float32]:
    """Return the probabilities of `digits`, float32 [N, 10]."""
    response = await client.infer("digits", [tensor], **options)
    found: NDArray[np.float32] = response.as_numpy("probabilities")
    return found


async def check_server_and_models_are_ready(url: str) -> None:
    async with connect(url) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        for name in ("digits", "digits-mc"):
            assert await client.is_model_ready(name)
            assert await client.is_model_ready(name, "1")
            assert await client.is_model_ready(name, "99") is False
        assert await client.is_model_ready("nope") is False


async def check_metadata(url: str) -> None:
    async with connect(url) as client:
        assert (await client.get_server_metadata())["name"] == "dropserve"
        for name in ("digits", "digits-mc"):
            model = await client.get_model_metadata(name)
            assert model["name"] == name
            assert model["versions"] == ["1"]
            assert model["inputs"] == [
                {"name": "images", "datatype": "FP32", "shape": [-1, 1, 8, 8]}
            ]
            named = [each["name"] for each in model["outputs"]]
            configured = (await client.get_model_config(name))["output"]
            assert [each["name"] for each in configured] == named


async def check_labels_and_probabilities(url: str) -> None:
    async with connect(url) as client:
        response = await client.infer("digits", [images(NUMBERS)], request_id="mine-1")
    assert response.get_response()["id"] == "mine-1"
    assert response.as_numpy("label").tolist() == [each.encode() for each in LABELS]
    found = response.as_numpy("probabilities")
    assert found.dtype == np.float32
    assert np.allclose(found.sum(axis=1), 1, atol=1e-5)
    assert found.argmax(axis=1).tolist() == [int(each) for each in LABELS]


async def check_every_compression_and_form_gives_the_same_response(url: str) -> None:
    """All 36 combinations of JSON and binary, plain, gzip and deflate give the same bits."""
    different = []
    async with connect(url) as client:
        expected = (await probabilities(client, images(NUMBERS))).tobytes()
        forms = itertools.product((True, False), (True, False), COMPRESSIONS, COMPRESSIONS)
        for binary_in, binary_out, request_encoding, response_encoding in forms:
            found = await probabilities(
                client,
                images(NUMBERS, binary=binary_in),
                outputs=[triton.InferRequestedOutput("probabilities", binary_data=binary_out)],
                request_compression_algorithm=request_encoding,
                response_compression_algorithm=response_encoding,
            )
            if found.tobytes() != expected:
                different.append((binary_in, binary_out, request_encoding, response_encoding))
    assert different == []


async def check_numbers_pixels_and_files_agree(url: str) -> None:
    files = np.array(png_files(), np.object_)
    async with connect(url) as client:
        expected = await probabilities(client, images(NUMBERS))
        for tensor in (images(PIXELS, "UINT8"), images(files, "BYTES")):
            assert np.array_equal(await probabilities(client, tensor), expected)


async def check_many_requests_at_once(url: str) -> None:
    async with connect(url) as client:
        expected = await probabilities(client, images(NUMBERS))
        sent = [
            client.infer("digits", [images(NUMBERS)], request_id=f"request-{number}")
            for number in range(16)
        ]
        for number, response in enumerate(await asyncio.gather(*sent)):
            assert response.get_response()["id"] == f"request-{number}"
            assert np.allclose(response.as_numpy("probabilities"), expected, atol=1e-6)


async def check_classification(url: str) -> None:
    async with connect(url) as client:
        scores = await probabilities(client, images(NUMBERS))
        requested = triton.InferRequestedOutput("probabilities", class_count=3)
        response = await client.infer("digits", [images(NUMBERS)], outputs=[requested])
    found = response.as_numpy("probabilities")
    assert found.shape == (4, 3)
    for row, expected in zip(found.tolist(), scores, strict=True):
        likeliest = np.argsort(-expected, kind="stable")[:3]
        for element, index in zip(row, likeliest, strict=True):
            score, class_index, label = element.decode().split(":")
            assert (int(class_index), label) == (index, str(index))
            assert abs(float(score) - expected[index]) < 1e-6


async def check_one_seed_gives_the_same_bytes(url: str) -> None:
    async with connect(url) as client:
        responses = [
            await client.infer(
                "digits-mc", [images(NUMBERS)], parameters={"samples": 16, "seed": seed}
            )
            for seed in (7, 7, 8)
        ]
    for response, seed in zip(responses, (7, 7, 8), strict=True):
        parameters = response.get_response()["parameters"]
        assert 0 < parameters.pop("max_risk") < 1
        used = {"method": "mc_dropout", "samples": 16, "seed": seed, "max_false_alarm": 0.01}
        assert parameters == used
    for name in ("mean_probabilities", "predictive_entropy", "mutual_information"):
        first, again, other = (response.as_numpy(name).tobytes() for response in responses)
        assert first == again, name
        assert first != other, name


async def check_statistics_count_requests(url: str) -> None:
    async with connect(url) as client:
        (before,) = (await client.get_inference_statistics("digits-mc"))["model_stats"]
        await client.infer("digits-mc", [images(NUMBERS)])
        (after,) = (await client.get_inference_statistics("digits-mc", "1"))["model_stats"]
        everything = (await client.get_inference_statistics())["model_stats"]
    assert after["inference_count"] - before["inference_count"] == len(NUMBERS)
    old, new = before["inference_stats"]["success"], after["inference_stats"]["success"]
    assert new["count"] - old["count"] == 1
    assert new["ns"] > old["ns"]
    assert [each["name"] for each in everything] == ["digits", "digits-mc"]
    assert after in everything


async def check_errors(url: str) -> None:
    async with connect(url) as client:
        with refused(InferenceServerException, "[404]", "No model 'nope' is loaded"):
            await client.infer("nope", [images(NUMBERS)])
        with refused(InferenceServerException, "[404]", "Version '99' of digits"):
            await client.infer("digits", [images(NUMBERS)], model_version="99")
        with refused(InferenceServerException, "[400]", "There is no output 'logits'"):
            requested = [triton.InferRequestedOutput("logits")]
            await client.infer("digits", [images(NUMBERS)], outputs=requested)
        with refused(InferenceServerException, "[400]", "[4, 1, 8, 7]", "[N, 1, 8, 8]"):
            await client.infer("digits", [images(NUMBERS[..., :7])])
        with refused(InferenceServerException, "[504]", "No answer within"):
            await client.infer("digits", [images(NUMBERS)], timeout=1)


async def check_unload_and_load(url: str) -> None:
    async with connect(url) as client:
        expected = await probabilities(client, images(NUMBERS))
        try:
            await client.unload_model("digits")
            assert await client.is_model_ready("digits") is False
            states = {each["state"] for each in await client.get_model_repository_index()}
            assert states == {"UNAVAILABLE"}
            with refused(InferenceServerException, "[503]", "digits is unloaded"):
                await client.infer("digits", [images(NUMBERS)])
        finally:
            await client.load_model("digits")
        assert await client.is_model_ready("digits")
        states = {each["state"] for each in await client.get_model_repository_index()}
        assert states == {"READY"}
        assert np.array_equal(await probabilities(client, images(NUMBERS)), expected)


async def check_refused_loads(url: str) -> None:
    async with connect(url) as client:
        with refused(InferenceServerException, "[404]", "no model 'nope'"):
            await client.load_model("nope")
        with refused(InferenceServerException, "[501]", "'config' is not offered"):
            await client.load_model("digits", config='{"max_batch_size": 1}')
        assert await client.is_model_ready("digits")


if __name__ == "__main__":
    sys.exit(run_checks(globals()))
