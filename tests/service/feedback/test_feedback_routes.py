"""POST /feedback and GET /models/{name}/feedback over a real bundle."""

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest

from service.api.feedback_schemas import MAX_LABELS, FeedbackResults, VersionFeedback
from service.app import create_app
from service.feedback import feedback_recorder
from service.settings import ServiceSettings
from service.traffic_log.image_files import encode_image
from tests.pictures import Pixels, encode, instances
from tests.service.serving import (
    JSON,
    PNG,
    Application,
    check_error,
    metric,
    predictions,
    serving_models,
)


class Labelling(NamedTuple):
    """A service and its file of feedback."""

    service: Application
    file: Path

    def count(self, table: str) -> int:
        with closing(sqlite3.connect(self.file)) as connection:
            number: int = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        return number


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "feedback.db"


@pytest.fixture
def fresh(
    models_folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Application]:
    """A service without any label, whose gauges follow at once."""
    monkeypatch.setattr(feedback_recorder, "_REFRESH_SECONDS", 0.05)
    with serving_models(models_folder, feedback=file) as application:
        yield application


@pytest.fixture(scope="module")
def labelling(models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Labelling]:
    """A service that tests share, so that none may count its labels."""
    file = tmp_path_factory.mktemp("feedback") / "feedback.db"
    with serving_models(models_folder, feedback=file) as application:
        yield Labelling(application, file)


def ask(service: Application, png: bytes, path: str = "/uncertainty") -> tuple[str, Any]:
    """Send an image; return the id of the request and the prediction."""
    answer = service.post(path, png, headers=PNG)
    return answer.headers["X-Request-ID"], predictions(answer)[0]


def send(service: Application, content: Any) -> Any:
    answer = service.post("/feedback", orjson.dumps(content), headers=JSON)
    assert answer.status_code == 200, answer.text
    FeedbackResults.model_validate_json(answer.content)
    return answer.json()["results"]


def figures(service: Application) -> Any:
    answer = service.get("/models/digits/feedback")
    assert answer.status_code == 200, answer.text
    VersionFeedback.model_validate_json(answer.content)
    return answer.json()


def other(label: str) -> str:
    return str((int(label) + 1) % 10)


def test_label_of_an_answer_is_added_kept_and_replaced(fresh: Application, digits: Pixels) -> None:
    request_id, prediction = ask(fresh, encode(digits[0]))
    item = {"request_id": request_id, "label": prediction["label"]}
    outcomes = [send(fresh, item)[0] for _ in range(2)]
    assert [each["outcome"] for each in outcomes] == ["added", "unchanged"]
    assert outcomes[0]["correct"] is True
    assert figures(fresh)["accuracy"]["estimate"] == 1
    replaced = send(fresh, item | {"label": other(prediction["label"])})[0]
    assert (replaced["outcome"], replaced["correct"]) == ("replaced", False)
    found = figures(fresh)
    assert (found["labels"], found["accuracy"]["estimate"]) == (1, 0)
    assert sum(each["labels"] for each in found["bins"]) == 1


def test_figures_are_those_of_the_answers(fresh: Application, digits: Pixels) -> None:
    """What the answers said of themselves, with true labels of which a part is wrong."""
    answers = [ask(fresh, encode(each)) for each in digits[:30]]
    truths = [
        other(said["label"]) if number % 3 == 0 else said["label"]
        for number, (_, said) in enumerate(answers)
    ]
    items = [
        {"request_id": request_id, "label": truth}
        for (request_id, _), truth in zip(answers, truths, strict=True)
    ]
    assert {each["outcome"] for each in send(fresh, items)} == {"added"}
    said = [prediction for _, prediction in answers]
    pairs = list(zip(said, truths, strict=True))
    found = figures(fresh)
    right = [each["label"] == truth for each, truth in pairs]
    covered = [truth in each["prediction_set"] for each, truth in pairs]
    answered = [(each, truth) for each, truth in pairs if not each["abstain"]]
    wrong = sum(each["label"] != truth for each, truth in answered)
    assert found["accuracy"]["estimate"] == pytest.approx(sum(right) / 30)
    assert found["coverage"]["estimate"] == pytest.approx(sum(covered) / 30)
    assert found["answered"]["estimate"] == pytest.approx(len(answered) / 30)
    assert found["error_among_answered"]["estimate"] == pytest.approx(wrong / len(answered))
    confidence = sum(each["confidence"] for each in said) / 30
    assert found["overconfidence"]["estimate"] == pytest.approx(confidence - sum(right) / 30)
    tests = {each["promise"]: each for each in found["tests"]}
    assert (tests["max_risk"]["labels"], tests["max_risk"]["missed"]) == (len(answered), wrong)
    assert tests["coverage"]["coverage"] == 0.9
    assert tests["coverage"]["missed"] == 30 - sum(covered)


