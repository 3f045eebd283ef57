"""Triton's Python client against a running service: `python FILE URL`."""

import base64
import itertools
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import requests
import tritonclient.http as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from tests.clients.checks import LABELS, NUMBERS, PIXELS, png_files, refused, run_checks

PER_CLASS_COLUMNS = ["mean_probabilities", "probability_std", "standard_error"]
PER_IMAGE_COLUMNS = [
    "predictive_entropy",
    "expected_entropy",
    "mutual_information",
    "variation_ratio",
]
COMPRESSIONS = [None, "gzip", "deflate"]
SECOND = 1_000_000  # `timeout` is in microseconds


def connect(url: str, **options: Any) -> Any:
    """Return a client, which takes HOST:PORT."""
    return triton.InferenceServerClient(url.removeprefix("http://"), **options)


def images(values: NDArray[Any], datatype: str = "FP32", binary: bool = True) -> Any:
    tensor = triton.InferInput("images", list(values.shape), datatype)
    return tensor.set_data_from_numpy(values, binary_data=binary)


def probabilities(client: Any, tensor: Any, **options: Any) -> NDArray[np.float32]:
    """Return the probabilities of `digits`, float32 [N, 10]."""
    response = client.infer("digits", [tensor], **options)
    found: NDArray[np.float32] = response.as_numpy("probabilities")
    return found


def check_server_is_live_and_ready(url: str) -> None:
    with connect(url) as client:
        assert client.is_server_live()
        assert client.is_server_ready()


def check_models_are_ready(url: str) -> None:
    with connect(url) as client:
        for name in ("digits", "digits-mc"):
            assert client.is_model_ready(name)
            assert client.is_model_ready(name, "1")


def check_unknown_models_and_versions_are_not_ready(url: str) -> None:
    with connect(url) as client:
        assert client.is_model_ready("nope") is False
        assert client.is_model_ready("digits", "99") is False
        assert client.is_model_ready("digits-mc", "99") is False


def check_server_metadata(url: str) -> None:
    with connect(url) as client:
        server = client.get_server_metadata()
    assert server["name"] == "dropserve"
    assert server["version"]
    assert set(server["extensions"]) == {
        "binary_tensor_data",
        "classification",
        "statistics",
        "model_configuration",
        "model_repository",
    }


def check_metadata_of_the_deterministic_model(url: str) -> None:
    with connect(url) as client:
        model = client.get_model_metadata("digits")
        assert client.get_model_metadata("digits", "1") == model
    assert model == {
        "name": "digits",
        "versions": ["1"],
        "platform": "onnx_onnxv1",
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 1, 8, 8]}],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
        ],
    }


def check_metadata_of_the_mc_dropout_model(url: str) -> None:
    with connect(url) as client:
        model = client.get_model_metadata("digits-mc")
    assert model["name"] == "digits-mc"
    assert model["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert model["outputs"] == [
        *({"name": name, "datatype": "FP32", "shape": [-1, 10]} for name in PER_CLASS_COLUMNS),
        *({"name": name, "datatype": "FP32", "shape": [-1]} for name in PER_IMAGE_COLUMNS),
        {"name": "label", "datatype": "BYTES", "shape": [-1]},
        {"name": "typicality", "datatype": "FP32", "shape": [-1]},
        {"name": "abstain", "datatype": "BOOL", "shape": [-1]},
        {"name": "abstain_because", "datatype": "BYTES", "shape": [-1]},
    ]


def check_outputs_match_the_metadata(url: str) -> None:
    with connect(url) as client:
        for name in ("digits", "digits-mc"):
            metadata = client.get_model_metadata(name)["outputs"]
            response = client.infer(name, [images(NUMBERS)])
            outputs = response.get_response()["outputs"]
            assert [each["name"] for each in outputs] == [each["name"] for each in metadata]
            for each, expected in zip(outputs, metadata, strict=True):
                assert each["datatype"] == expected["datatype"]
                assert each["shape"] == [4, *expected["shape"][1:]]


