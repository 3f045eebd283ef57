"""Writes folders of pictures, as users have them."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int, size: tuple[int, int] = (24, 18)) -> Image.Image:
    """Return a smooth RGB picture of width x height; those of two numbers look unlike."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(number: int, file_format: str = "PNG", **options: object) -> bytes:
    """Return a picture as the content of a file."""
    file = io.BytesIO()
    picture(number).save(file, file_format, **options)
    return file.getvalue()


def write(path: Path, content: bytes) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_class(folder: Path, first: int, count: int = 5) -> None:
    """Write `count` pictures with the numbers from `first` on."""
    for number in range(first, first + count):
        write(folder / f"{number}.png", encoded(number))


def write_one_scene(root: Path, count: int) -> None:
    """Write two classes of photographs of a camera that never moves, no two files equal."""
    scene = np.asarray(picture(1, (64, 64))).astype(float)
    for first, name in enumerate(("good", "scratch")):
        for number in range(count):
            generator = np.random.default_rng(100 * first + number)
            shot = scene * generator.uniform(0.97, 1.03) + generator.normal(0, 2, scene.shape)
            shot[number, : 3 * first] = 255
            path = root / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(shot.clip(0, 255).astype(np.uint8)).save(path)