def test_broken_promise_raises_the_alarm_in_the_response_and_the_metrics(
    fresh: Application, digits: Pixels
) -> None:
    answer = fresh.post(
        "/uncertainty", instances([encode(each) for each in digits[:60]]), headers=JSON
    )
    request_id = answer.headers["X-Request-ID"]
    items = [
        {"request_id": request_id, "image": number, "label": other(said["label"])}
        for number, said in enumerate(predictions(answer))
    ]
    send(fresh, items)
    found = figures(fresh)
    assert found["alarm"] is True
    assert {each["promise"] for each in found["tests"] if each["alarm"]} == {"max_risk", "coverage"}
    shown = threading.Event()
    while not shown.is_set():
        text = fresh.get("/metrics").text
        labels = {"model": "digits", "version": "1"}
        if metric(text, "dropserve_feedback_alarm", promise="coverage", **labels) == 1:
            shown.set()
        shown.wait(0.05)
    assert metric(text, "dropserve_feedback_labelled_images", **labels) == 60
    accuracy = {"figure": "accuracy", "bound": "high", **labels}
    assert 0 < metric(text, "dropserve_feedback_share", **accuracy) < 0.1
    assert metric(text, "dropserve_feedback_labels_total", outcome="added") == 60


@pytest.mark.parametrize(
    "path", ["/predict", "/v2/models/digits/infer", "/v1/models/digits:predict"]
)
def test_every_route_remembers_its_answers(labelling: Labelling, digits: Pixels, path: str) -> None:
    service = labelling.service
    png = encode(digits[0])
    body: Any = png
    if path.startswith("/v1"):
        body = instances([png])
    if path.startswith("/v2"):
        tensor = {"name": "images", "shape": [1, 1, 8, 8], "datatype": "FP32"}
        body = orjson.dumps({"inputs": [tensor | {"data": [0.0] * 64}]})
    headers = PNG if path == "/predict" else JSON
    answer = service.post(path, body, headers=headers)
    assert answer.status_code == 200, answer.text
    item = {"request_id": answer.headers["X-Request-ID"], "label": "3"}
    assert send(service, item)[0]["outcome"] == "added"


def test_image_with_its_label_is_answered_and_kept_only_where_asked(
    labelling: Labelling, digits: Pixels
) -> None:
    service = labelling.service
    png = encode(digits[0])
    before = labelling.count("pictures")
    for query, kept in (("", 0), ("&keep=false", 0), ("&keep=true", 1), ("&keep=True", 2)):
        answer = service.post(f"/feedback?label=3{query}", png, headers=PNG)
        assert answer.status_code == 200, answer.text
        result = answer.json()["results"][0]
        assert (result["outcome"], result["model"]) == ("added", "digits")
        assert labelling.count("pictures") == before + kept
    assert figures(service)["coverage"] is not None


@pytest.mark.parametrize(("uncertainty", "name"), [(True, "digits-mc"), (False, "digits")])
def test_labelled_images_count_as_a_request_for_the_model(
    models_folder: Path, file: Path, digits: Pixels, uncertainty: bool, name: str
) -> None:
    options = {"feedback": file, "uncertainty": uncertainty}
    with serving_models(models_folder, **options) as service:
        two = instances([encode(each) for each in digits[:2]])
        assert service.post("/feedback?label=3", two, headers=JSON).status_code == 200
        assert service.post("/feedback?label=3", b"no image", headers=PNG).status_code == 400
        (counted,) = service.get(f"/v2/models/{name}/stats").json()["model_stats"]
    assert (counted["inference_count"], counted["execution_count"]) == (2, 1)
    assert counted["inference_stats"]["success"]["count"] == 1
    assert counted["inference_stats"]["fail"]["count"] == 1
    assert counted["last_inference"] > 0


def test_image_that_is_sent_again_under_its_request_id_counts_once(
    labelling: Labelling, digits: Pixels
) -> None:
    service = labelling.service
    headers = PNG | {"X-Request-ID": "retried"}
    answers = [
        service.post("/feedback?label=3", encode(digits[0]), headers=headers) for _ in range(2)
    ]
    outcomes = [each.json()["results"][0]["outcome"] for each in answers]
    assert outcomes == ["added", "unchanged"]


@pytest.mark.parametrize("sent", ["order 17", "a" * 5000])
def test_labelled_image_has_the_request_id_of_the_response(
    labelling: Labelling, digits: Pixels, sent: str
) -> None:
    headers = PNG | {"X-Request-ID": sent}
    answer = labelling.service.post("/feedback?label=3", encode(digits[0]), headers=headers)
    assert answer.json()["results"][0]["request_id"] == answer.headers["X-Request-ID"] != sent