def check_configuration(url: str) -> None:
    with connect(url) as client:
        for name in ("digits", "digits-mc"):
            model = client.get_model_config(name)
            assert client.get_model_config(name, "1") == model
            assert model["name"] == name
            assert model["platform"] == "onnxruntime_onnx"
            assert model["max_batch_size"] >= len(NUMBERS)
            assert model["input"] == [
                {"name": "images", "data_type": "TYPE_FP32", "dims": [1, 8, 8]}
            ]
            named = [each["name"] for each in client.get_model_metadata(name)["outputs"]]
            assert [each["name"] for each in model["output"]] == named
            assert "dynamic_batching" in model


def check_repository_index(url: str) -> None:
    with connect(url) as client:
        assert client.get_model_repository_index() == [
            {"name": "digits", "version": "1", "state": "READY", "reason": ""},
            {"name": "digits-mc", "version": "1", "state": "READY", "reason": ""},
        ]


def check_statistics_count_requests(url: str) -> None:
    with connect(url) as client:
        before = _statistics(client, "digits")
        client.infer("digits", [images(NUMBERS)])
        client.infer("digits", [images(NUMBERS[:2])])
        with refused(InferenceServerException):
            client.infer("digits", [images(NUMBERS[..., :7])])
        after = _statistics(client, "digits")
    assert after["inference_count"] - before["inference_count"] == 6
    assert after["execution_count"] - before["execution_count"] == 2
    assert after["last_inference"] > before["last_inference"]
    old, new = before["inference_stats"], after["inference_stats"]
    parts = ("success", "queue", "compute_input", "compute_infer", "compute_output")
    for part in parts:
        assert new[part]["count"] - old[part]["count"] == 2, part
        assert new[part]["ns"] > old[part]["ns"], part
    assert new["fail"]["count"] - old["fail"]["count"] == 1


def check_statistics_of_all_models(url: str) -> None:
    with connect(url) as client:
        client.infer("digits-mc", [images(NUMBERS)], parameters={"samples": 8})
        found = client.get_inference_statistics()["model_stats"]
        assert [(each["name"], each["version"]) for each in found] == [
            ("digits", "1"),
            ("digits-mc", "1"),
        ]
        assert found == [_statistics(client, each["name"]) for each in found]
        assert found[1]["inference_count"] >= len(NUMBERS)


def _statistics(client: Any, model: str) -> Any:
    (found,) = client.get_inference_statistics(model)["model_stats"]
    assert client.get_inference_statistics(model, "1")["model_stats"] == [found]
    return found


def check_labels_and_probabilities(url: str) -> None:
    with connect(url) as client:
        response = client.infer("digits", [images(NUMBERS)])
    assert response.as_numpy("label").tolist() == [each.encode() for each in LABELS]
    found = response.as_numpy("probabilities")
    assert found.dtype == np.float32
    assert found.shape == (4, 10)
    assert np.allclose(found.sum(axis=1), 1, atol=1e-5)
    assert found.argmax(axis=1).tolist() == [int(each) for each in LABELS]


def check_every_compression_and_form_gives_the_same_response(url: str) -> None:
    """All 36 combinations of JSON and binary, plain, gzip and deflate give the same bits."""
    with connect(url) as client:
        expected = probabilities(client, images(NUMBERS)).tobytes()
        forms = itertools.product((True, False), (True, False), COMPRESSIONS, COMPRESSIONS)
        different = [
            (binary_in, binary_out, request_encoding, response_encoding)
            for binary_in, binary_out, request_encoding, response_encoding in forms
            if expected
            != probabilities(
                client,
                images(NUMBERS, binary=binary_in),
                outputs=[triton.InferRequestedOutput("probabilities", binary_data=binary_out)],
                request_compression_algorithm=request_encoding,
                response_compression_algorithm=response_encoding,
            ).tobytes()
        ]
    assert different == []


