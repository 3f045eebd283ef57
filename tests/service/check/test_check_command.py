"""`python -m service.check` as a command: what it writes, and its exit status."""

import json
from pathlib import Path

import pytest
import structlog

from service.check.__main__ import main
from service.check.findings import Finding
from service.settings import ServiceSettings
from tests.service.serving import check_sentence


@pytest.fixture(autouse=True)
def _keep_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command silences the log of its process, which is the tests' here."""
    monkeypatch.setattr(structlog, "configure", lambda **_options: None)


def test_healthy_service_is_three_lines_and_status_0(
    models_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--port", "0", "--models-folder", str(models_folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0].split() for line in lines] == [
        ["fine", "port"],
        ["fine", "models"],
        ["fine", "memory"],
    ]


def test_errors_are_status_2_and_json_has_them_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "none")
    options = ["--port", "0", "--models-folder", missing, "--api-keys-file", missing]
    assert main([*options, "--format", "json"]) == 2
    report = json.loads(capsys.readouterr().out)
    levels = [each["level"] for each in report["findings"]]
    assert (report["status"], levels) == (2, ["error", "error", "fine"])


def test_variable_that_is_misspelled_is_a_warning(
    models_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DROPSERVE_MODELS_FOLDR", "x")
    assert main(["--port", "0", "--models-folder", str(models_folder)]) == 1
    first = capsys.readouterr().out.splitlines()[0]
    assert first == (
        "warning  environment: DROPSERVE_MODELS_FOLDR is not a setting; did you mean "
        "DROPSERVE_MODELS_FOLDER?"
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--prot", "1"], "unrecognized arguments: --prot 1; --help lists the options.\n"),
        (["--port", "-1"], "--port: input should be greater than or equal to 0, but got '-1'.\n"),
        (
            ["--max-samples", "8"],
            "--default-samples: 64 is more than --max-samples, 8; lower the one or raise …\n",
        ),
    ],
)
def test_setting_that_the_start_refuses_is_refused_in_the_same_words(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options) == 2
    written, refused = capsys.readouterr()
    assert written == ""
    check_sentence(refused, sentence)


def test_check_that_the_system_ends_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_folder: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("shutil.disk_usage", fail)
    options = ["--port", "0", "--models-folder", str(tmp_path), "--traffic-log", str(tmp_path)]
    assert main(options) == 2
    first = capsys.readouterr().out.splitlines()[0]
    assert first == (
        "error    folders: cannot be examined (Input/output error); give this user access to it, "
        "or repair it."
    )


def test_interruption_ends_the_command_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def interrupted(_settings: ServiceSettings) -> list[Finding]:
        raise KeyboardInterrupt

    monkeypatch.setattr("service.check.__main__.check", interrupted)
    assert main([]) == 130
    assert tuple(capsys.readouterr()) == ("", "Interrupted; nothing was changed.\n")
