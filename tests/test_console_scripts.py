"""The scripts that `pip install .` makes, from pyproject.toml, without an installation."""

import importlib
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint

import pytest

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCRIPTS = {
    name: EntryPoint(name, value, "console_scripts") for name, value in PROJECT["scripts"].items()
}
MODULES = {
    "dropserve-serve": "service",
    "dropserve-train": "training",
    **{f"dropserve-{name}": f"service.{name}" for name in ("check", "control", "keys")},
    **{f"dropserve-{name}": f"service.{name}" for name in ("score", "replay", "feedback")},
    **{f"dropserve-{name}": f"training.{name}" for name in ("evaluate", "adopt", "select")},
    "dropserve-migrate": "training.migrate_bundle",
}
"""Each script, and the module whose `python -m` is the same command."""


def run(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """Run a script as its file in `bin` does; return the exit status."""
    main: Callable[[], int] = SCRIPTS[name].load()
    monkeypatch.setattr(sys, "argv", [f"/somewhere/bin/{name}", *arguments])
    try:
        return main()
    except SystemExit as exited:
        return exited.code


def test_every_command_has_a_script() -> None:
    assert set(SCRIPTS) == set(MODULES)
    for module in MODULES.values():
        assert importlib.util.find_spec(module) is not None


@pytest.mark.parametrize("name", MODULES)
def test_help_names_the_script(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(name, monkeypatch, "--help") == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: {name} [-h]")
    assert "--print-completion {bash,zsh,fish,tcsh}" in printed


@pytest.mark.parametrize(("name", "module"), MODULES.items())
def test_help_names_the_module_where_that_is_run(
    name: str,
    module: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main = SCRIPTS[name].load()
    monkeypatch.setattr(sys, "argv", ["/somewhere/__main__.py", "--help"])
    with pytest.raises(SystemExit):
        main()
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: python -m {module} [-h]")
    assert "--print-completion" not in printed


@pytest.mark.parametrize("name", MODULES)
def test_wrong_option_of_a_script_is_one_sentence(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(name, monkeypatch, "--print-completion", "cmd") == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert "--print-completion: invalid choice: 'cmd'" in printed.err


@pytest.mark.parametrize(
    "name", ["dropserve-train", "dropserve-evaluate", "dropserve-adopt", "dropserve-select"]
)
def test_training_without_its_libraries_is_one_sentence(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    arguments = {
        "dropserve-train": [],
        "dropserve-evaluate": ["models/digits/1"],
        "dropserve-adopt": ["net.onnx", "--data", "digits", "--name", "net"],
        "dropserve-select": ["--model", "models/digits/1", "--pool", "digits"],
    }
    assert run(name, monkeypatch, *arguments[name]) == 2
    assert capsys.readouterr().err == (
        "This command needs pooch, which is not installed; run pip install '.[training]' in the "
        "folder of the project.\n"
    )


def complete(script: str, *words: str) -> list[str]:
    """Return what bash offers for the last word, with a script for completion."""
    code = """
source /dev/stdin <<< "$0"
function=$(complete -p "$1" | sed 's/.*-F \\([^ ]*\\).*/\\1/')
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE}
$function "$1" "${!#}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
    command = ["bash", "--norc", "-c", code, script, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("name", "words", "offered"),
    [
        ("dropserve-serve", ["--traffic-log-im"], ["--traffic-log-images"]),
        ("dropserve-serve", ["--control", ""], ["local", "anyone", "nobody"]),
        ("dropserve-serve", ["--config", "pypro"], ["pyproject.toml"]),
        ("dropserve-control", ["ro"], ["rollback"]),
        ("dropserve-control", ["canary", "digits", "--sh"], ["--share"]),
        ("dropserve-train", ["--preset", "al"], ["alexnet"]),
    ],
)
def test_bash_completes_options_and_their_values(
    name: str,
    words: list[str],
    offered: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(name, monkeypatch, "--print-completion", "bash") == 0
    assert complete(capsys.readouterr().out, name, *words) == offered


@pytest.mark.parametrize("shell", ["zsh", "fish", "tcsh"])
def test_other_shells_get_a_script_of_their_own(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("dropserve-serve", monkeypatch, "--print-completion", shell) == 0
    script = capsys.readouterr().out
    assert "traffic-log-images" in script
    assert {"zsh": "#compdef dropserve-serve", "fish": "complete -c", "tcsh": "complete"}[
        shell
    ] in script