def check_labels_in_every_form(url: str) -> None:
    """Labels are text in JSON and bytes in a binary output."""
    with connect(url) as client:
        for binary, response_encoding in itertools.product((True, False), COMPRESSIONS):
            requested = [triton.InferRequestedOutput("label", binary_data=binary)]
            response = client.infer(
                "digits",
                [images(NUMBERS)],
                outputs=requested,
                response_compression_algorithm=response_encoding,
            )
            found = response.as_numpy("label").tolist()
            assert [each.decode() if binary else each for each in found] == LABELS


def check_one_output_in_json_and_one_in_binary(url: str) -> None:
    requested = [
        triton.InferRequestedOutput("label", binary_data=False),
        triton.InferRequestedOutput("probabilities", binary_data=True),
    ]
    with connect(url) as client:
        response = client.infer("digits", [images(NUMBERS)], outputs=requested)
        expected = probabilities(client, images(NUMBERS))
    outputs = response.get_response()["outputs"]
    assert [each["name"] for each in outputs] == ["label", "probabilities"]
    assert response.as_numpy("label").tolist() == LABELS
    assert np.array_equal(response.as_numpy("probabilities"), expected)


def check_numbers_pixels_and_files_agree(url: str) -> None:
    files = np.array(png_files(), np.object_)
    with connect(url) as client:
        expected = probabilities(client, images(NUMBERS))
        for binary in (True, False):
            assert np.array_equal(
                probabilities(client, images(PIXELS, "UINT8", binary)), expected
            ), f"UINT8, binary {binary}"
        assert np.array_equal(probabilities(client, images(files, "BYTES")), expected), "BYTES"


def check_base64_files_in_json(url: str) -> None:
    texts = np.array([base64.b64encode(each) for each in png_files()], np.object_)
    with connect(url) as client:
        found = probabilities(client, images(texts, "BYTES", binary=False))
        assert np.array_equal(found, probabilities(client, images(NUMBERS)))


def check_prediction_does_not_depend_on_the_batch(url: str) -> None:
    with connect(url) as client:
        together = probabilities(client, images(NUMBERS))
        for index in range(len(NUMBERS)):
            alone = probabilities(client, images(NUMBERS[index : index + 1]))
            assert np.allclose(alone[0], together[index], atol=1e-6)


def check_request_id_is_echoed(url: str) -> None:
    with connect(url) as client:
        for request_id in ("mine-1", "Größe 2 \u2713", 'a "quoted" one'):
            response = client.infer("digits", [images(NUMBERS)], request_id=request_id)
            assert response.get_response()["id"] == request_id
        assert "id" not in client.infer("digits", [images(NUMBERS)]).get_response()


def check_response_contains_model_and_version(url: str) -> None:
    with connect(url) as client:
        for version in ("", "1"):
            response = client.infer("digits-mc", [images(NUMBERS)], model_version=version)
            assert response.get_response()["model_name"] == "digits-mc"
            assert response.get_response()["model_version"] == "1"


def check_timeout_and_priority(url: str) -> None:
    with connect(url) as client:
        expected = probabilities(client, images(NUMBERS))
        for options in ({"timeout": 20 * SECOND}, {"timeout": 0}, {"priority": 1}):
            assert np.array_equal(probabilities(client, images(NUMBERS), **options), expected)


def check_exceeded_timeout(url: str) -> None:
    with connect(url) as client, refused(InferenceServerException, "[504]", "No answer within"):
        client.infer("digits", [images(NUMBERS)], timeout=1)


def check_classification(url: str) -> None:
    with connect(url) as client:
        scores = probabilities(client, images(NUMBERS))
        for binary in (True, False):
            requested = triton.InferRequestedOutput("probabilities", binary, class_count=3)
            response = client.infer("digits", [images(NUMBERS)], outputs=[requested])
            found = response.as_numpy("probabilities")
            assert found.shape == (4, 3)
            assert response.get_output("probabilities")["datatype"] == "BYTES"
            for row, expected in zip(found.tolist(), scores, strict=True):
                _check_classes(row, expected)


