"""`python -m service.control` against a real service: each command, and each mistake."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.control import main
from tests.bundles import copy_bundle
from tests.conftest import ROOT
from tests.service.process import ServiceProcess, service_process


@pytest.fixture(scope="module")
def service(
    bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    models = tmp_path_factory.mktemp("models")
    for version in (1, 2):
        copy_bundle(bundle_folder, models, version=version)
    with service_process(models) as process:
        yield process


def control(service: ServiceProcess, capsys: pytest.CaptureFixture[str], *given: str) -> str:
    assert main([*given, "--url", service.url]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    return told.out


def test_a_version_is_tried_promoted_and_taken_back(
    service: ServiceProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*given: str) -> str:
        return control(service, capsys, *given)

    assert said("pin", "digits", "--version", "1") == "digits: stable version 1 (held)\n"
    canary = "digits: stable version 1 (held), canary version 2 with 10% of the requests\n"
    assert said("canary", "digits", "--version", "2") == canary
    canary = canary.replace("10%", "25%")
    assert said("canary", "digits", "--version", "2", "--share", "0.25") == canary
    assert said("promote", "digits") == "digits: stable version 2 (held)\n"
    assert said("rollback", "digits") == "digits: stable version 1 (held)\n"
    assert said("follow", "digits") == "digits: stable version 2 (the newest)\n"
    assert said("unload", "digits") == "digits: unloaded\n"
    assert said("load", "digits") == "digits: loaded\n"


@pytest.mark.parametrize(
    ("given", "status", "sentence"),
    [
        (["promote", "digits"], 1, "There is no canary to promote; start one first."),
        (["promote", "cats"], 1, "There is no model 'cats' to be loaded; there is digits."),
        (["pin", "digits", "--version", "9"], 1, "There is no version 9 of digits in "),
        (["load", "a/../b"], 1, "There is nothing at "),
    ],
)
def test_what_the_service_refuses_is_said_and_ends_in_1(
    service: ServiceProcess,
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    status: int,
    sentence: str,
) -> None:
    assert main([*given, "--url", service.url]) == status
    assert capsys.readouterr().err.startswith(sentence)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "the following arguments are required: ACTION, MODEL"),
        (["start", "digits"], "--action: input should be 'canary', 'promote'"),
        (["pin", "digits"], "--version: for canary and pin, and needed there."),
        (["promote", "digits", "--version", "1"], "--version: for canary and pin, and needed"),
        (["pin", "digits", "--version", "1", "--share", "0.5"], "--share: for canary alone; leave"),
        (["promote", "digits", "--url", "file:///etc"], "--url: 'file:///etc' is no http:// or"),
        (
            ["promote", "digits", "--url", "http://127.0.0.1:1"],
            "1 does not answer (",
        ),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(given: list[str], sentence: str) -> None:
    command = [sys.executable, "-m", "service.control", *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
