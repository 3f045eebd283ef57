"""A bundle on disk -> a model in service: opened, verified, tested, warmed.

Knows nothing of the other models.
"""

import asyncio
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from model.bundle import Bundle, open_bundle
from model.calibration import Calibrated
from model.errors import BundleError
from model.predictor import Predictor, open_tested
from model.preprocessing import InputSpec
from model.sampling import Fixed
from service.batching import Batcher, Limits, RowPredictor
from service.metrics import Metrics
from service.resources import processors
from service.settings import ServiceSettings

_BRIEF_SECONDS = {False: 0.002, True: 0.02}
"""Longest run on the event loop's thread, by whether each worker has but one core: a thread then
gains nothing, and health checks wait no longer than they would for the core."""

_NICE = 5
"""Of the thread that opens bundles; a nicer one could hold Python's lock and wait its turn."""


@dataclass(eq=False)
class Served:
    """One version of one model in service, kept for as long as a request uses it."""

    bundle: Bundle
    card: str
    batcher: Batcher
    calibrated: Calibrated | None
    _users: int = 0
    _unused: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.bundle.manifest.name

    @property
    def number(self) -> int:
        """The version."""
        return self.bundle.manifest.version

    @cached_property
    def version(self) -> str:
        """The version as it goes over the wire."""
        return str(self.number)

    def __enter__(self) -> "Served":
        """Begin to use it."""
        self._users += 1
        return self

    def __exit__(self, *_: object) -> None:
        """End to use it."""
        self._users -= 1
        if not self._users:
            self._unused.set()

    async def let_go(self) -> None:
        """Wait until nobody uses it, and end it; from now on nobody may begin to."""
        while self._users:
            self._unused.clear()
            await self._unused.wait()
        await self.batcher.close()


class Loader:
    """Opens bundles beside the traffic, one at a time, on a thread of its own."""

    def __init__(self, settings: ServiceSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        behind = _behind_the_traffic if settings.threads == 1 else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loader", initializer=behind)

    async def open(self, path: Path, like: InputSpec | None) -> Served:
        """Open the bundle in the folder `path` and prove it.

        like: what clients of the model send already; None: nothing yet.

        Raises:
            BundleError: it is damaged, fails its self-test, or takes other images than `like`.
        """
        loop = asyncio.get_running_loop()
        bundle, card, predictor = await loop.run_in_executor(self._thread, self._open, path, like)
        return self.serve(bundle, card, predictor, predictor.calibrated)

    def serve(
        self, bundle: Bundle, card: str, predictor: RowPredictor, calibrated: Calibrated | None
    ) -> Served:
        """Put a queue in front of an opened model; call it in a running event loop."""
        settings, manifest = self._settings, bundle.manifest
        limits = Limits(
            batch_rows=settings.max_batch_rows,
            queue_rows=settings.max_queue_rows,
            timeout_seconds=settings.inference_timeout_seconds,
            brief_seconds=_BRIEF_SECONDS[settings.workers >= processors()],
        )
        version = str(manifest.version)
        batcher = Batcher(manifest.name, predictor, limits, self._metrics, version)
        return Served(bundle, card, batcher, calibrated)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    def _open(self, path: Path, like: InputSpec | None) -> tuple[Bundle, str, Predictor]:
        bundle = open_bundle(path)
        _require_alike(bundle, like)
        predictor = open_tested(bundle, self._settings.threads)
        try:
            self._warm(bundle, predictor)
        except Exception as error:  # whatever a graph raises that its manifest does not describe
            reason = str(error).partition("\n")[0]
            raise BundleError(
                f"{path} does not take the images its manifest declares ({reason}); "
                "export it again."
            ) from None
        return bundle, bundle.card, predictor

    def _warm(self, bundle: Bundle, predictor: Predictor) -> None:
        """Run the sizes to come, so that the first request pays for no allocation or mask."""
        spec = bundle.manifest.input
        for rows in (1, self._settings.max_batch_rows):
            images = np.zeros((rows, spec.channels, spec.height, spec.width), np.float32)
            prediction = predictor.predict(images).take(slice(1))
            predictor.uncertainty(
                prediction, Fixed(self._settings.default_seed, self._settings.default_samples)
            )


def _behind_the_traffic() -> None:
    """Let this thread have what requests leave of the processor.

    Only where a run needs no threads besides: they would inherit it for good.
    """
    if sys.platform == "linux":  # elsewhere it would be the whole process
        with suppress(OSError):  # a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def _require_alike(bundle: Bundle, like: InputSpec | None) -> None:
    if like is None:
        return
    given = bundle.manifest.input
    if (given.channels, given.height, given.width) != (like.channels, like.height, like.width):
        raise BundleError(
            f"{bundle.path} takes images of {_size(given)}, but clients of "
            f"{bundle.manifest.name} send {_size(like)}; train it under another name, or unload "
            "the model first."
        )


def _size(spec: InputSpec) -> str:
    return f"{spec.channels} x {spec.height} x {spec.width}"