def check_classification_into_all_classes(url: str) -> None:
    with connect(url) as client:
        scores = probabilities(client, images(NUMBERS))
        for count in (10, 99):
            requested = triton.InferRequestedOutput("probabilities", class_count=count)
            response = client.infer("digits", [images(NUMBERS)], outputs=[requested])
            found = response.as_numpy("probabilities")
            assert found.shape == (4, 10)
            for row, expected in zip(found.tolist(), scores, strict=True):
                _check_classes(row, expected)
                total = sum(float(_text(each).split(":")[0]) for each in row)
                assert abs(total - 1) < 1e-5, f"the scores add up to {total}"


def check_classification_of_mc_dropout(url: str) -> None:
    options: dict[str, Any] = {"parameters": {"samples": 8, "seed": 1}}
    with connect(url) as client:
        plain = client.infer("digits-mc", [images(NUMBERS)], **options)
        requested = triton.InferRequestedOutput("mean_probabilities", class_count=2)
        response = client.infer("digits-mc", [images(NUMBERS)], outputs=[requested], **options)
    found = response.as_numpy("mean_probabilities").tolist()
    for row, expected in zip(found, plain.as_numpy("mean_probabilities"), strict=True):
        _check_classes(row, expected)


def _check_classes(row: list[Any], scores: NDArray[np.float32]) -> None:
    """Compare `score:index:label`, the likeliest class first, with the scores of all classes."""
    split = [_text(each).split(":") for each in row]
    likeliest = np.argsort(-scores, kind="stable")[: len(row)]
    assert [int(index) for _, index, _ in split] == likeliest.tolist()
    assert [label for _, _, label in split] == [str(index) for index in likeliest]
    assert np.allclose([float(score) for score, _, _ in split], scores[likeliest], atol=1e-6)


def _text(element: Any) -> str:
    return element.decode() if isinstance(element, bytes) else str(element)


def check_async_infer(url: str) -> None:
    """Eight requests share four connections."""
    with connect(url, concurrency=4) as client:
        expected = probabilities(client, images(NUMBERS))
        sent = [
            client.async_infer("digits", [images(NUMBERS)], request_id=f"request-{number}")
            for number in range(8)
        ]
        for number, each in enumerate(sent):
            response = each.get_result(timeout=60)
            assert response.get_response()["id"] == f"request-{number}"
            assert np.array_equal(response.as_numpy("probabilities"), expected)


def check_async_infer_of_an_unknown_model(url: str) -> None:
    with connect(url) as client:
        sent = client.async_infer("nope", [images(NUMBERS)])
        with refused(InferenceServerException, "[404]", "No model 'nope' is loaded"):
            sent.get_result(timeout=60)


def check_bodies_sent_by_another_client(url: str) -> None:
    """Bodies of `generate_request_body` and `parse_response_body`, sent by the library requests."""
    requested = [triton.InferRequestedOutput("probabilities")]
    with connect(url) as client:
        expected = probabilities(client, images(NUMBERS))
    for binary, outputs in itertools.product((True, False), (requested, None)):
        body, length = triton.InferenceServerClient.generate_request_body(
            [images(NUMBERS, binary=binary)], outputs=outputs, request_id="carried"
        )
        headers = {} if length is None else {"Inference-Header-Content-Length": str(length)}
        response = requests.post(
            f"{url}/v2/models/digits/infer", data=body, headers=headers, timeout=60
        )
        assert response.status_code == 200, response.text
        response = triton.InferenceServerClient.parse_response_body(
            response.content,
            header_length=int(response.headers["Inference-Header-Content-Length"]),
        )
        assert response.get_response()["id"] == "carried"
        assert np.array_equal(response.as_numpy("probabilities"), expected)


