"""Every `$ curl` of README and docs runs against a real server and answers in the printed shape."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.service.process import ServiceProcess, service_process
from training.data.dataset import Split

DOCUMENTS = ("README.md", "docs/http-api.md", "docs/open-inference.md")
Example = tuple[str, str]


def examples() -> list[Any]:
    """Each console block of the documents: what is typed, and what is printed."""
    found = []
    for document in DOCUMENTS:
        for block in re.findall(r"```console\n(.*?)```", (ROOT / document).read_text(), re.DOTALL):
            typed, start, printed = re.split(r"\n([{\[])", block.removeprefix("$ "), maxsplit=1)
            found.append(pytest.param((typed, start + printed), id=f"{document}: {typed[:60]}"))
    return found


@pytest.fixture(scope="module")
def server(models_folder: Path) -> Iterator[ServiceProcess]:
    with service_process(models_folder) as process:
        yield process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, held_out: Split) -> Path:
    """Where the commands are typed: it has the `digit.png` that the documents speak of."""
    folder = tmp_path_factory.mktemp("user")
    Image.fromarray(held_out.images[0, 0]).save(folder / "digit.png")
    return folder


def has_form(answer: Any, printed: Any) -> bool:
    """Whether two answers have the same names and types, whatever the figures.

    What is trained on another processor has other digits, and may decide otherwise: a set of
    classes may be empty where the document shows one, and no list need be as long as the other.
    """
    match printed:
        case dict():
            names = isinstance(answer, dict) and answer.keys() == printed.keys()
            return names and all(has_form(answer[name], each) for name, each in printed.items())
        case list():
            is_list = isinstance(answer, list) and (bool(answer) or not _holds_objects(printed))
            return is_list and all(any(has_form(each, one) for one in printed) for each in answer)
        case bool() | str() | None:
            return type(answer) is type(printed)
        case _:
            return isinstance(answer, int | float) and not isinstance(answer, bool)


def _holds_objects(items: list[Any]) -> bool:
    return any(isinstance(each, dict) for each in items)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("example", examples())
def test_an_example_prints_what_the_document_says(
    example: Example, server: ServiceProcess, folder: Path
) -> None:
    command, printed = example
    assert command.startswith("curl ")
    command = command.replace("localhost:8000", f"127.0.0.1:{server.port}")
    done = subprocess.run(
        ["bash", "-c", command.replace("curl ", "curl --silent --show-error ", 1)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer, expected = json.loads(done.stdout), json.loads(printed)
    if isinstance(expected, dict) and "error" in expected:
        assert answer == expected
    else:
        assert has_form(answer, expected), done.stdout


def test_there_are_examples_of_every_route_that_takes_or_tells_something() -> None:
    commands = " ".join(example.values[0][0] for example in examples())
    for route in ("/predict", "/uncertainty", "/models", "/health/ready", "/v2/", "/v1/"):
        assert f"localhost:8000{route}" in commands


PRINTED = {
    "label": "0",
    "confidence": 0.9,
    "abstain": False,
    "prediction_set": ["0"],
    "canary": None,
}


@pytest.mark.parametrize(
    "change",
    [
        {"label": "7"},
        {"confidence": 1},
        {"abstain": True},
        {"prediction_set": []},
        {"prediction_set": ["3", "8"]},
    ],
)
def test_an_answer_may_decide_otherwise_than_the_document(change: dict[str, Any]) -> None:
    assert has_form(PRINTED | change, PRINTED)
    assert has_form([PRINTED | change], [PRINTED])


@pytest.mark.parametrize(
    "change",
    [
        {"label": 0},
        {"confidence": "0.9"},
        {"confidence": True},
        {"abstain": 0},
        {"abstain": None},
        {"canary": "2"},
        {"prediction_set": [3]},
        {"prediction_set": "0"},
        {"more": 1},
    ],
)
def test_an_answer_of_another_form_is_noticed(change: dict[str, Any]) -> None:
    assert not has_form(PRINTED | change, PRINTED)
    without = {name: each for name, each in PRINTED.items() if name != "label"}
    assert not has_form(without, PRINTED)


def test_an_answer_without_any_prediction_is_noticed() -> None:
    assert not has_form([], [PRINTED])
