"""The folder of a traffic log: its segments, their rotation, and the bound on all of them together.

Several workers write segments of their own and remove the oldest of all. Knows no request.
"""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from service.traffic_log.image_files import encode_image, write_image
from service.traffic_log.log_segment import (
    DRAFT,
    IMAGES,
    LINES,
    PART,
    PREFIX,
    LogSegment,
    blocks,
    remove_old_draft,
)
from service.traffic_log.traffic_record import TrafficLine

_Files = Mapping[str, tuple[str, bytes]]
"""The suffix and the content of files of images, by the images' digests."""


@dataclass(frozen=True)
class LogLimits:
    """When a segment is finished, and how much is kept."""

    segment_bytes: int
    segment_seconds: float
    finished_bytes: int
    """Of all finished segments; the oldest ones beyond it are removed."""
    store_images: bool


class LogFolder:
    """What one process writes into the folder. Only one thread may use it."""

    def __init__(self, path: Path, limits: LogLimits) -> None:
        """Touch no file yet."""
        self.path = path
        self._limits = limits
        self._segment: LogSegment | None = None
        self._sizes: dict[str, int] = {}
        """Bytes of finished segments, which change no more."""

    def recover(self) -> None:
        """Finish the segments of processes that have ended, and remove what is too much.

        Raises:
            OSError: the folder cannot be used.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for stem in self._stems(DRAFT):
            remove_old_draft(self.path / f"{stem}{DRAFT}")
        for stem in self._stems(PART):
            with suppress(FileNotFoundError):
                segment = LogSegment.abandoned(self.path, stem)
                if segment is not None:
                    segment.finish()
        for stem in self._stems(IMAGES):
            # In this order: a segment that is finished meanwhile is found by its new name.
            if not any((self.path / f"{stem}{suffix}").exists() for suffix in (PART, LINES)):
                shutil.rmtree(self.path / f"{stem}{IMAGES}", ignore_errors=True)
        self._remove_oldest()

    def append(self, lines: Sequence[TrafficLine]) -> tuple[int, int]:
        """Append lines, after their images; return how many images were stored, and how many not.

        Raises:
            OSError: the lines are not written. An image that cannot be stored is counted alone.
        """
        text = b"".join([line.text for line in lines])
        files = self._missing_files(lines, {})
        sizes = [blocks(len(content)) for _, content in files.values()]
        # One that no segment has room for must not begin a segment with each line.
        room = sum(size for size in sizes if size <= self._limits.segment_bytes)
        segment = self._segment_for(blocks(len(text)) + room)
        for digest, file in self._missing_files(lines, files).items():
            if self._store(segment, digest, *file):
                segment.digests.add(digest)
        segment.append(text)
        if not self._limits.store_images:
            return 0, 0
        stored = sum(line.digest in segment.digests for line in lines)
        return stored, len(lines) - stored

    def rotate_if_due(self) -> None:
        """Finish the segment if it is old enough; raises OSError."""
        if self._segment is not None and self.seconds_until_rotation() == 0:
            self.rotate()

    def seconds_until_rotation(self) -> float | None:
        """Return when the segment is old enough; None: there is none."""
        if self._segment is None:
            return None
        age = time.monotonic() - self._segment.began
        return max(0.0, self._limits.segment_seconds - age)

    def rotate(self) -> None:
        """Finish the segment, if there is one; raises OSError."""
        segment, self._segment = self._segment, None
        if segment is not None:
            segment.finish()
            self._remove_oldest()

    def _segment_for(self, length: int) -> LogSegment:
        """Return the segment that has room for `length` bytes more."""
        if self._segment is not None and self._segment.size + length > self._limits.segment_bytes:
            self.rotate()
        if self._segment is None:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._segment = LogSegment.create(self.path)
        return self._segment

    def _missing_files(self, lines: Sequence[TrafficLine], known: _Files) -> _Files:
        """Return the files of the images that the segment does not have, `known` ones included."""
        if not self._limits.store_images:
            return {}
        stored = set() if self._segment is None else self._segment.digests
        images = {line.digest: line.image for line in lines if line.digest not in stored}
        return {
            digest: known[digest] if digest in known else encode_image(image)
            for digest, image in images.items()
        }

    def _store(self, segment: LogSegment, digest: str, suffix: str, content: bytes) -> bool:
        """Store the file of an image; False: it has no room, or cannot be written."""
        if segment.size + blocks(len(content)) > self._limits.segment_bytes:
            return False
        try:
            segment.images_folder.mkdir(mode=0o700, exist_ok=True)
            if write_image(segment.images_folder, digest, suffix, content):
                segment.count_image(len(content))
        except OSError:
            return False
        return True

    def _remove_oldest(self) -> None:
        """Remove the oldest finished segments beyond the limit; raises OSError."""
        stems = sorted(self._stems(LINES))
        self._sizes = {stem: self._size(stem) for stem in stems}
        excess = sum(self._sizes.values()) - self._limits.finished_bytes
        for stem in stems:
            if excess <= 0:
                return
            excess -= self._sizes.pop(stem)
            (self.path / f"{stem}{LINES}").unlink(missing_ok=True)
            shutil.rmtree(self.path / f"{stem}{IMAGES}", ignore_errors=True)

    def _size(self, stem: str) -> int:
        if stem not in self._sizes:
            size = 0
            with suppress(FileNotFoundError):  # another worker has removed it
                size = blocks((self.path / f"{stem}{LINES}").stat().st_size)
                images = (self.path / f"{stem}{IMAGES}").iterdir()
                size += sum(blocks(each.stat().st_size) for each in images)
            return size
        return self._sizes[stem]

    def _stems(self, suffix: str) -> Iterator[str]:
        """Yield the segments that have a file or folder with a suffix."""
        for path in list(self.path.iterdir()):
            if path.name.startswith(PREFIX) and path.name.endswith(suffix):
                yield path.name.removesuffix(suffix)
