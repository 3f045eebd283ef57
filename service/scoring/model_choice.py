"""Which bundle scores: the model and version that the settings name, or those that would serve."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from model.bundle.store import list_models, list_versions
from model.errors import BundleError


class BundleChoice(Protocol):
    """The settings that choose a bundle."""

    @property
    def models_folder(self) -> Path:
        """The folder of bundles, NAME/VERSION/."""

    @property
    def model(self) -> str | None:
        """The name of the model; None: the only one."""

    @property
    def version(self) -> int | None:
        """The version; None: the highest one that can be loaded."""


def candidate_bundles(settings: BundleChoice) -> Sequence[Path]:
    """Return the folders of the bundles, of which the first that can be loaded scores.

    Raises:
        BundleError: there is no such model or version, or no model is named where there are
            several.
    """
    folder = settings.models_folder
    try:
        models = list_models(folder)
    except OSError as error:
        raise BundleError(
            f"{folder} cannot be read ({error.strerror}); name another --models-folder."
        ) from None
    if not models:
        raise BundleError(
            f"There is no bundle in {folder}; train one with python -m training, or name another "
            "--models-folder."
        )
    name = settings.model or (models[0] if len(models) == 1 else None)
    listed = ", ".join(models)
    if name is None:
        raise BundleError(f"There are several models in {folder}; name one with --model: {listed}.")
    if name not in models:
        raise BundleError(f"There is no model {name!r} in {folder}; there is {listed}.")
    versions = list_versions(folder, name)
    if settings.version is not None and settings.version not in versions:
        listed = ", ".join(map(str, versions))
        raise BundleError(f"There is no version {settings.version} of {name}; there is {listed}.")
    chosen = versions if settings.version is None else [settings.version]
    return [folder / name / str(version) for version in chosen]
