"""Tests of every error over HTTP: its status, code and sentence."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest

from model.bundle.store import REPORT_FILE, open_bundle
from model.errors import BundleError, ImageDecodeError
from model.inference.predictor import Predictor
from service import errors
from service.feedback.feedback_file import FeedbackFile
from service.http import error_responses
from service.keys.key_file_changes import add_key
from service.settings import LEAST_FEEDBACK_BYTES
from tests.bundles import copy_bundle
from tests.pictures import encode, instances
from tests.service.bad_requests import CASES, PICTURE, Case
from tests.service.serving import (
    JSON,
    PNG,
    Application,
    BlockingPredictor,
    BrokenPredictor,
    check_error,
    predictions,
    real_predictor,
    serving_models,
    serving_stub,
)

STATUSES = (
    {code: status for status, code in errors.STATUS_AND_CODE.values()}
    | {code: status for status, code in errors.ROUTING_CODES.items()}
    | {errors.INTERNAL_CODE: 500}
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.code}: {case.what[:60]}")
def test_bad_request_is_answered_with_status_code_and_sentence(
    service: Application, case: Case
) -> None:
    content = case.body() if callable(case.body) else case.body
    options = {"content": content, "headers": case.headers, "files": case.files}
    response = service.request(case.method, case.url, **options)
    check_error(response, STATUSES[case.code], case.code, case.sentence)


def test_uncertainty_and_occlusion_refuse_bad_images_as_predict_does(service: Application) -> None:
    for body in (b"", b"{}", instances([]), instances([[[2] * 8] * 8])):
        refused = [
            service.post(route, body, headers=JSON)
            for route in ("/predict", "/uncertainty", "/occlusion")
        ]
        assert refused[0].status_code == 400
        assert len({each.content for each in refused}) == 1


def _several_models(models_folder: Path, tmp_path: Path) -> httpx.Response:
    for name in ("one", "two"):
        copy_bundle(models_folder / "digits" / "1", tmp_path, name)
    with serving_models(tmp_path) as service:
        return service.post("/predict", PICTURE, headers=PNG)


def _no_model(_models_folder: Path, tmp_path: Path) -> httpx.Response:
    with serving_models(tmp_path) as service:
        return service.post("/predict", PICTURE, headers=PNG)


def _two_dropout_layers(models_folder: Path, _tmp_path: Path) -> httpx.Response:
    bundle = open_bundle(models_folder / "digits" / "1")
    predictor = Predictor.open(bundle.path, bundle.manifest.dropout_layers * 2)
    with serving_stub(models_folder, predictor) as service:
        return service.post("/uncertainty?method=analytic", PICTURE, headers=PNG)


def _uncertainty_off(models_folder: Path, _tmp_path: Path) -> httpx.Response:
    with serving_models(models_folder, uncertainty=False) as service:
        return service.post("/uncertainty?anything=1")


def _with_keys(sent: str | None, times: int, _models_folder: Path, folder: Path) -> httpx.Response:
    """Ask for /metrics several times; sent: right, for a key without the scope; wrong, or None."""
    token = add_key(folder / "keys.json", "me", frozenset({"read"}), None)
    key = token if sent == "right" else token[::-1]
    headers = {} if sent is None else {"X-API-Key": key}
    with serving_models(folder, api_keys_file=folder / "keys.json") as service:
        responses = [service.public().get("/metrics", headers=headers) for _ in range(times)]
    return responses[-1]


def _slow_body(models_folder: Path, _tmp_path: Path) -> httpx.Response:
    async def never_ends() -> AsyncIterator[bytes]:
        yield PICTURE[:10]
        await asyncio.Event().wait()

    with serving_models(models_folder, body_timeout_seconds=0.01) as service:
        return service.post("/predict", never_ends(), headers=PNG)


def _too_costly(models_folder: Path, _tmp_path: Path) -> httpx.Response:
    limits = {"inference_timeout_seconds": 0.11, "max_samples": 65_536}
    with serving_models(models_folder, **limits) as service:
        return service.post("/uncertainty?samples=65536", instances([PICTURE] * 8), headers=JSON)


def _costly_body(models_folder: Path, _tmp_path: Path) -> httpx.Response:
    large = encode(np.zeros((4000, 5000), np.uint8))
    with serving_models(models_folder, decode_timeout_seconds=0.02) as service:
        return service.post("/predict", large, headers=PNG)


def _removed_report(models_folder: Path, tmp_path: Path) -> httpx.Response:
    copy = copy_bundle(models_folder / "digits" / "1", tmp_path)
    with serving_models(tmp_path) as service:
        (copy / REPORT_FILE).unlink()
        return service.get("/models/digits/report")


def _slow_run(models_folder: Path, _tmp_path: Path) -> httpx.Response:
    blocking = BlockingPredictor(real_predictor(models_folder))
    with serving_stub(models_folder, blocking, inference_timeout_seconds=0.01) as service:
        response = service.post("/predict", PICTURE, headers=PNG)
        blocking.released.set()
        return response


def _too_many_at_once(models_folder: Path, _tmp_path: Path) -> httpx.Response:
    blocking = BlockingPredictor(real_predictor(models_folder))
    with serving_stub(models_folder, blocking, max_concurrent_requests=2) as service:
        waiting = [service.submit("POST", "/predict", content=PICTURE, headers=PNG)]
        blocking.wait_until_running()
        waiting.append(service.submit("POST", "/predict", content=PICTURE, headers=PNG))
        response = service.post("/predict", PICTURE, headers=PNG)
        assert service.get("/health/ready").status_code == 200, "health must stay visible"
        blocking.released.set()
        assert [len(predictions(each.result())) for each in waiting] == [1, 1]
        return response


def _broken_run(models_folder: Path, _tmp_path: Path) -> httpx.Response:
    with serving_stub(models_folder, BrokenPredictor()) as service:
        return service.post("/predict", PICTURE, headers=PNG)


def _damaged_version(models_folder: Path, tmp_path: Path) -> httpx.Response:
    copy_bundle(models_folder / "digits" / "1", tmp_path)
    with serving_models(tmp_path) as service:
        (copy_bundle(models_folder / "digits" / "1", tmp_path, version=2) / "head.onnx").unlink()
        return service.post("/models/digits/pin?version=2")


Provoke = Callable[[Path, Path], httpx.Response]


def _preflight_of_a_foreign_page(models_folder: Path, _folder: Path) -> httpx.Response:
    headers = {"Origin": "https://foreign.example", "Access-Control-Request-Method": "POST"}
    with serving_models(models_folder, cors_origins="https://example.org") as service:
        return service.public().request("OPTIONS", "/predict", headers=headers)


def _request_to_another_host(models_folder: Path, _folder: Path) -> httpx.Response:
    with serving_models(models_folder, allowed_hosts="example.org") as service:
        return service.public().get("/models")


def _two_requests_in_ten_seconds(models_folder: Path, _folder: Path) -> httpx.Response:
    limit = {"client_requests_per_second": 0.1, "client_burst_seconds": 10}
    with serving_models(models_folder, **limit) as service:
        assert service.public().get("/models").status_code == 200
        return service.public().get("/models")


def _label(
    content: bytes, models_folder: Path, folder: Path, *, damaged: bool = False
) -> httpx.Response:
    """Answer the request "known", and send true labels; damaged: the file is none of feedback."""
    file = folder / "feedback.db"
    if damaged:
        file.write_bytes(b"no database at all" * 1000)
    with serving_models(models_folder, feedback=file) as service:
        service.post("/predict", PICTURE, headers=PNG | {"X-Request-ID": "known"})
        return service.post("/feedback", content, headers=JSON)


def _full_feedback(models_folder: Path, folder: Path) -> httpx.Response:
    """Let the file of feedback have no room by what another program keeps in it."""
    file = folder / "feedback.db"
    FeedbackFile.open(file, LEAST_FEEDBACK_BYTES).close()
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("INSERT INTO pictures VALUES (1, zeroblob(?))", (LEAST_FEEDBACK_BYTES,))
    with serving_models(
        models_folder, feedback=file, feedback_max_bytes=LEAST_FEEDBACK_BYTES
    ) as service:
        return service.post("/feedback?label=3", PICTURE, headers=PNG)


def _no_feedback(models_folder: Path, _folder: Path) -> httpx.Response:
    with serving_models(models_folder) as service:
        return service.post("/feedback", b"{}", headers=JSON)


def _no_label_studio(models_folder: Path, _folder: Path) -> httpx.Response:
    with serving_models(models_folder) as service:
        return service.get("/label-studio/health")


def _label_config(models_folder: Path, _folder: Path) -> httpx.Response:
    with serving_models(models_folder, label_studio="http://127.0.0.1:9") as service:
        return service.post("/label-studio/setup", b'{"schema": "<View/>"}', headers=JSON)


_LABEL = b'{"request_id": "unknown", "label": "3"}'
_UNKNOWN_CLASS = b'{"request_id": "known", "label": "cat"}'
PROVOKED: dict[str, tuple[Provoke, str]] = {
    "key_required": (partial(_with_keys, None, 1), "This needs a key; send it as …"),
    "invalid_key": (partial(_with_keys, "wrong", 10), "This key is not known here, has expired …"),
    "key_scope": (partial(_with_keys, "right", 1), "… needs the scope 'metrics'; ask the …"),
    "too_many_attempts": (
        partial(_with_keys, "wrong", 11),
        "Too many wrong keys came from this address; try again in a minute, with the right one.",
    ),
    "method_unavailable": (
        _two_dropout_layers,
        "The analytic method is for heads with one dropout layer, and this one has 2; …",
    ),
    "model_required": (
        _several_models,
        "Several models are loaded; name one with ?model=, of one, two.",
    ),
    "version_refused": (_damaged_version, "…/2/head.onnx cannot be read (No such file …); …"),
    "not_ready": (_no_model, "… holds no bundle; train one with python -m training."),
    "uncertainty_disabled": (
        _uncertainty_off,
        "POST /uncertainty is switched off on this server; …",
    ),
    "body_timeout": (
        _slow_body,
        "The body did not arrive within 0.01 seconds; send it faster or smaller.",
    ),
    "too_costly": (
        _too_costly,
        "This would take about … seconds, and 0.11 are allowed; …",
    ),
    "body_too_costly": (
        _costly_body,
        "To read this body takes too much time; send fewer, smaller or more simply encoded images.",
    ),
    "no_report": (
        _removed_report,
        "digits version 1 has no report that can be shown; …",
    ),
    "deadline_exceeded": (
        _slow_run,
        "No answer within 0.01 seconds; try again later, with fewer images or samples.",
    ),
    "overloaded": (
        _too_many_at_once,
        "The server answers as many requests as it can already; try again in a second.",
    ),
    "cross_origin": (
        _preflight_of_a_foreign_page,
        "Pages of this origin may not send requests; add it with --cors-origins.",
    ),
    "wrong_host": (
        _request_to_another_host,
        "This service does not answer for the host that the request names; …",
    ),
    "rate_limited": (
        _two_requests_in_ten_seconds,
        "This client may send 0.1 requests a second and has sent more; send the next in 10 s, …",
    ),
    "feedback_disabled": (
        _no_feedback,
        "This server takes no true labels; start it with --feedback FILE.",
    ),
    "label_studio_disabled": (
        _no_label_studio,
        "This server is no backend of a Label Studio; start it with --label-studio URL.",
    ),
    "invalid_label_config": (_label_config, "The label config has no <Choices> over …; write …"),
    "unknown_answer": (partial(_label, _LABEL), "No answer to a request 'unknown' is …; send …"),
    "invalid_label": (
        partial(_label, _UNKNOWN_CLASS),
        "The model 'digits' has no class 'cat'; GET /models lists its classes.",
    ),
    "feedback_unavailable": (
        partial(_label, _LABEL, damaged=True),
        "…/feedback.db is damaged, or no feedback file (…); move it away …",
    ),
    "feedback_full": (_full_feedback, "The file of feedback is full, …; ask the operator to …"),
    "internal_error": (
        _broken_run,
        "The server failed; its log has the reason under this X-Request-ID.",
    ),
}


@pytest.mark.parametrize("code", PROVOKED)
def test_error_of_the_server_state_is_answered_with_status_code_and_sentence(
    models_folder: Path, tmp_path: Path, code: str
) -> None:
    provoke, sentence = PROVOKED[code]
    check_error(provoke(models_folder, tmp_path), STATUSES[code], code, sentence)


def test_full_image_queue_is_answered_503(models_folder: Path) -> None:
    blocking = BlockingPredictor(real_predictor(models_folder))
    pair = instances([PICTURE, PICTURE])
    with serving_stub(models_folder, blocking, max_queue_rows=3) as service:
        waiting = [service.submit("POST", "/predict", content=pair, headers=JSON)]
        blocking.wait_until_running()
        waiting.append(service.submit("POST", "/predict", content=pair, headers=JSON))
        while service.metric("dropserve_queue_rows", model="digits") == 0:
            pass  # its images are being decoded
        refused = service.post("/predict", pair, headers=JSON)
        blocking.released.set()
        assert [len(predictions(each.result())) for each in waiting] == [2, 2]
    sentence = "2 images are waiting already; try again in a second."
    check_error(refused, 503, "overloaded", sentence)


def test_every_error_code_is_provoked_by_a_test() -> None:
    assert {case.code for case in CASES} | set(PROVOKED) == set(STATUSES)


def test_error_classes_and_codes_match_one_to_one() -> None:
    own = set(errors.ServiceError.__subclasses__())
    assert own <= set(errors.STATUS_AND_CODE)
    assert len(STATUSES) == len(errors.STATUS_AND_CODE) + len(errors.ROUTING_CODES) + 1


def test_error_has_the_status_of_its_nearest_base_class() -> None:
    class BlurredImageError(ImageDecodeError):
        pass

    response = error_responses.domain_error_response(BlurredImageError("Send a sharper one."))
    assert (response.status_code, response.body) == (
        400,
        b'{"error":"Send a sharper one.","code":"image_unreadable"}',
    )


def test_domain_error_response_raises_an_error_without_a_status() -> None:
    with pytest.raises(BundleError, match="damaged"):
        error_responses.domain_error_response(BundleError("damaged"))


@pytest.mark.parametrize(
    ("method", "url", "allowed"),
    [
        ("GET", "/predict", "POST"),
        *(
            ("POST", url, "GET, HEAD")
            for url in ("/", "/models", "/models/digits/drift", "/health/live", "/docs", "/v2")
        ),
    ],
)
def test_wrong_method_response_lists_allowed_methods(
    service: Application, method: str, url: str, allowed: str
) -> None:
    assert service.request(method, url).headers["Allow"] == allowed
