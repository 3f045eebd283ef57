"""Every `$ curl` of README and docs runs against a real server; its response has the printed form.

`…` in a printed object stands for fields that the document leaves out. Python snippets of the
README run too; those of docs/open-inference.md need other clients and run in `tests/clients`.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import ROOT
from tests.service.process import ServiceProcess, service_process
from training.data.dataset import Split

DOCUMENTS = ("README.md", "docs/http-api.md", "docs/open-inference.md")
ELISION = "…"
REASON = "abstain_because"
"""A field that is null or a text, as the model decides."""
Example = tuple[str, str]


def examples() -> list[Any]:
    """Return each console block of the documents: the command, and the printed response."""
    found = []
    for document in DOCUMENTS:
        for block in re.findall(r"```console\n(.*?)```", (ROOT / document).read_text(), re.DOTALL):
            typed, start, printed = re.split(r"\n([{\[])", block.removeprefix("$ "), maxsplit=1)
            found.append(pytest.param((typed, start + printed), id=f"{document}: {typed[:60]}"))
    return found


def snippets() -> list[str]:
    """Return the Python code blocks of the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture(scope="module")
def server(
    models_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    file = tmp_path_factory.mktemp("feedback") / "feedback.db"
    with service_process(models_folder, "--feedback", str(file)) as process:
        yield process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, held_out: Split) -> Path:
    """Return the folder in which the commands run; it has the `digit.png` that they send."""
    folder = tmp_path_factory.mktemp("user")
    Image.fromarray(held_out.images[0, 0]).save(folder / "digit.png")
    return folder


def parse_printed(printed: str) -> Any:
    """Parse a printed response; `…` in an object becomes a key of that name."""
    return json.loads(re.sub(rf"{ELISION}(?=[,}}])", f'"{ELISION}": null', printed))


def has_form(response: Any, printed: Any) -> bool:
    """Return whether two responses have the same names and types; numbers may differ.

    A model trained on another processor gives other digits and may decide otherwise: lists may have
    other lengths, and where the document shows a reason to abstain, there may be none. An object
    printed with `…` may have more names than the printed ones.
    """
    match printed:
        case dict():
            names = printed.keys() - {ELISION}
            return (
                isinstance(response, dict)
                and (response.keys() >= names if ELISION in printed else response.keys() == names)
                and all(
                    has_form(response[name], printed[name])
                    or (name == REASON and isinstance(response[name], str | None))
                    for name in names
                )
            )
        case list():
            is_list = isinstance(response, list) and (bool(response) or not _holds_objects(printed))
            if not printed:  # a prediction set, which another model may fill with class names
                return is_list and all(isinstance(each, str) for each in response)
            return is_list and all(any(has_form(each, one) for one in printed) for each in response)
        case bool() | str() | None:
            return type(response) is type(printed)
        case _:
            return isinstance(response, int | float) and not isinstance(response, bool)


def _holds_objects(items: list[Any]) -> bool:
    return any(isinstance(each, dict) for each in items)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("example", examples())
def test_curl_example_prints_what_the_document_shows(
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
    response, expected = json.loads(done.stdout), parse_printed(printed)
    if isinstance(expected, dict) and "error" in expected:
        assert response == expected
    else:
        assert has_form(response, expected), done.stdout


@pytest.mark.parametrize("snippet", snippets())
def test_python_snippet_of_the_readme_runs(
    snippet: str, server: ServiceProcess, folder: Path
) -> None:
    assert "localhost:8000" in snippet
    code = snippet.replace("localhost:8000", f"127.0.0.1:{server.port}")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_readme_shows_a_sure_response_and_one_that_abstains() -> None:
    printed = [
        parse_printed(each.values[0][1]) for each in examples() if "README.md" in (each.id or "")
    ]
    assert [each["predictions"][0]["abstain"] for each in printed] == [False, True]


def test_examples_cover_every_group_of_routes() -> None:
    commands = " ".join(example.values[0][0] for example in examples())
    for route in ("/predict", "/uncertainty", "/models", "/health/ready", "/v2/", "/v1/"):
        assert f"localhost:8000{route}" in commands


PRINTED = {
    "label": "0",
    "confidence": 0.9,
    "abstain": False,
    "abstain_because": None,
    "prediction_set": ["0"],
    "canary": None,
}


@pytest.mark.parametrize(
    "change",
    [
        {"label": "7"},
        {"confidence": 1},
        {"abstain": True, "abstain_because": "unsure"},
        {"prediction_set": []},
        {"prediction_set": ["3", "8"]},
    ],
)
def test_has_form_accepts_other_values(change: dict[str, Any]) -> None:
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
        {"abstain_because": True},
        {"prediction_set": [3]},
        {"prediction_set": "0"},
        {"more": 1},
    ],
)
def test_has_form_rejects_other_names_and_types(change: dict[str, Any]) -> None:
    assert not has_form(PRINTED | change, PRINTED)
    without = {name: each for name, each in PRINTED.items() if name != "label"}
    assert not has_form(without, PRINTED)


def test_has_form_rejects_an_empty_list_of_predictions() -> None:
    assert not has_form([], [PRINTED])


def test_has_form_accepts_class_names_alone_where_the_document_shows_an_empty_list() -> None:
    assert has_form([], [])
    assert has_form(["4"], [])
    assert not has_form([{"name": "digits"}], [])


def test_has_form_accepts_more_names_where_the_document_leaves_some_out() -> None:
    elided = parse_printed('{"label": "0", …}')
    assert has_form(PRINTED, elided)
    assert not has_form(PRINTED | {"label": 0}, elided)
    assert not has_form({"confidence": 0.9}, elided)
    assert parse_printed('{"text": "a…", …, "abstain": true}') == {
        "text": "a…",
        "…": None,
        "abstain": True,
    }
