"""Where downloads, decoded images and the caches of libraries go. Knows no data set.

They go into the user's cache folder; where the user has no home, or a home that cannot be written,
as in many containers, into a folder of this user in the temporary folder.
"""

import os
import tempfile
from pathlib import Path

from model.private_folder import make_private_folder


def default_cache_folder() -> Path:
    """Return the folder for downloads and decoded images; it need not exist yet."""
    import pooch  # here, so that --help does without the training extra

    try:
        folder = Path(pooch.os_cache("dropserve"))
    except RuntimeError:  # no HOME, and no entry in the list of users
        return _temporary_folder()
    return folder if _can_be_created(folder) else _temporary_folder()


def use_writable_caches() -> None:
    """Point matplotlib and torch to folders that can be written; call it before their import.

    Variables that are set already stay as they are. Without a home matplotlib cannot be imported at
    all, or warns at each start; torch fails to name the user.
    """
    try:
        config, cache = Path.home() / ".config", Path.home() / ".cache"
    except RuntimeError:
        has_home = False
    else:
        has_home = _can_be_created(config / "matplotlib") and _can_be_created(cache / "matplotlib")
    if not has_home:
        folder = _temporary_folder()
        make_private_folder(folder)
        os.environ.setdefault("MPLCONFIGDIR", str(folder / "matplotlib"))
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "torchinductor"))
        os.environ.setdefault("LOGNAME", str(os.getuid()))  # getpass.getuser() reads it first


def _can_be_created(folder: Path) -> bool:
    """Return whether `folder`, or the nearest folder above it that exists, can be written.

    The files are made to find out, since root may write where the mode forbids it, and nobody may
    in `/proc` or on a read-only disk, whatever the mode says.
    """
    for each in (folder, *folder.parents):
        if each.exists():
            try:
                with tempfile.TemporaryDirectory(prefix=".dropserve-", dir=each):
                    return True
            except OSError:
                return False
    return False


def _temporary_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"dropserve-cache-{os.getuid()}"
