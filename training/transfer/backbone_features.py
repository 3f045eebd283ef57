"""Computes the features of images with a frozen backbone, once: they are kept on disk.

Knows no head.
"""

import hashlib
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from model.atomic_file_writing import write_whole
from model.container_resources import available_processors
from model.errors import RunError
from model.images.preprocessing import InputSpec, to_float
from training.data.image_decoding import reading_again
from training.transfer.frozen_backbone import Features, FrozenBackbone
from training.transfer.random_crops import VIEWS_VERSION, random_views

BATCH_SIZE = 16
_CACHE = "features"
_BATCHES_AHEAD = 2

Images = NDArray[np.uint8]
Loaded = tuple[int, Images]
"""A row, and its images uint8 [V, C, H, W]."""


class FeatureExtractor:
    """Runs a frozen backbone, and keeps in a folder the features that it has computed."""

    def __init__(self, backbone: FrozenBackbone, spec: InputSpec, cache: Path) -> None:
        """Take a backbone.

        Args:
            backbone: features of one with another digest are not used.
            spec: of the images.
            cache: folder that is written to.
        """
        self._backbone = backbone
        self._spec = spec
        self._folder = cache / _CACHE / f"{backbone.digest[:16]}-{spec.height}x{spec.width}"

    def of_images(self, images: Images) -> Features:
        """Return the features of images uint8 [N, C, H, W]: float32 [N, F].

        Raises:
            RunError: the cache cannot be written.
        """

        def key(row: int) -> str:
            return hashlib.sha256(images[row].tobytes()).hexdigest()

        def load(row: int) -> Images:
            return images[row : row + 1]

        return self._compute(len(images), 1, key, load)[:, 0]

    def of_views(self, files: Sequence[Path], count: int, max_pixels: int) -> Features:
        """Return the features of `count` random views of each file: float32 [N, count, F].

        max_pixels: limit on the height x width of a file.

        Raises:
            DataError: a file cannot be read any more.
            RunError: the cache cannot be written.
        """

        def key(row: int) -> str:
            with reading_again(files[row]):
                content = hashlib.sha256(files[row].read_bytes()).hexdigest()
            return f"{content}-views{VIEWS_VERSION}-{count}"

        def load(row: int) -> Images:
            with reading_again(files[row]):
                return random_views(files[row], count, self._spec, max_pixels)

        return self._compute(len(files), count, key, load)

    def _compute(
        self, count: int, views: int, key: Callable[[int], str], load: Callable[[int], Images]
    ) -> Features:
        """Return the features float32 [count, views, F] of the images that `load` gives."""
        with _writing_to(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        title = "Features" if views == 1 else f"Features of {views} random views"
        bar = Progress(transient=True, disable=not sys.stdout.isatty())
        with ThreadPoolExecutor(available_processors()) as pool, bar as progress:
            task = progress.add_task(title, total=count)
            files = [self._folder / f"{name}.npy" for name in pool.map(key, range(count))]
            found = dict(enumerate(pool.map(_read, files)))
            missing = [row for row, features in found.items() if features is None]
            progress.advance(task, count - len(missing))
            for batch in _load_ahead(pool, missing, max(1, BATCH_SIZE // views), load):
                features = self._run(np.concatenate([images for _, images in batch]))
                for (row, _), part in zip(batch, np.split(features, len(batch)), strict=True):
                    found[row] = part
                    _write(files[row], part)
                progress.advance(task, len(batch))
        return np.stack([features for features in found.values() if features is not None])

    def _run(self, images: Images) -> Features:
        parts = [
            self._backbone.features(to_float(images[start : start + BATCH_SIZE]))
            for start in range(0, len(images), BATCH_SIZE)
        ]
        return np.concatenate(parts)


def _load_ahead(
    pool: ThreadPoolExecutor, rows: Sequence[int], size: int, load: Callable[[int], Images]
) -> Iterator[list[Loaded]]:
    """Yield batches of `size` loaded rows; the next one is loaded while the caller works."""
    waiting: list[list[tuple[int, Future[Images]]]] = []
    for start in range(0, len(rows), size):
        waiting.append([(row, pool.submit(load, row)) for row in rows[start : start + size]])
        if len(waiting) > _BATCHES_AHEAD:
            yield [(row, future.result()) for row, future in waiting.pop(0)]
    for batch in waiting:
        yield [(row, future.result()) for row, future in batch]


def _read(file: Path) -> Features | None:
    """Return the features in a file of the cache; None if there is no whole one."""
    try:
        features: Features = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return features if features.dtype == np.float32 else None


def _write(file: Path, features: Features) -> None:
    """Write a file of the cache in one step, so that no other process reads a part of it."""
    content = io.BytesIO()
    np.save(content, features)
    with _writing_to(file.parent):
        write_whole(file, content.getbuffer(), flush=False)


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"Features cannot be written to {folder} ({error.strerror or error}); free space, or "
            "choose another folder with --cache-dir."
        ) from error
