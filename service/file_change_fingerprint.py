"""What changes when a file does, for those who look at it again and again. Knows no content."""

from pathlib import Path

FileFingerprint = tuple[int, ...] | None


def file_fingerprint(path: Path) -> FileFingerprint:
    """Return inode, size and times of a file, following links; None: it cannot be seen."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
