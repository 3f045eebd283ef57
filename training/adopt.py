"""`python -m training.adopt NETWORK.onnx`: turns a classifier from elsewhere into a bundle.

From Python, `adopt` does the same with a torch module.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from model.cli_and_env_settings import describe_validation_error, load_or_exit
from model.errors import SettingsError
from training.adoption.adoption_config import AdoptionConfig
from training.command_setup import names_missing_extra, run_logged_command

# torch, onnx and matplotlib take seconds to import; `--help` and wrong options need none of them.
if TYPE_CHECKING:
    from torch import Tensor, nn


@names_missing_extra
def main(arguments: list[str] | None = None) -> int:
    """Adopt one network; return the exit status."""
    config = load_or_exit(AdoptionConfig, arguments)
    return run_logged_command(lambda: adopt_file(config), "Interrupted; no bundle was written.")


def adopt_file(config: AdoptionConfig) -> Path:
    """Adopt the file that `config` names, and return the folder of the new bundle.

    Raises:
        DropserveError: with one sentence that says what to do.
    """
    from training.adoption.adopt_network import Source, adopt_network
    from training.adoption.network_file import read_network

    model = read_network(config.network)
    return adopt_network(model, Source.of_file(config.network), config)


def adopt(module: "nn.Module", example: "Tensor", **options: Any) -> Path:
    """Adopt a torch module, and return the folder of the new bundle.

    Args:
        module: a classifier; it is exported in evaluation mode, and left in the mode it was in.
            Its `nn.Dropout` modules give the place and the probability of dropout.
        example: images as the module takes them, float32 [N, C, H, W].
        options: those of the command by their names with underscores, such as `data` and `name`;
            numbers may be numbers or text.

    Raises:
        DropserveError: with one sentence that says what to do.
    """
    name = type(module).__name__
    try:
        config = AdoptionConfig(network=Path(name), **options)
    except ValidationError as error:
        raise SettingsError(describe_validation_error(error)) from None
    from training.adoption.adopt_network import Source, adopt_network
    from training.adoption.torch_to_onnx import export_module

    return adopt_network(export_module(module, example), Source(name, None), config)


if __name__ == "__main__":
    sys.exit(main())
