"""Makes a folder that only this user can look into. Knows no file."""

import os
import stat
from pathlib import Path

_PRIVATE_MODE = 0o700


def make_private_folder(folder: Path) -> None:
    """Create a folder for this user alone; raises OSError, also if another user owns it."""
    folder.mkdir(mode=_PRIVATE_MODE, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise PermissionError(0, "it belongs to another user", str(folder))
    if stat.S_IMODE(status.st_mode) != _PRIVATE_MODE:
        folder.chmod(_PRIVATE_MODE)
