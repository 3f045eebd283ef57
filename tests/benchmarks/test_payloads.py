import io

import numpy as np
import orjson
import pytest
from PIL import Image

from benchmarks.serving import payloads
from benchmarks.serving.payloads import Floats, Response


@pytest.fixture
def image() -> Floats:
    levels = np.arange(2 * 3, dtype=np.float64).reshape(1, 2, 3)
    return np.asarray(levels * 40 / 255, np.float32)


def test_json_keeps_every_float32_exactly(image: Floats) -> None:
    flat = orjson.loads(payloads.flat(image).body)["image"]
    nested = orjson.loads(payloads.nested(image).body)["instances"][0]
    batch = orjson.loads(payloads.batch(image).body)["images"]
    for written in (np.array(flat).reshape(image.shape), [nested], batch[0]):
        assert np.array_equal(np.array(written, np.float32), image)


def test_nested_numbers_of_a_colour_image_have_the_channels_last() -> None:
    image = np.zeros((3, 4, 5), np.float32)
    (instance,) = orjson.loads(payloads.nested(image).body)["instances"]
    assert np.array(instance).shape == (4, 5, 3)


def test_open_inference_json_describes_its_tensor(image: Floats) -> None:
    request = orjson.loads(payloads.open_inference(image).body)
    (tensor,) = request["inputs"]
    assert (tensor["shape"], tensor["datatype"]) == ([1, 1, 2, 3], "FP32")
    assert np.array_equal(np.array(tensor["data"], np.float32), image.ravel())
    assert "parameters" not in request
    assert orjson.loads(payloads.open_inference(image, 64).body)["parameters"] == {"samples": 64}


def test_open_inference_binary_puts_the_tensor_after_the_json(image: Floats) -> None:
    content = payloads.open_inference_binary(image)
    length = int(content.headers["Inference-Header-Content-Length"])
    (tensor,) = orjson.loads(content.body[:length])["inputs"]
    assert tensor["parameters"]["binary_data_size"] == len(content.body) - length
    assert content.body[length:] == image.tobytes()


def test_png_and_form_keep_the_image_exactly(image: Floats) -> None:
    file = payloads.png(image).body
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(file)), np.float32) / 255, image[0])
    assert file in payloads.form(image).body


def test_response_parsers_return_the_probabilities() -> None:
    outputs = b'{"outputs": [{"data": [0.25, 0.75]}]}'
    head = {"inference-header-content-length": str(len(outputs))}
    raw = outputs + np.array([0.25, 0.75], np.float32).tobytes()
    named = b'{"predictions": [{"probabilities": {"a": 0.25, "b": 0.75}}]}'
    for probabilities in (
        payloads.parse_list(Response({}, b'{"probabilities": [0.25, 0.75]}')),
        payloads.parse_rows(Response({}, b"[[0.25, 0.75]]")),
        payloads.parse_predictions(Response({}, named)),
        payloads.parse_open_inference(Response({}, outputs)),
        payloads.parse_open_inference_binary(Response(head, raw)),
    ):
        assert probabilities == [0.25, 0.75]
