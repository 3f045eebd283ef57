"""A stock Label Studio is connected, asks for predictions, orders by them, and sends annotations.

Run with `make label-studio-test`.
"""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import orjson
import pytest

from service.keys.key_file_changes import add_key
from tests.pictures import Pixels, encode
from tests.service.label_studio.label_studio_process import LabelStudio, running_label_studio
from tests.service.process import ServiceProcess, service_process

pytestmark = [pytest.mark.label_studio, pytest.mark.timeout(400)]

CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="digit" toName="image">'
    + "".join(f'<Choice value="{number}"/>' for number in range(10))
    + "</Choices></View>"
)
IMAGES = 6


class Connected(NamedTuple):
    """A Label Studio project with tasks, and the service that it is connected to."""

    studio: LabelStudio
    service: ServiceProcess
    key: str
    project: int
    tasks: list[int]
    images: Pixels

    def answer(self, pixels: Pixels) -> Any:
        """Return what the service says of an image by itself."""
        response = httpx.post(
            f"{self.service.url}/uncertainty",
            content=encode(pixels),
            headers={"Content-Type": "image/png", "X-API-Key": self.key},
        )
        return response.json()["predictions"][0]

    def predictions(self) -> dict[int, Any]:
        """Return the prediction of each task in Label Studio."""
        found = self.studio.get("/api/predictions", project=self.project)
        return {each["task"]: each for each in found}


@pytest.fixture(scope="module")
def studio() -> Iterator[LabelStudio]:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    with running_label_studio(port) as running:
        yield running


@pytest.fixture(scope="module")
def connected(
    studio: LabelStudio,
    models_folder: Path,
    digits: Pixels,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Connected]:
    """A project whose backend is the service, with a key, as docs/label-studio.md describes it."""
    folder = tmp_path_factory.mktemp("label-studio")
    token, keys = folder / "token", folder / "keys.json"
    token.write_text(studio.personal_access_token())
    key = add_key(keys, "label-studio", frozenset({"predict", "read"}), days=None)
    options = [
        *("--label-studio", studio.url, "--label-studio-token-file", str(token)),
        *("--feedback", str(folder / "feedback.db"), "--api-keys-file", str(keys)),
    ]
    project = studio.send("POST", "/api/projects", {"title": "digits", "label_config": CONFIG})
    number = project["id"]
    images = digits[:IMAGES]
    tasks = studio.upload(number, {f"{at}.png": encode(each) for at, each in enumerate(images)})
    foreign = [{"image": "http://169.254.169.254/latest/a.png"}]
    studio.send("POST", f"/api/projects/{number}/import", foreign)
    with service_process(models_folder, *options) as service:
        backend = {
            "url": f"{service.url}/label-studio",
            "project": number,
            "title": "dropserve",
            "is_interactive": True,
            "auth_method": "BASIC_AUTH",
            "basic_auth_user": "key",
            "basic_auth_pass": key,
        }
        studio.send("POST", "/api/ml", backend)
        (webhook,) = studio.get("/api/webhooks", project=number)
        studio.send("PATCH", f"/api/webhooks/{webhook['id']}", {"headers": {"X-API-Key": key}})
        everything = {"selectedItems": {"all": True, "excluded": []}}
        studio.send(
            "POST",
            f"/api/dm/actions?id=retrieve_tasks_predictions&project={number}",
            everything,
        )
        chosen = {"model_version": "digits@1", "sampling": "Uncertainty sampling"}
        studio.send("PATCH", f"/api/projects/{number}", chosen)
        yield Connected(studio, service, key, number, tasks, images)


def test_backend_is_connected(connected: Connected) -> None:
    (backend,) = connected.studio.get("/api/ml", project=connected.project)
    assert (backend["readable_state"], backend["model_version"]) == ("Connected", "digits@1")


def test_uploaded_images_are_pre_annotated(connected: Connected) -> None:
    predictions = connected.predictions()
    assert sorted(predictions) == connected.tasks
    for task, image in zip(connected.tasks, connected.images, strict=True):
        said, prediction = connected.answer(image), predictions[task]
        (result,) = prediction["result"]
        assert result["value"] == {"choices": [said["label"]]}
        assert result["meta"]["text"][0].startswith(f"confidence {said['confidence']:.4f}")
        assert prediction["score"] == pytest.approx(said["confidence"])
        assert prediction["model_version"] == "digits@1"


def test_foreign_image_is_not_fetched(connected: Connected) -> None:
    line = connected.service.wait_for("tasks not pre-annotated")
    assert line["tasks"] == 1
    assert "only files of http://127.0.0.1" in line["reason"]


def test_task_that_somebody_opens_is_predicted(connected: Connected) -> None:
    (backend,) = connected.studio.get("/api/ml", project=connected.project)
    path = f"/api/ml/{backend['id']}/interactive-annotating"
    found = connected.studio.send("POST", path, {"task": connected.tasks[0]})
    said = connected.answer(connected.images[0])
    assert found["data"]["result"][0]["value"] == {"choices": [said["label"]]}


def test_tasks_are_ordered_by_doubt(connected: Connected) -> None:
    scores = {task: each["score"] for task, each in connected.predictions().items()}
    query = orjson.dumps({"ordering": ["tasks:predictions_score"]}).decode()
    listed = connected.studio.get("/api/tasks", project=connected.project, query=query)["tasks"]
    found = [scores.get(each["id"]) for each in listed]
    assert found == [*sorted(scores.values()), None], "the foreign image has no prediction"


def test_next_task_is_the_one_of_greatest_doubt(connected: Connected) -> None:
    scores = {task: each["score"] for task, each in connected.predictions().items()}
    following = connected.studio.get(f"/api/projects/{connected.project}/next")
    assert following["id"] == min(scores, key=scores.__getitem__)


def test_annotations_arrive_as_feedback(connected: Connected) -> None:
    task = connected.tasks[0]
    said = connected.predictions()[task]["result"]
    path = f"/api/tasks/{task}/annotations"
    annotation = connected.studio.send("POST", path, {"result": said})
    assert feedback(connected)["accuracy"]["estimate"] == 1
    label = int(said[0]["value"]["choices"][0])
    other = [{**said[0], "value": {"choices": [str((label + 1) % 10)]}}]
    connected.studio.send("PATCH", f"/api/annotations/{annotation['id']}", {"result": other})
    found = feedback(connected)
    assert (found["labels"], found["accuracy"]["estimate"]) == (1, 0)


def feedback(connected: Connected) -> Any:
    answer = httpx.get(
        f"{connected.service.url}/models/digits/feedback", headers={"X-API-Key": connected.key}
    )
    assert answer.is_success, answer.text
    return answer.json()


def test_wrong_key_is_told(connected: Connected) -> None:
    content = {"url": f"{connected.service.url}/label-studio", "project": connected.project}
    with pytest.raises(AssertionError, match="authentication parameters were either not provided"):
        connected.studio.send("POST", "/api/ml", content)
