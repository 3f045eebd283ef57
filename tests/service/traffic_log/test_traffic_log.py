"""The traffic log of a service: what it holds, and that it neither fails nor slows a request."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from structlog.testing import capture_logs

from service.keys.key_file_changes import add_key
from service.observability.metrics_recorder import Metrics
from service.traffic_log.log_folder import LogFolder, LogLimits
from service.traffic_log.log_reading import read_lines
from service.traffic_log.traffic_log import TrafficLog
from service.traffic_log.traffic_record import (
    MAX_LOGGED_CLASSES,
    Subject,
    TrafficLine,
    encode_answer,
    image_digest,
)
from tests.pictures import Pixels, encode, instances, numbers
from tests.service.serving import JSON, PNG, Application, metric, serving_models, wait

SUBJECT = Subject("/predict", "digits", "1", np.zeros((1, 1, 8, 8), np.float32), None)
ROW = {"label": "3", "confidence": 0.75, "probabilities": {"3": 0.75, "4": 0.25}}
LIMITS = LogLimits(2**20, 3600, 2**22, store_images=False)


class StuckFolder(LogFolder):
    """A folder whose disk does not answer until `released` is set."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, LIMITS)
        self.reached, self.released = threading.Event(), threading.Event()

    def append(self, lines: Sequence[TrafficLine]) -> tuple[int, int]:
        self.reached.set()
        wait(self.released)
        return super().append(lines)


def note(log: TrafficLog) -> None:
    log.note(SUBJECT, lambda: [ROW], numbers=2)


def outcomes(metrics: Metrics) -> dict[str, float]:
    text = metrics.render().decode()
    name = "dropserve_traffic_log_lines_total"
    return {each: metric(text, name, outcome=each) for each in ("written", "dropped")}


def logged(folder: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line, _ in read_lines(folder)]


@pytest.fixture(scope="module")
def lines(
    models_folder: Path, digit: Pixels, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[dict[str, Any], Any]]:
    """The first line of a request to each route, and the answer that its client got."""
    folder = tmp_path_factory.mktemp("traffic")
    tensor = {"name": "images", "datatype": "FP32", "shape": [1, 1, 8, 8]}
    infer = orjson.dumps({"inputs": [tensor | {"data": (digit / 255).ravel().tolist()}]})
    requests: dict[str, tuple[Any, dict[str, str]]] = {
        "/predict": (encode(digit), PNG),
        "/uncertainty?samples=32&seed=5&coverage=0.8": (encode(digit), PNG),
        "/uncertainty?samples=auto": (encode(digit), PNG),
        "/uncertainty?method=analytic": (encode(digit), PNG),
        "/v2/models/digits/infer": (infer, JSON),
        "/v2/models/digits-mc/infer": (infer, JSON),
        "/v1/models/digits:predict": (instances([numbers(digit)] * 2), JSON),
        "/v1/models/digits-mc:predict": (instances([numbers(digit)] * 2), JSON),
    }
    answers: dict[str, Any] = {}
    with serving_models(models_folder, traffic_log=folder) as application:
        for number, (url, (body, headers)) in enumerate(requests.items()):
            identified = headers | {"X-Request-ID": f"id-{number}"}
            answers[url] = application.post(url, body, headers=identified).json()
        application.post("/predict", b"no image", headers=PNG)
        images = len(requests) + 2  # two requests have two images
        while application.metric("dropserve_traffic_log_lines_total", outcome="written") < images:
            pass  # the thread of the log writes them; the test's timeout ends a wait in vain
    found: dict[str, dict[str, Any]] = {}
    for line in logged(folder):
        found.setdefault(line["request_id"], line)
    assert len(logged(folder)) == images
    return {url: (found[f"id-{number}"], answers[url]) for number, url in enumerate(requests)}


def test_line_of_every_route_says_what_was_asked(
    lines: dict[str, tuple[dict[str, Any], Any]], digit: Pixels
) -> None:
    digest = image_digest((digit / np.float32(255)).astype(np.float32)[np.newaxis])
    for url, (line, _) in lines.items():
        assert (line["model"], line["version"], line["row"]) == ("digits", "1", 0)
        assert line["key_name"] is None  # no key is needed here
        assert line["digest"] == digest
        assert line["time"].endswith("Z")
        assert line["route"].replace("{name}", "digits") == url.partition("?")[0].replace("-mc", "")
        assert (line["options"] is None) == ("uncertainty" not in url and "-mc" not in url)


