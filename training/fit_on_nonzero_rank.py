"""What a training process does that is not the first: it gets the data set, and helps to fit.

Knows no export and no report.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from model.errors import DataError, SettingsError
from training.config import TrainingConfig
from training.data.added_images import add_images
from training.data.dataset import Dataset, load_dataset
from training.distributed.process_group import Processes
from training.distributed.shared_dataset import receive_dataset, share_dataset
from training.fitting.training_loop import help_fit
from training.transfer.backbone_choice import choose_backbone

PLAN_TOPIC = "plan"


class Plan(BaseModel):
    """What the first process tells the others about the run."""

    options: dict[str, Any]
    """As `TrainingConfig.recorded_options`."""
    data: dict[str, Any]
    """As `Dataset.manifest_entry`."""
    run: Path
    resume: bool


def announce(config: TrainingConfig, data: Dataset, run: Path, processes: Processes) -> None:
    """Tell the other processes what is trained."""
    if processes.count > 1:
        options, entry = config.recorded_options(), data.manifest_entry()
        plan = Plan(options=options, data=entry, run=run, resume=config.resume)
        processes.tell(PLAN_TOPIC, plan)


def help_train(config: TrainingConfig, processes: Processes) -> None:
    """Help the first process to fit the network that `config` describes.

    The first process of each further machine loads the images there, for all processes of it.

    Raises:
        SettingsError: this machine was given other options than the first one.
        DataError: it has other images.
    """
    config = choose_backbone(config)
    if processes.local_rank > 0:
        data = receive_dataset(processes)
        plan = processes.hear(PLAN_TOPIC, Plan)
    else:
        data = add_images(load_dataset(config), config)
        plan = processes.hear(PLAN_TOPIC, Plan)
        _check_same(config, data, plan, processes.machine)
        data = share_dataset(data, processes, config.cache_dir)
    help_fit(config, data, plan.run, plan.resume, processes)


def _check_same(config: TrainingConfig, data: Dataset, plan: Plan, machine: int) -> None:
    options = config.recorded_options()
    other = [f"--{name}" for name, value in plan.options.items() if options.get(name) != value]
    if other:
        flags = ", ".join(other).replace("_", "-")
        raise SettingsError(
            f"Machine {machine} has other values of {flags} than machine 0; start both with the "
            "same options, libraries and kind of device."
        )
    if data.manifest_entry()["sha256"] != plan.data["sha256"]:
        raise DataError(
            f"Machine {machine} has other images than machine 0; copy the data set from there."
        )
