"""The options of `python -m training.experiments`. Imports no torch."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from model.cli_and_env_settings import CommandSettings
from training.cache_folders import default_cache_folder
from training.data_options import data_dir_from_environment

ExperimentName = Literal[
    "activations",
    "initialisation",
    "table",
    "dropout",
    "dropout-recipe",
    "dying",
    "averaging",
    "active",
    "gan",
    "shapes",
]

EXPERIMENT_MODULES: dict[ExperimentName, str] = {
    "activations": "activation_training_speed",
    "initialisation": "initialisation_training_speed",
    "table": "activation_table",
    "dropout": "dropout_test_error",
    "dropout-recipe": "dropout_paper_recipe",
    "dying": "dying_relu",
    "averaging": "averaging_thinned_networks",
    "active": "active_learning_labels",
    "gan": "gan_discriminator_activations",
    "shapes": "activation_curves",
}
"""The module of each experiment; its function `run` runs it."""


TWO_DATA_SETS: tuple[ExperimentName, ...] = ("active", "gan")


class ExperimentSettings(CommandSettings):
    """Reproduce a claim of the literature: a table, a plot, and an entry for the notes."""

    model_config = SettingsConfigDict(
        env_prefix="DROPSERVE_EXPERIMENTS_", cli_prog_name="python -m training.experiments"
    )

    experiment: CliPositionalArg[ExperimentName] = Field(
        description="activations: epochs to 25 % training error (Krizhevsky 2012). "
        "initialisation: the same with the paper's initial weights. "
        "table: nine activations in a deep network. dropout: Srivastava 2014 on MNIST. "
        "dropout-recipe: the same with the paper's training. "
        "dying: dead units, and what a slope revives. averaging: weight scaling against averages "
        "of thinned networks. active: labels that acquisition functions need (Gal 2017). gan: the "
        "activation of a GAN's discriminator. shapes: every activation and its derivative"
    )
    quick: bool = Field(False, description="a small form of less than a minute, on the digits")
    seeds: int = Field(3, ge=1, le=100, description="repetitions of each arm")
    data: Literal["mnist", "fashion-mnist"] | None = Field(
        None, description="of active and gan: this data set alone; both if left out"
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="processor threads; default one a core"
    )
    output: Path = Field(
        Path("runs/experiments"),
        description="folder for outcomes, tables and plots; what is there is not done again",
    )
    record: Path | None = Field(
        None, description="folder of the notes, to put the entry into its experiments.md"
    )
    data_dir: Path | None = Field(
        default_factory=data_dir_from_environment,
        description="folder with data sets already on disk, also from DROPSERVE_DATA_DIR",
    )
    cache_dir: Path = Field(
        default_factory=default_cache_folder,
        description="folder for downloads",
    )

    @model_validator(mode="after")
    def _check_data(self) -> Self:
        if self.data is not None and (self.quick or self.experiment not in TWO_DATA_SETS):
            raise ValueError("--data is for active and gan without --quick; leave it out.")
        return self

    @property
    def command(self) -> str:
        """The command line that repeats this experiment, without the paths of one machine."""
        seeds = "" if self.quick or self.seeds == 3 else f" --seeds {self.seeds}"
        quick = " --quick" if self.quick else ""
        data = f" --data {self.data}" if self.data else ""
        return f"python -m training.experiments {self.experiment}{quick}{data}{seeds}"
