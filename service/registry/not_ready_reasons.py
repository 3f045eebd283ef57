"""Why nothing serves, in sentences that say what to do. Knows no repository."""

from pathlib import Path


def unreadable_folder(folder: Path, error: OSError) -> str:
    """The models folder cannot be read."""
    return (
        f"The models folder {error.filename or folder} cannot be read ({error.strerror}); give "
        "this user access to it, or choose another with --models-folder."
    )


def unloaded(name: str, rollouts: Path | None) -> str:
    """An operator has taken a model out of service.

    rollouts: the file that says which versions serve; None: commands do.
    """
    if rollouts is not None:
        return f"{name} is unloaded by the file {rollouts.name} (--rollouts); change it there."
    return f"{name} is unloaded; load it with python -m service.control load {name}."


def inactive_default(name: str, active_names: str, rollouts: Path | None) -> str:
    """The default model does not answer, while other models do.

    rollouts: as of `unloaded`.
    """
    way = (
        "make one the default with python -m service.control default"
        if rollouts is None
        else f"name another default in the file {rollouts.name} (--rollouts)"
    )
    return (
        f"{name}, the default model, is not in service; name one that is with ?model=, of "
        f"{active_names}, or {way}."
    )


def no_bundle(default: str | None, served_model_name: str | None) -> str:
    """The models folder has no bundle, or none of the model that the settings name."""
    if served_model_name is not None:
        return (
            f"The models folder is neither a bundle nor holds versions of one, so there is no "
            f"{served_model_name!r}; with --served-model-name it has to be the folder of "
            "one model, or of one version."
        )
    missing = "bundle" if default is None else f"bundle of the default model {default!r}"
    return f"The models folder holds no {missing}; train one with python -m training."
