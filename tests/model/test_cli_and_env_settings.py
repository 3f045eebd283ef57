from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, field_validator
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from model.cli_and_env_settings import CommandSettings, load, load_or_exit, misspelled_variables
from model.errors import SettingsError


class Toy(CommandSettings):
    """Settings of a program that does not exist."""

    model_config = SettingsConfigDict(env_prefix="TOY_", cli_prog_name="python -m toy")

    batch_size: int = Field(8, ge=2, description="images a step")
    name: str = Field("x", description="a name")
    loud: bool = Field(False, description="print more")
    speed: float | None = Field(None, description="steps a second; any if left out")
    log: Path | None = Field(None, description="folder of logs; none if left out")

    @field_validator("name")
    @classmethod
    def _short(cls, name: str) -> str:
        if len(name) > 3:
            raise ValueError(f"{name!r} is too long; use three letters.")
        return name


def test_settings_priority_is_flag_environment_file_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "toy.toml"
    file.write_text('batch_size = 3\nname = "f"\nloud = true\n')
    monkeypatch.setenv("TOY_BATCH_SIZE", "4")
    monkeypatch.setenv("TOY_NAME", "e")
    settings = load(Toy, ["--config", str(file), "--batch-size", "5"])
    assert (settings.batch_size, settings.name, settings.loud) == (5, "e", True)
    monkeypatch.setenv("TOY_CONFIG", str(file))
    assert load(Toy, ["--no-loud"]).loud is False
    assert load(Toy, []).loud is True


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--bogus", "1"], "unrecognized arguments: --bogus 1; --help lists the options."),
        (["--batch-size"], "argument --batch-size: expected one argument; --help lists"),
        (["--batch-size", "1"], "--batch-size: input should be greater than or equal to 2"),
        (["--batch-size", "x"], "--batch-size: input should be a valid integer"),
        (["--name", "long"], "--name: 'long' is too long; use three letters."),
        (["--log", ""], "--log: it is empty; give a path, or leave out both the option and TOY_"),
        (["--config", ""], "--config: it is empty; give a path, or leave out both"),
        (["--config", "/no/such"], "--config: cannot read /no/such: No such file or directory."),
    ],
)
def test_load_reports_each_mistake_in_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        load(Toy, arguments)
    assert sentence in str(caught.value)
    with pytest.raises(SystemExit) as exited:
        load_or_exit(Toy, arguments)
    assert exited.value.code == 2
    printed = capsys.readouterr().err
    assert sentence in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("batch_size = ", "is not valid TOML"),
        ("unknown = 1", "--unknown is not an option"),
        ("batch_size = 0", "--batch-size: input should be greater"),
        ("batch_size = true", "--batch-size: input should be a number, but got True."),
        ("speed = false", "--speed: input should be a number, but got False."),
        ('log = ""', "--log: it is empty; give a path, or leave out both the option and TOY_LOG."),
        ('config = "x.toml"', "toy.toml names another file as config, which is not read; put"),
    ],
)
def test_load_reports_a_wrong_toml_file(tmp_path: Path, content: str, sentence: str) -> None:
    file = tmp_path / "toy.toml"
    file.write_text(content)
    with pytest.raises(SettingsError) as caught:
        load(Toy, ["--config", str(file)])
    assert sentence in str(caught.value)


def test_empty_variable_of_a_path_is_refused_and_is_not_the_current_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Verb(CommandSettings):
        file: CliPositionalArg[Path] = Field(description="what to look at")

    monkeypatch.setenv("TOY_LOG", "")
    with pytest.raises(SettingsError, match="--log: it is empty; give a path, or leave out both"):
        load(Toy, [])
    with pytest.raises(SettingsError, match=r"FILE: it is empty; give a path\.$"):
        load(Verb, [""])


@pytest.mark.parametrize("file", ["", 'action = "stay"\n'])
def test_wrong_positional_argument_is_named_as_in_the_help(tmp_path: Path, file: str) -> None:
    class Verb(CommandSettings):
        action: CliPositionalArg[Literal["go", "stop"]] = Field(description="what to do")

    (tmp_path / "toy.toml").write_text(file)
    with pytest.raises(SettingsError) as caught:
        load(Verb, ["run", "--config", str(tmp_path / "toy.toml")])
    assert str(caught.value) == "ACTION: input should be 'go' or 'stop', but got 'run'."


def test_help_describes_each_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        load(Toy, ["--help"])
    assert exited.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "images a step (default: 8) [env: TOY_BATCH_SIZE]" in printed


def test_load_or_exit_warns_about_a_misspelled_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOY_BATCH_SZIE", "4")
    assert load_or_exit(Toy, []).batch_size == 8
    warning = "Warning: TOY_BATCH_SZIE is not a setting; did you mean TOY_BATCH_SIZE?\n"
    assert capsys.readouterr().err == warning


def test_beginning_of_one_name_alone_is_that_name() -> None:
    class Tls(CommandSettings):
        model_config = SettingsConfigDict(env_prefix="DROPSERVE_")
        tls_key: Path | None = None
        tls_certificate: Path | None = None

    found = misspelled_variables(Tls, ["DROPSERVE_TLS_CERT", "DROPSERVE_T"])
    assert found == [("DROPSERVE_TLS_CERT", "DROPSERVE_TLS_CERTIFICATE")]


def test_misspelled_variables_ignores_unrelated_variables() -> None:
    unrelated = ["TOY_PORT_8000_TCP", "TOY_SERVICE_HOST", "TOY_OTHER_BATCH_SIZE", "BATCH_SZIE"]
    assert misspelled_variables(Toy, [*unrelated, "TOY_BATCH_SIZE", "toy_name"]) == []