def check_compressed_bodies_sent_by_another_client(url: str) -> None:
    body, length = triton.InferenceServerClient.generate_request_body([images(NUMBERS)])
    with connect(url) as client:
        expected = probabilities(client, images(NUMBERS))
    for compression in ("gzip", "deflate"):
        response = requests.post(
            f"{url}/v2/models/digits/infer",
            data=body,
            headers={
                "Inference-Header-Content-Length": str(length),
                "Accept-Encoding": compression,
            },
            stream=True,
            timeout=60,
        )
        assert response.headers["Content-Encoding"] == compression
        response = triton.InferenceServerClient.parse_response_body(
            response.raw.read(decode_content=False),
            header_length=int(response.headers["Inference-Header-Content-Length"]),
            content_encoding=compression,
        )
        assert np.array_equal(response.as_numpy("probabilities"), expected)


def check_mc_dropout_outputs(url: str) -> None:
    with connect(url) as client:
        response = client.infer(
            "digits-mc", [images(NUMBERS)], parameters={"samples": 32, "seed": 3}
        )
    assert response.as_numpy("label").tolist() == [each.encode() for each in LABELS]
    assert np.allclose(response.as_numpy("mean_probabilities").sum(axis=1), 1, atol=1e-5)
    assert (response.as_numpy("probability_std") >= 0).all()
    assert response.as_numpy("probability_std").max() > 0, "dropout is not active"
    difference = response.as_numpy("predictive_entropy") - response.as_numpy("expected_entropy")
    assert np.allclose(response.as_numpy("mutual_information"), difference, atol=1e-5)
    assert (response.as_numpy("mutual_information") >= 0).all()
    ratio = response.as_numpy("variation_ratio")
    assert ((ratio >= 0) & (ratio <= 1)).all()


def check_mc_dropout_abstains_by_the_limits_of_the_request(url: str) -> None:
    limits = {"max_risk": 1e-6, "max_false_alarm": 0.999}
    with connect(url) as client:
        for parameters, expected in (({}, {False, True}), (limits, {True})):
            response = client.infer("digits-mc", [images(NUMBERS)], parameters=parameters)
            abstain = response.as_numpy("abstain")
            assert abstain.dtype == np.bool_
            assert set(abstain.tolist()) <= expected
            reasons = response.as_numpy("abstain_because").tolist()
            assert [reason != b"" for reason in reasons] == abstain.tolist()
            typicality = response.as_numpy("typicality")
            assert ((typicality > 0) & (typicality <= 1)).all()


def check_one_seed_gives_the_same_bytes(url: str) -> None:
    with connect(url) as client:
        first, again, other = (_sampled(client, samples=16, seed=seed) for seed in (7, 7, 8))
    assert first == again
    changed = {name for name, each in first.items() if other[name] != each}
    assert {"mean_probabilities", "predictive_entropy", "mutual_information"} <= changed


def check_one_seed_gives_the_same_bytes_in_every_form(url: str) -> None:
    with connect(url) as client:
        options: dict[str, Any] = {"parameters": {"samples": 16, "seed": 7}}
        names = [*PER_CLASS_COLUMNS, *PER_IMAGE_COLUMNS]
        expected = _bytes(client.infer("digits-mc", [images(NUMBERS)], **options), names)
        for binary_in, binary_out in itertools.product((True, False), repeat=2):
            response = client.infer(
                "digits-mc",
                [images(NUMBERS, binary=binary_in)],
                outputs=[triton.InferRequestedOutput(name, binary_out) for name in names],
                **options,
            )
            assert _bytes(response, names) == expected


def check_response_contains_the_parameters(url: str) -> None:
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"samples": 16, "seed": 7}, {"method": "mc_dropout", "samples": 16, "seed": 7}),
        ({"samples": "auto"}, {"method": "mc_dropout", "samples": "auto", "seed": 0}),
        ({"method": "mc_dropout"}, {"method": "mc_dropout", "samples": 64, "seed": 0}),
        ({}, {"method": "mc_dropout", "samples": 64, "seed": 0}),
        ({"method": "analytic"}, {"method": "analytic"}),
    ]
    with connect(url) as client:
        for parameters, expected in cases:
            response = client.infer("digits-mc", [images(NUMBERS)], parameters=parameters)
            used = response.get_response()["parameters"]
            assert 0 < used.pop("max_risk") < 1
            assert used.pop("max_false_alarm") == 0.01
            assert used == expected, parameters


