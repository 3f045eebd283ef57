"""Whole trainings in several real processes on the CPUs, connected by gloo over the loopback."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.bundle.store import list_models, open_bundle
from training.distributed.launcher import launch
from training.fitting.checkpoints import LAST_CHECKPOINT

pytestmark = [pytest.mark.training, pytest.mark.timeout(900)]

TOLERANCE = 1e-5
"""Of weights, after two epochs of a network without batch normalisation; 6e-8 was measured."""

MLP = ("--preset", "mlp", "--epochs", "2")


def start(
    folder: Path,
    *arguments: str,
    launcher: tuple[str, ...] = (),
    variables: dict[str, str] | None = None,
) -> "Started":
    where = ("--output", str(folder / "models"), "--runs", str(folder / "runs"))
    kept = {name: value for name, value in os.environ.items() if "DROPSERVE" not in name}
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "training", *where, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=kept | (variables or {}),
    )


Started = subprocess.Popen[str]


def finish(process: Started, status: int = 0) -> tuple[str, str]:
    try:
        output, errors = process.communicate(timeout=400)
    finally:
        process.kill()
    assert process.returncode == status, errors
    return output, errors


def checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    file = folder / "runs" / "digits" / "1" / LAST_CHECKPOINT
    state: dict[str, torch.Tensor] = torch.load(file, weights_only=True)["state_dict"]
    return state


def assert_same_training(one: Path, other: Path) -> None:
    expected = checkpoint(one)
    for name, weights in checkpoint(other).items():
        torch.testing.assert_close(weights, expected[name], rtol=0, atol=TOLERANCE)
    assert list_models(other / "models") == ["digits"]
    diagnoses = []
    for folder in (one, other):
        assert [each.name for each in (folder / "models" / "digits").iterdir()] == ["1"]
        bundle = open_bundle(folder / "models" / "digits" / "1")
        diagnoses.append(bundle.manifest.metrics["diagnosis"]["layers"][0])
    assert diagnoses[1] == pytest.approx(diagnoses[0], abs=1e-3)


def epochs(output: str) -> list[float]:
    return [float(number) for number in re.findall(r"(?:loss|accuracy) (\d\.\d+)", output)]


def test_gradients_and_statistics_of_processes_are_those_of_the_whole_batch() -> None:
    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    assert launch("tests.training.distributed.gradient_of_a_shard", [], devices=2, nodes=1) == 0
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of a training in one process."""
    folder = tmp_path_factory.mktemp("single")
    return folder, finish(start(folder, *MLP))[0]


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.mark.parametrize(("flags", "launcher"), [(("--devices", "2"), ()), ((), TORCHRUN)])
def test_two_processes_end_with_the_weights_of_one(
    tmp_path: Path, single: tuple[Path, str], flags: tuple[str, ...], launcher: tuple[str, ...]
) -> None:
    output, _ = finish(start(tmp_path, *MLP, *flags, launcher=launcher))
    assert_same_training(single[0], tmp_path)
    assert epochs(output) == pytest.approx(epochs(single[1]), abs=2e-4)
    assert len(epochs(output)) == 6


def test_two_machines_train_one_bundle(tmp_path: Path, single: tuple[Path, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    folders = [tmp_path / "machine 0", tmp_path / "machine 1"]
    machines = [
        start(folder, *MLP, "--nodes", "2", variables=place | {"NODE_RANK": str(number)})
        for number, folder in enumerate(folders)
    ]
    (_, errors), (silence, other_errors) = map(finish, machines)
    assert errors == silence == other_errors == ""
    assert_same_training(single[0], folders[0])
    assert not folders[1].exists()


def test_lost_process_ends_all_and_the_run_goes_on_with_resume(tmp_path: Path) -> None:
    options = ("--preset", "mlp", "--epochs", "2000", "--patience", "2000", "--devices", "2")

    def start_and_wait(*more: str) -> tuple[Started, list[int]]:
        launched = start(tmp_path, *options, *more)
        assert launched.stdout is not None
        next(line for line in launched.stdout if line.startswith("epoch"))
        next(line for line in launched.stdout if line.startswith("epoch"))
        children = Path(f"/proc/{launched.pid}/task/{launched.pid}/children").read_text().split()
        return launched, [int(child) for child in children]

    launched, children = start_and_wait()
    os.kill(children[1], signal.SIGKILL)
    _, errors = finish(launched, status=1)
    assert errors.startswith("Process 2 of 2 was killed by SIGKILL")
    assert errors.count("\n") == 1
    launched, children = start_and_wait("--resume")
    launched.send_signal(signal.SIGINT)
    _, errors = finish(launched, status=130)
    assert errors == "Interrupted; no bundle was written. Go on with --resume.\n"
    for child in children:
        assert not Path(f"/proc/{child}").exists()
    assert list_models(tmp_path / "models") == []