def test_wrong_labels_are_refused_in_a_sentence(labelling: Labelling, digits: Pixels) -> None:
    service = labelling.service
    request_id, prediction = ask(service, encode(digits[0]))
    good = {"request_id": request_id, "label": prediction["label"]}

    def post(content: Any, query: str = "", headers: dict[str, str] = JSON) -> Any:
        body = content if isinstance(content, bytes) else orjson.dumps(content)
        return service.post(f"/feedback{query}", body, headers=headers)

    unknown = post(good | {"request_id": "unheard-of"})
    check_error(unknown, 404, "unknown_answer", "No answer to a request 'unheard-of' …; send …")
    sentence = "The answer to … has 1 images, from number 0, but got number 7."
    check_error(post(good | {"image": 7}), 400, "invalid_label", sentence)
    sentence = "The model 'digits' has no class 'cat'; GET /models lists its classes."
    check_error(post(good | {"label": "cat"}), 400, "invalid_label", sentence)
    check_error(post(encode(digits[0]), "?label=cat", PNG), 400, "invalid_label", sentence)
    for wrong in ({}, *(good | {"image": image} for image in (-1, True, "0", 0.5)), "x", None):
        check_error(post(wrong), 400, "invalid_request", "The body has no true labels: …")
    for labels in ([], [good] * (MAX_LABELS + 1)):
        sentence = f"The body has {len(labels)} true labels; send 1 to 500 in one request."
        check_error(post(labels), 400, "invalid_request", sentence)
    check_error(post(b""), 400, "empty_body", "The request has no body; send true labels, …")
    check_error(post(b"{"), 400, "invalid_json", "The body is not JSON …")
    check_error(post(b"x", "", PNG), 415, "unsupported_media_type", "Labels of earlier answers …")
    check_error(post(good, "?keep=true"), 400, "invalid_query", "Parameter 'keep' is for images; …")
    results = send(service, [good | {"label": "cat"}, good, good | {"request_id": "unheard-of"}])
    assert [each["outcome"] for each in results] == ["refused", "added", "refused"]
    assert [each["code"] for each in results] == ["invalid_label", None, "unknown_answer"]


def test_labels_of_many_clients_at_once_are_all_kept(labelling: Labelling, digits: Pixels) -> None:
    service = labelling.service
    before = labelling.count("labels")
    answers = [ask(service, encode(each)) for each in digits[:20]]

    def label(answer: tuple[str, Any]) -> str:
        request_id, said = answer
        outcome: str = send(service, {"request_id": request_id, "label": said["label"]})[0][
            "outcome"
        ]
        return outcome

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(label, answers)) == {"added"}
    assert labelling.count("labels") == before + 20
    assert figures(service)["labels"] == before + 20


def test_answer_of_an_earlier_process_can_be_labelled(
    models_folder: Path, file: Path, digits: Pixels
) -> None:
    with serving_models(models_folder, feedback=file) as service:
        request_id, said = ask(service, encode(digits[0]))
    with serving_models(models_folder, feedback=file) as service:
        item = {"request_id": request_id, "label": said["label"]}
        assert [send(service, item)[0]["outcome"] for _ in range(2)] == ["added", "unchanged"]
        assert figures(service)["labels"] == 1


def test_answers_beyond_the_limit_are_forgotten_and_their_labels_stay(
    models_folder: Path, file: Path, digits: Pixels
) -> None:
    with serving_models(models_folder, feedback=file, feedback_max_answers=2) as service:
        first, said = ask(service, encode(digits[0]))
        item = {"request_id": first, "label": said["label"]}
        send(service, item)
        for _ in range(3):
            ask(service, encode(digits[0]))
        figures(service)  # after which the answers are in the file
        answer = service.post("/feedback", orjson.dumps(item), headers=JSON)
        check_error(answer, 404, "unknown_answer", "No answer …; send …")
        assert figures(service)["labels"] == 1


def test_without_feedback_the_routes_say_how_to_have_it(service: Application) -> None:
    sentence = "This server takes no true labels; start it with --feedback FILE."
    for answer in (
        service.post("/feedback", b"{}", headers=JSON),
        service.get("/models/digits/feedback"),
    ):
        check_error(answer, 404, "feedback_disabled", sentence)


def test_openapi_describes_both_routes_where_there_is_feedback(tmp_path: Path) -> None:
    description = create_app(ServiceSettings(feedback=tmp_path / "f.db")).openapi()
    post = description["paths"]["/feedback"]["post"]
    assert {"200", "400", "404", "413", "503", "507", "default"} <= set(post["responses"])
    content = post["requestBody"]["content"]
    assert set(content) >= {"application/json", "image/png", "multipart/form-data"}
    label = description["components"]["schemas"]["LabelOfAnswer"]
    assert set(label["properties"]) == {"request_id", "image", "label"}
    get = description["paths"]["/models/{name}/feedback"]["get"]
    assert get["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith(
        "VersionFeedback"
    )


def test_kept_images_are_not_encoded_on_the_event_loop(
    labelling: Labelling, digits: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode_elsewhere(image: Any) -> tuple[str, bytes]:
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        return encode_image(image)

    monkeypatch.setattr("service.api.feedback.encode_image", encode_elsewhere)
    answer = labelling.service.post("/feedback?label=3&keep=true", encode(digits[0]), headers=PNG)
    assert answer.status_code == 200, answer.text