def check_the_analytic_method_needs_no_seed(url: str) -> None:
    with connect(url) as client:
        first, again = (_sampled(client, method="analytic") for _ in range(2))
    assert first == again


def _sampled(client: Any, **parameters: Any) -> dict[str, bytes]:
    response = client.infer("digits-mc", [images(NUMBERS)], parameters=parameters)
    return _bytes(response, [*PER_CLASS_COLUMNS, *PER_IMAGE_COLUMNS])


def _bytes(response: Any, names: list[str]) -> dict[str, bytes]:
    return {name: response.as_numpy(name).tobytes() for name in names}


def check_invalid_parameters(url: str) -> None:
    with connect(url) as client:
        for name, value in (
            ("samples", 0),
            ("samples", 10**9),
            ("seed", -1),
            ("method", "magic"),
            ("max_risk", 2),
        ):
            with refused(InferenceServerException, "[400]", f"Parameter '{name}'"):
                client.infer("digits-mc", [images(NUMBERS)], parameters={name: value})


def check_an_unknown_model(url: str) -> None:
    with connect(url) as client:
        with refused(InferenceServerException, "[404]", "No model 'nope' is loaded", "digits"):
            client.infer("nope", [images(NUMBERS)])
        for call in (
            client.get_model_metadata,
            client.get_model_config,
            client.get_inference_statistics,
        ):
            with refused(InferenceServerException, "[404]", "No model 'nope' is loaded"):
                call("nope")


def check_an_unknown_version(url: str) -> None:
    expected = "Version '99' of digits is not loaded"
    with connect(url) as client, refused(InferenceServerException, "[404]", expected):
        client.infer("digits", [images(NUMBERS)], model_version="99")


def check_an_error_has_status_and_message(url: str) -> None:
    raised = None
    with connect(url) as client:
        try:
            client.infer("nope", [images(NUMBERS)])
        except InferenceServerException as error:
            raised = error
    assert raised is not None
    assert raised.status() == "404"
    assert raised.message() == "No model 'nope' is loaded; there is digits."


def check_an_unknown_output(url: str) -> None:
    requested = [triton.InferRequestedOutput("logits")]
    expected = "There is no output 'logits'; there is probabilities, label."
    with connect(url) as client, refused(InferenceServerException, "[400]", expected):
        client.infer("digits", [images(NUMBERS)], outputs=requested)


def check_an_unknown_input(url: str) -> None:
    tensor = triton.InferInput("pixels", [4, 1, 8, 8], "FP32").set_data_from_numpy(NUMBERS)
    with connect(url) as client, refused(InferenceServerException, "[400]", "images", "pixels"):
        client.infer("digits", [tensor])


def check_a_wrong_shape(url: str) -> None:
    with connect(url) as client:
        for wrong in (NUMBERS[..., :7], NUMBERS[0], NUMBERS[0, 0]):
            for binary in (True, False):
                with refused(
                    InferenceServerException, "[400]", str(list(wrong.shape)), "[N, 1, 8, 8]"
                ):
                    client.infer("digits", [images(wrong, binary=binary)])


def check_a_wrong_datatype(url: str) -> None:
    with connect(url) as client, refused(InferenceServerException, "[400]", "FP32", "UINT8"):
        client.infer("digits", [images(NUMBERS.astype(np.float64), "FP64")])


def check_numbers_out_of_range(url: str) -> None:
    for value, words in ((2, "is 2, outside 0..1"), (-1, "is -1, outside 0..1"), (np.nan, "NaN")):
        wrong = np.full_like(NUMBERS, value)
        sentence = "[400] Image 0, counted from 0: A pixel"
        with connect(url) as client, refused(InferenceServerException, sentence, words):
            client.infer("digits", [images(wrong)])


