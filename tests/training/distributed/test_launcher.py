import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.cli_and_env_settings import load
from model.errors import RunError, SettingsError
from training.config import TrainingConfig
from training.distributed.launcher import find_processes, launch
from training.distributed.process_group import ALONE

LONE_PROCESS = "tests.training.distributed.lone_process"


@pytest.fixture(autouse=True)
def signal_handlers_restored() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    handlers = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_launch_returns_the_status_of_the_process_that_failed_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert launch(LONE_PROCESS, ["done"], devices=2, nodes=1) == 0
    assert launch(LONE_PROCESS, ["exit"], devices=2, nodes=1) == 3
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        (
            "killed",
            r"^Process 2 of 2 was killed by SIGKILL, .* an epoch was finished\.$",
        ),
        ("alone", r"^The connection to a process of this training was lost; .*finished\.$"),
    ],
)
def test_launch_says_in_one_sentence_that_a_process_was_lost(how: str, sentence: str) -> None:
    with pytest.raises(RunError, match=sentence):
        launch(LONE_PROCESS, [how], devices=2, nodes=1)


@pytest.mark.parametrize(
    ("machine", "port"), [(None, "29500"), ("2", "29500"), ("first", "29500"), ("0", "65536")]
)
def test_launch_on_machines_needs_the_place_of_this_one(
    monkeypatch: pytest.MonkeyPatch, machine: str | None, port: str
) -> None:
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NODE_RANK", raising=False)
    if machine is not None:
        monkeypatch.setenv("NODE_RANK", machine)
    with pytest.raises(SettingsError, match=r"^--nodes 2: set NODE_RANK to .* MASTER_PORT to a"):
        launch(LONE_PROCESS, ["done"], devices=1, nodes=2)


def test_find_processes_refuses_other_numbers_than_those_of_torchrun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert find_processes(TrainingConfig()) is ALONE
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    for name, value in ({"TORCHELASTIC_RUN_ID": "any"} | place).items():
        monkeypatch.setenv(name, value)
    assert find_processes(TrainingConfig()) is ALONE
    for flag in ("--devices", "--nodes"):
        with pytest.raises(SettingsError, match=r"torchrun started 1 processes on each of 1 mach"):
            find_processes(load(TrainingConfig, [flag, "2"]))
