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
from training.data import Part

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
def folder(tmp_path_factory: pytest.TempPathFactory, held_out: Part) -> Path:
    """Where the commands are typed: it has the `digit.png` that the documents speak of."""
    folder = tmp_path_factory.mktemp("user")
    Image.fromarray(held_out.images[0, 0]).save(folder / "digit.png")
    return folder


def shape(value: Any) -> Any:
    """What stays the same from one training to the next: names and types, not figures."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    if isinstance(value, list):
        return [shape(each) for each in value[:1]]
    return "number" if isinstance(value, int | float) else type(value).__name__


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
        assert shape(answer) == shape(expected)


def test_there_are_examples_of_every_route_that_takes_or_tells_something() -> None:
    commands = " ".join(example.values[0][0] for example in examples())
    for route in ("/predict", "/uncertainty", "/models", "/health/ready", "/v2/", "/v1/"):
        assert f"localhost:8000{route}" in commands