def check_invalid_image_files(url: str) -> None:
    wrong = np.array([b"no image"], np.object_)
    with connect(url) as client, refused(InferenceServerException, "[400]", "not an image"):
        client.infer("digits", [images(wrong, "BYTES")])


def check_too_many_images(url: str) -> None:
    many = np.repeat(NUMBERS, 17, axis=0)
    with connect(url) as client, refused(InferenceServerException, "[413]", "at most 64 images"):
        client.infer("digits", [images(many)])


def check_classification_of_labels_is_refused(url: str) -> None:
    requested = [triton.InferRequestedOutput("label", class_count=1)]
    with connect(url) as client, refused(InferenceServerException, "[400]", "'label'"):
        client.infer("digits", [images(NUMBERS)], outputs=requested)


def check_client_continues_after_errors(url: str) -> None:
    """The client keeps using its one connection."""
    with connect(url) as client:
        expected = probabilities(client, images(NUMBERS))
        for _ in range(3):
            with refused(InferenceServerException, "[400]"):
                client.infer("digits", [images(NUMBERS[..., :7])])
            assert np.array_equal(probabilities(client, images(NUMBERS)), expected)


def check_unsupported_extensions_are_refused(url: str) -> None:
    with connect(url) as client:
        for call in (
            client.get_trace_settings,
            client.get_log_settings,
            client.get_system_shared_memory_status,
            client.get_cuda_shared_memory_status,
        ):
            with refused(InferenceServerException, "[404] There is nothing at /v2/"):
                call()


def check_shared_memory_is_refused(url: str) -> None:
    """An output for shared memory is refused, not sent in the body."""
    region = "a region", NUMBERS.nbytes
    tensor = triton.InferInput("images", [4, 1, 8, 8], "FP32").set_shared_memory(*region)
    requested = triton.InferRequestedOutput("probabilities")
    requested.set_shared_memory(*region)
    with connect(url) as client:
        with refused(InferenceServerException, "'images'"):
            client.infer("digits", [tensor])
        with refused(InferenceServerException, "shared"):
            client.infer("digits", [images(NUMBERS)], outputs=[requested])


def check_unload_and_load(url: str) -> None:
    with connect(url) as client:
        expected = probabilities(client, images(NUMBERS))
        try:
            client.unload_model("digits")
            assert client.is_model_ready("digits") is False
            assert client.is_model_ready("digits", "1") is False
            assert client.is_model_ready("digits-mc") is False
            assert client.is_server_ready() is False, "no model is loaded"
            assert client.is_server_live()
            assert client.get_model_repository_index() == [
                {"name": name, "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}
                for name in ("digits", "digits-mc")
            ]
            with refused(InferenceServerException, "[503]", "digits is unloaded"):
                client.infer("digits", [images(NUMBERS)])
        finally:
            client.load_model("digits")
        assert client.is_model_ready("digits")
        assert client.is_model_ready("digits-mc")
        assert client.is_server_ready()
        assert np.array_equal(probabilities(client, images(NUMBERS)), expected)


def check_loading_a_loaded_model(url: str) -> None:
    with connect(url) as client:
        expected = probabilities(client, images(NUMBERS))
        client.load_model("digits")
        assert np.array_equal(probabilities(client, images(NUMBERS)), expected)


def check_loading_a_missing_model(url: str) -> None:
    with connect(url) as client:
        for call in (client.load_model, client.unload_model):
            with refused(InferenceServerException, "[404]", "no model 'nope'"):
                call("nope")


def check_loading_with_another_configuration(url: str) -> None:
    with connect(url) as client:
        with refused(InferenceServerException, "[501]", "'config' is not offered"):
            client.load_model("digits", config='{"max_batch_size": 1}')
        with refused(InferenceServerException, "[501]", "'file:1/model.onnx' is not offered"):
            client.load_model("digits", files={"file:1/model.onnx": b"no model"})
        assert client.is_model_ready("digits")


if __name__ == "__main__":
    sys.exit(run_checks(globals()))