def test_line_has_the_very_numbers_of_the_answer(
    lines: dict[str, tuple[dict[str, Any], Any]],
) -> None:
    for url in list(lines)[:4]:
        line, answer = lines[url]
        (prediction,) = answer["predictions"]
        assert line["answer"] == {name: prediction[name] for name in line["answer"]}
        doubt = dict(line["doubt"])
        sets = doubt.pop("set_size", None)
        assert doubt == {name: prediction[name] for name in doubt}
        assert sets is None or sets == len(prediction["prediction_set"])
    line, answer = lines["/v2/models/digits-mc/infer"]
    outputs = {each["name"]: each["data"] for each in answer["outputs"]}
    assert list(line["answer"]["probabilities"].values()) == outputs["mean_probabilities"]
    assert line["doubt"]["mutual_information"] == outputs["mutual_information"][0]
    assert line["doubt"]["abstain"] == outputs["abstain"][0]
    line, answer = lines["/v1/models/digits:predict"]
    assert (
        list(line["answer"]["probabilities"].values()) == answer["predictions"][0]["probabilities"]
    )
    assert line["doubt"] == {}


def test_options_say_how_the_answer_was_sampled(
    lines: dict[str, tuple[dict[str, Any], Any]],
) -> None:
    options = lines["/uncertainty?samples=32&seed=5&coverage=0.8"][0]["options"]
    assert (options["samples"], options["seed"], options["coverage"]) == (32, 5, 0.8)
    assert lines["/uncertainty?samples=auto"][0]["options"]["samples"] == "auto"
    assert lines["/uncertainty?method=analytic"][0]["options"]["method"] == "analytic"


def test_line_of_many_classes_has_the_likeliest_ones() -> None:
    names = [str(number) for number in range(100)]
    probabilities = dict(zip(names, np.linspace(0, 0.02, 100).tolist(), strict=True))
    row = {"label": "99", "confidence": 0.02, "probabilities": probabilities}
    line = orjson.loads(b"{" + encode_answer(row | {"prediction_set": names})[1:])
    assert list(line["answer"]["probabilities"]) == names[: -MAX_LOGGED_CLASSES - 1 : -1]
    assert line["doubt"] == {"prediction_set": names[:MAX_LOGGED_CLASSES], "set_size": 100}


@pytest.mark.parametrize("url", ["/predict", "/uncertainty"])
def test_line_names_the_key_of_the_request(
    url: str, models_folder: Path, tmp_path: Path, digit: Pixels
) -> None:
    keys, folder = tmp_path / "keys", tmp_path / "log"
    headers = PNG | {"X-API-Key": add_key(keys, "alice", frozenset({"predict"}), None)}
    with serving_models(models_folder, api_keys_file=keys, traffic_log=folder) as application:
        assert application.public().post(url, encode(digit), headers=headers).status_code == 200
    assert [line["key_name"] for line in logged(folder)] == ["alice"]


def test_answers_beyond_the_queue_are_dropped_and_counted(tmp_path: Path) -> None:
    folder, metrics = StuckFolder(tmp_path), Metrics()
    log = TrafficLog(folder, metrics, max_waiting_bytes=10_000)
    log.start()
    note(log)
    wait(folder.reached)
    for _ in range(20):
        note(log)  # which returns, although the disk does not answer
    dropped = outcomes(metrics)["dropped"]
    assert 10 < dropped < 20
    folder.released.set()
    log.close()
    assert outcomes(metrics) == {"written": 21 - dropped, "dropped": dropped}
    assert len(logged(tmp_path)) == 21 - dropped


def test_disk_that_refuses_is_one_warning_and_a_count(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    metrics = Metrics()
    log = TrafficLog(LogFolder(tmp_path / "file" / "log", LIMITS), metrics)
    with capture_logs() as entries:
        log.start()
        for _ in range(3):
            note(log)
        log.close()
    assert [each["event"] for each in entries] == ["traffic log cannot be written"]
    assert outcomes(metrics) == {"written": 0, "dropped": 3}


def test_answer_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    metrics = Metrics()
    log = TrafficLog(LogFolder(tmp_path, LIMITS), metrics)
    log.start()
    log.note(SUBJECT, lambda: [{"label": "3"}], numbers=2)
    note(log)
    log.close()
    assert outcomes(metrics) == {"written": 1, "dropped": 1}


def test_service_without_a_traffic_log_writes_none(service: Application, digit: Pixels) -> None:
    assert service.post("/predict", encode(digit), headers=PNG).status_code == 200
    assert service.metric("dropserve_traffic_log_lines_total", outcome="written") == 0
