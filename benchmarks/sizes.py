"""How much memory and processor time a service takes: `python -m benchmarks.sizes`.

The memory of all its processes, pages that they share counted once (PSS): at rest and at most
during load; and the processor time of a request, which other programs disturb less than they
disturb its duration. Takes two minutes.
"""

import io
import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import numpy as np
from PIL import Image
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from benchmarks.machine import describe_machine, end_like_ctrl_c
from benchmarks.reliability.services import MemoryWatch, Service
from model.bundle.store import open_bundle
from model.cli_and_env_settings import CommandSettings, PathArguments, load_or_exit

_CLIENTS = 8
_PNG, _JPEG = {"Content-Type": "image/png"}, {"Content-Type": "image/jpeg"}
_CAMERA_IMAGE = (4000, 3000)


class SizesSettings(CommandSettings):
    """Measure memory and processor time of the service with one model."""

    model_config = SettingsConfigDict(
        env_prefix="DROPSERVE_SIZES_", cli_prog_name="python -m benchmarks.sizes"
    )

    paths: PathArguments = Field(description="folders NAME/VERSION of a models folder")
    requests: int = Field(400, ge=8, description="requests of each kind with small images")
    photographs: int = Field(24, ge=8, description="requests with a photograph")
    workers: int = Field(1, ge=1, description="processes of the service")


@dataclass(frozen=True)
class Load:
    """Requests of one kind."""

    name: str
    route: str
    body: bytes
    headers: dict[str, str]
    count: int


def _encoded(size: tuple[int, int], form: str, colour: bool) -> bytes:
    """Return a smooth picture with some noise, width x height, as a file."""
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    (image if colour else image.convert("L")).save(file, form, quality=90)
    return file.getvalue()


def _loads(bundle: Path, settings: SizesSettings) -> list[Load]:
    channels, height, width = _input_shape(bundle)
    small = _encoded((width, height), "PNG", colour=channels == 3)
    photograph = _encoded(_CAMERA_IMAGE, "JPEG", colour=True)
    return [
        Load("PNG of its size, /predict", "/predict", small, _PNG, settings.requests),
        Load("the same, /uncertainty, 64 samples", "/uncertainty", small, _PNG, settings.requests),
        Load(
            "JPEG of 12 megapixels, /uncertainty",
            "/uncertainty",
            photograph,
            _JPEG,
            settings.photographs,
        ),
    ]


def _input_shape(bundle: Path) -> tuple[int, int, int]:
    shape = open_bundle(bundle).manifest.input
    return shape.channels, shape.height, shape.width


def _send(url: str, load: Load) -> None:
    with httpx.Client(base_url=url, timeout=60) as client:

        def post(_: int) -> None:
            client.post(load.route, content=load.body, headers=load.headers).raise_for_status()

        with ThreadPoolExecutor(_CLIENTS) as pool:
            list(pool.map(post, range(load.count)))


def _measure(bundle: Path, settings: SizesSettings, write: Callable[[str], None]) -> None:
    flags = ("--models", f"{bundle.parent.name}@{bundle.name}", "--workers", str(settings.workers))
    models = bundle.parent.parent.resolve()
    with (
        tempfile.TemporaryDirectory() as folder,
        Service(Path(folder), models, 0, *flags, cores="0") as service,
    ):
        name = f"{bundle.parent.name}, {settings.workers} worker(s)"
        write(f"| {name} | at rest | {service.server.proportional_memory():.0f} | |")
        for load in _loads(bundle, settings):
            _send(service.url, replace(load, count=_CLIENTS))
            watch = MemoryWatch(service)
            watch.start()
            before = service.server.processor_seconds()
            _send(service.url, load)
            each = 1000 * (service.server.processor_seconds() - before) / load.count
            write(f"| {name} | {load.name} | {watch.end():.0f} | {each:.2f} |")


def main() -> None:
    """Measure each bundle in turn and print a table in Markdown."""
    settings = load_or_exit(SizesSettings, sys.argv[1:])
    end_like_ctrl_c()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

    def write(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    write(f"{describe_machine()}; the service on one core, {_CLIENTS} connections.\n")
    write("| model | load | memory at most, MB | processor time a request, ms |\n|---|---|---|---|")
    for bundle in map(Path, settings.paths):
        _measure(bundle, settings, write)


if __name__ == "__main__":
    main()
