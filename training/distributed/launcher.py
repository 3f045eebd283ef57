"""Starts the training processes of this machine, ends all if one fails, and tells each its place.

It uses the process starter of torchrun, whose processes find their place in the same way. Unlike
torchrun it opens no port where there is only one machine: the processes find each other in a file,
and connect over the loopback interface. Knows no option of a training but the number of processes.
"""

import ctypes
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing import (
    DefaultLogsSpecs,
    PContext,
    SignalException,
    start_processes,
)
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from model.errors import RunError, SettingsError
from training.config import TrainingConfig
from training.distributed.process_group import ALONE, LOST_PROCESS_STATUS, Processes, open_store

RENDEZVOUS_VARIABLE = "DROPSERVE_RENDEZVOUS"
"""Environment variable by which `launch` tells its processes where they find each other."""
TORCHRUN_VARIABLE = "TORCHELASTIC_RUN_ID"

_POLL_SECONDS = 0.1
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
_MACHINE_VARIABLES = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


def launch(module: str, arguments: Sequence[str], devices: int, nodes: int) -> int:
    """Run `python -m MODULE ARGUMENTS` in `devices` processes here; return the exit status.

    Args:
        module: the command.
        arguments: of each process, which calls `find_processes`.
        devices: processes on this machine.
        nodes: machines on which the same command runs.

    Raises:
        SettingsError: this machine has fewer GPUs, or was not told of the others.
        RunError: a process was killed.
    """
    _check_gpus(devices)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        processes = start_processes(
            name=module,
            entrypoint=sys.executable,
            args=dict.fromkeys(range(devices), ("-m", module, *arguments)),
            envs=_environments(devices, nodes, Path(folder)),
            logs_specs=DefaultLogsSpecs(folder),  # else it leaves a folder of its own
        )
        try:
            return _wait(processes, devices)
        except SignalException as error:
            processes.close(error.sigval)
            return 128 + error.sigval


def is_launched() -> bool:
    """Whether `launch` or torchrun has started this process."""
    return RENDEZVOUS_VARIABLE in os.environ or TORCHRUN_VARIABLE in os.environ


def find_processes(config: TrainingConfig) -> Processes:
    """Return this process among those that were started with it; all but the first are made silent.

    A process other than the first ends at once by a signal, since it has nothing to put in order.

    Raises:
        SettingsError: torchrun started another number of processes than `config` says.
    """
    if not is_launched():
        return ALONE
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    rank, count, local_rank, local_count = (int(os.environ[name]) for name in names)
    if config.devices not in (None, local_count) or config.nodes not in (1, count // local_count):
        raise SettingsError(
            f"--devices and --nodes: torchrun started {local_count} processes on each of "
            f"{count // local_count} machines; leave both options out."
        )
    if RENDEZVOUS_VARIABLE in os.environ:
        _end_with_parent()
    if rank > 0:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        logging.disable()
    if count == 1:
        return ALONE
    url = os.environ.get(RENDEZVOUS_VARIABLE, "env://")
    return Processes(rank, count, local_rank, local_count, open_store(url, rank, count))


def _end_with_parent() -> None:
    """Let the kernel end this process when the launcher ends, however that happens. Linux only."""
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def _wait(processes: PContext, devices: int) -> int:
    result = processes.wait(period=_POLL_SECONDS)
    assert result is not None
    if not result.is_failed():
        return 0
    ended_by_us = -signal.SIGTERM
    causes = [
        failure
        for failure in result.failures.values()
        if failure.exitcode not in (LOST_PROCESS_STATUS, ended_by_us, 128 + signal.SIGTERM)
    ]
    if not causes:
        raise RunError(
            "The connection to a process of this training was lost; no bundle was written. Look at "
            "what the other machines say, then start again, with --resume if an epoch was finished."
        )
    if causes[0].exitcode > 0:  # it has said why
        return causes[0].exitcode
    raise RunError(_describe_kill(causes[0], devices))


def _describe_kill(failure: ProcessFailure, devices: int) -> str:
    return (
        f"Process {failure.local_rank + 1} of {devices} was killed by {failure.signal_name()}, as "
        "by a system that runs out of memory; no bundle was written. Start again, with --resume if "
        "an epoch was finished."
    )


def _check_gpus(devices: int) -> None:
    gpus = torch.cuda.device_count()
    if 0 < gpus < devices:
        raise SettingsError(f"--devices {devices}: this machine has {gpus} GPUs; use as many.")


def _environments(devices: int, nodes: int, folder: Path) -> dict[int, dict[str, str]]:
    """Return the environment variables of each process, named as torchrun names them."""
    shared, machine = _meeting_place(nodes, folder)
    return {
        local_rank: shared
        | {
            "RANK": str(machine * devices + local_rank),
            "WORLD_SIZE": str(nodes * devices),
            "LOCAL_RANK": str(local_rank),
            "LOCAL_WORLD_SIZE": str(devices),
            "GROUP_RANK": str(machine),
        }
        for local_rank in range(devices)
    }


def _meeting_place(nodes: int, folder: Path) -> tuple[dict[str, str], int]:
    """Return the variables that say where the processes meet, and the number of this machine."""
    if nodes == 1:
        url = (folder / "rendezvous").as_uri()
        return {RENDEZVOUS_VARIABLE: url, "GLOO_SOCKET_IFNAME": "lo", "NODE_RANK": "0"}, 0
    given = [os.environ.get(name, "") for name in _MACHINE_VARIABLES]
    machine, address, port = given
    is_port = port.isdecimal() and 0 < int(port) < 2**16
    if not (machine.isdecimal() and int(machine) < nodes and address and is_port):
        raise SettingsError(
            f"--nodes {nodes}: set NODE_RANK to the number of this machine, 0 to {nodes - 1}, "
            "MASTER_ADDR to the address of machine 0, and MASTER_PORT to a free port of it."
        )
    return {RENDEZVOUS_VARIABLE: "env://"}, int(machine)
