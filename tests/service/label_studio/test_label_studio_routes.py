"""/label-studio/… over a real bundle, with bodies as Label Studio 1.23 sends them."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.bundles import copy_bundle
from tests.pictures import Pixels, encode
from tests.service.serving import JSON, PNG, Application, check_error, predictions, serving_models

CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="digit" toName="image">'
    + "".join(f'<Choice value="{number}"/>' for number in range(10))
    + "</Choices></View>"
)
STUDIO = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def backend(models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    file = tmp_path_factory.mktemp("feedback") / "feedback.db"
    with serving_models(models_folder, label_studio=STUDIO, feedback=file) as application:
        yield application


def send(backend: Application, route: str, content: Any) -> Any:
    answer = backend.post(f"/label-studio/{route}", orjson.dumps(content), headers=JSON)
    assert answer.status_code == 200, answer.text
    return answer.json()


def task(number: int, pixels: Pixels) -> dict[str, Any]:
    encoded = base64.b64encode(encode(pixels)).decode()
    return {"id": number, "data": {"image": f"data:image/png;base64,{encoded}"}, "meta": {}}


def tasks(*items: Any, config: str = CONFIG) -> dict[str, Any]:
    params = {"login": None, "password": None, "context": None}
    return {"tasks": items, "project": "1.1", "label_config": config, "params": params}


def annotation(number: int, choice: str, **fields: Any) -> dict[str, Any]:
    value = {"value": {"choices": [choice]}, "type": "choices", "from_name": "digit"}
    return {"id": 1, "task": number, "was_cancelled": False, "result": [value], **fields}


def event(*annotations: Any, action: str = "ANNOTATION_CREATED") -> dict[str, Any]:
    content = annotations[0] if len(annotations) == 1 else annotations
    return {"action": action, "annotation": content, "project": {"label_config": CONFIG}}


def test_health_and_setup_name_the_model(backend: Application) -> None:
    assert backend.get("/label-studio/health").json() == {"status": "UP", "model_class": "digits"}
    body = {"project": "1.1", "schema": CONFIG, "hostname": "http://x", "access_token": "secret"}
    for prefix in ("", "models/digits/"):
        assert send(backend, f"{prefix}setup", body) == {"model_version": "digits@1"}


def test_canary_never_answers_label_studio(bundle_folder: Path, tmp_path: Path) -> None:
    for version in (1, 2):
        copy_bundle(bundle_folder, tmp_path, version=version)
    with serving_models(tmp_path, label_studio=STUDIO) as service:
        service.post("/models/digits/canary?version=1&share=1").raise_for_status()
        body = {
            "project": "1.1",
            "schema": CONFIG,
            "hostname": "http://x",
            "access_token": "secret",
        }
        assert send(service, "setup", body) == {"model_version": "digits@2"}


def test_pre_annotations_are_the_answers_of_uncertainty(
    backend: Application, digits: Pixels
) -> None:
    images = digits[:70]  # more than a request of POST /uncertainty may have
    found = send(backend, "predict", tasks(*(task(n, each) for n, each in enumerate(images, 100))))
    assert found["errors"] == []
    assert len(found["results"]) == len(images)
    for image, prediction in zip(images[:5], found["results"][:5], strict=True):
        said = predictions(backend.post("/uncertainty", encode(image), headers=PNG))[0]
        (result,) = prediction["result"]
        assert prediction["model_version"] == "digits@1"
        assert prediction["score"] == result["score"] == pytest.approx(said["confidence"])
        assert (result["from_name"], result["to_name"], result["type"]) == (
            *("digit", "image"),
            "choices",
        )
        assert result["value"] == {"choices": [said["label"]]}
        assert f"mutual information {said['mutual_information']:.4f}" in result["meta"]["text"][0]


def test_tasks_count_as_a_request_for_the_model(models_folder: Path, digits: Pixels) -> None:
    with serving_models(models_folder, label_studio=STUDIO) as service:
        unreadable = {"id": 1, "data": {}}
        readable = [task(number, each) for number, each in enumerate(digits[:3], 2)]
        send(service, "predict", tasks(unreadable, *readable))
        (counted,) = service.get("/v2/models/digits-mc/stats").json()["model_stats"]
    assert (counted["inference_count"], counted["execution_count"]) == (3, 1)
    assert counted["inference_stats"]["success"]["count"] == 1
    assert counted["last_inference"] > 0


def test_task_without_a_readable_image_gets_a_sentence(
    backend: Application, digits: Pixels
) -> None:
    bad = [
        {"id": 1, "data": {}},
        {"id": 2, "data": {"image": "http://169.254.169.254/latest"}},
        {"id": 3, "data": {"image": f"{STUDIO}/data/upload/1/a.png"}},
        {"id": 4, "data": {"image": "data:image/png;base64,AAAA"}},
    ]
    found = send(backend, "predict", tasks(*bad, task(5, digits[0])))
    assert found["results"][:4] == [[]] * 4
    assert len(found["results"][4]["result"]) == 1
    assert [each[:7] for each in found["errors"]] == [f"Task {each['id']}:" for each in bad]


def test_class_without_a_choice_gets_a_sentence(backend: Application, digits: Pixels) -> None:
    (said,) = send(backend, "predict", tasks(task(6, digits[0])))["results"]
    label = said["result"][0]["value"]["choices"][0]
    others = CONFIG.replace(f'<Choice value="{label}"/>', "")
    found = send(backend, "predict", tasks(task(6, digits[0]), config=others))
    assert found["results"] == [[]]
    assert found["errors"] == [f"Task 6: the label config has no choice for the class '{label}'."]


def test_annotations_are_true_labels(backend: Application, digits: Pixels) -> None:
    send(backend, "predict", tasks(task(21, digits[0]), task(22, digits[1])))
    (added,) = send(backend, "webhook", event(annotation(21, "3")))["results"]
    assert (added["request_id"], added["outcome"]) == ("label-studio-21-digits", "added")
    changed = event(annotation(21, "4"), annotation(22, "4"), action="ANNOTATIONS_CREATED")
    outcomes = [each["outcome"] for each in send(backend, "webhook", changed)["results"]]
    assert outcomes == ["replaced", "added"]


def test_annotation_of_a_task_that_was_not_predicted_is_refused(backend: Application) -> None:
    (refused,) = send(backend, "webhook", event(annotation(99_999, "3")))["results"]
    assert (refused["outcome"], refused["code"]) == ("refused", "unknown_answer")


@pytest.mark.parametrize(
    "content",
    [
        event(annotation(21, "3", was_cancelled=True)),
        event(annotation(21, "cat")),
        event(annotation(21, "3", result=[])),
        event(annotation(21, "3", result=[{"from_name": "box", "value": {"x": 1}}])),
        {"action": "START_TRAINING", "project": {}},
        {"action": "TASKS_DELETED", "tasks": [{"id": 1}]},
    ],
)
def test_event_without_a_class_changes_nothing(backend: Application, content: Any) -> None:
    assert send(backend, "webhook", content)["results"] == []


@pytest.mark.parametrize(
    ("route", "content", "code", "sentence"),
    [
        (
            "setup",
            {"schema": "<View/>"},
            "invalid_label_config",
            "The label config has no <Choices>…",
        ),
        ("setup", {}, "invalid_request", "The body is none that…"),
        (
            "predict",
            {"tasks": [{"id": -1, "data": {}}], "label_config": CONFIG},
            "invalid_request",
            "The body is none that…",
        ),
        (
            "predict",
            {"tasks": {}, "label_config": CONFIG},
            "invalid_request",
            "The body is none that…",
        ),
        ("predict", [], "invalid_request", "The body is none that…"),
        ("webhook", {"action": "ANNOTATION_CREATED"}, "invalid_request", "The body is none that…"),
    ],
)
def test_body_that_label_studio_does_not_send_is_refused(
    backend: Application, route: str, content: Any, code: str, sentence: str
) -> None:
    answer = backend.post(f"/label-studio/{route}", orjson.dumps(content), headers=JSON)
    check_error(answer, 400, code, sentence)


def test_labels_need_a_file_of_feedback(models_folder: Path) -> None:
    with serving_models(models_folder, label_studio=STUDIO) as application:
        content = orjson.dumps(event(annotation(1, "3")))
        answer = application.post("/label-studio/webhook", content, headers=JSON)
        check_error(answer, 404, "feedback_disabled", "…with --feedback FILE.")


@pytest.mark.parametrize("route", ["health", "setup", "predict", "webhook"])
def test_service_is_no_backend_unless_asked(service: Application, route: str) -> None:
    answer = service.request("GET" if route == "health" else "POST", f"/label-studio/{route}")
    check_error(answer, 404, "label_studio_disabled", "…start it with --label-studio URL.")


def test_web_page_cannot_send_labels_as_text(backend: Application) -> None:
    content = orjson.dumps(event(annotation(21, "3")))
    answer = backend.post("/label-studio/webhook", content, headers={"Content-Type": "text/plain"})
    check_error(answer, 415, "unsupported_media_type", "Label Studio sends application/json; …")


def test_request_of_many_tasks_is_taken_up_to_a_limit(backend: Application) -> None:
    few = tasks(*[{"id": number, "data": {}} for number in range(2000)])
    assert send(backend, "predict", few)["results"] == [[]] * 2000
    many = orjson.dumps(tasks(*[{"id": number, "data": {}} for number in range(4097)]))
    answer = backend.post("/label-studio/predict", many, headers=JSON)
    check_error(answer, 400, "invalid_request", "…tasks: list should have at most 4096 items …")
    large = orjson.dumps(tasks({"id": 1, "data": {"image": "a" * 2**21}}))
    answer = backend.post("/label-studio/predict", large, headers=JSON)
    check_error(answer, 413, "body_too_large", "The body is larger than 2,097,152 bytes…")


def test_task_that_is_predicted_again_counts_once(backend: Application, digits: Pixels) -> None:
    def label(choice: str) -> str:
        send(backend, "predict", tasks(task(31, digits[0])))
        outcome: str = send(backend, "webhook", event(annotation(31, choice)))["results"][0][
            "outcome"
        ]
        return outcome

    assert [label(each) for each in ("3", "3", "4")] == ["added", "unchanged", "replaced"]


@pytest.mark.parametrize("route", ["setup", "predict", "webhook"])
def test_body_of_very_many_empty_objects_is_refused_unparsed(
    backend: Application, route: str
) -> None:
    content = b'{"tasks": [' + b"{}," * 70_000 + b"no JSON"
    answer = backend.post(f"/label-studio/{route}", content, headers=JSON)
    check_error(answer, 413, "body_too_large", "…lists and objects, the most that is taken here; …")


def test_webhook_of_a_thousand_annotations_is_taken(backend: Application) -> None:
    many = event(*(annotation(number, "3") for number in range(50_000, 51_000)))
    assert len(send(backend, "webhook", many)["results"]) == 1000
