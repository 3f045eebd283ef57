"""A bundle on disk -> a model in service: opened, verified, tested, warmed.

Knows nothing of the other models.
"""

import asyncio
import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from model.bundle.store import Bundle, open_bundle
from model.dropout.analytic import POINTS
from model.dropout.sampling import FixedSamples
from model.errors import BundleError
from model.graphs.sessions import Stop
from model.images.preprocessing import InputSpec
from model.inference.predictor import Predictor, open_tested
from model.uncertainty.calibration import Calibrator
from service.engine.batcher import Batcher, Limits, RowPredictor
from service.engine.latency import Costs
from service.engine.scheduling import SLICE_SECONDS
from service.engine.threads import DaemonThreads
from service.observability.metrics import Metrics
from service.resources import processors
from service.settings import ServiceSettings

_INLINE_SECONDS = {False: 0.002, True: 0.02}
"""Longest run on the event loop's thread, by whether each worker has but one core: a thread then
gains nothing, and health checks wait no longer than they would for the core."""

_NICE = 5
"""Of the thread that opens bundles; a nicer one could hold Python's lock and wait its turn."""

_TIMED_RUNS = 2
"""The faster one counts: the first may still have to fetch the weights from memory."""


@dataclass(eq=False)
class LoadedModel:
    """One version of one model in service, kept for as long as a request uses it."""

    bundle: Bundle
    card: str
    batcher: Batcher
    calibrated: Calibrator | None
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

    def __enter__(self) -> "LoadedModel":
        """Begin to use it."""
        self._users += 1
        return self

    def __exit__(self, *_: object) -> None:
        """End to use it."""
        self._users -= 1
        if not self._users:
            self._unused.set()

    async def let_go(self, timeout_seconds: float | None = None) -> None:
        """Wait until nobody uses it, and end it; from now on nobody may begin to.

        timeout_seconds: then it is ended although it is used, see `Batcher.close`; None: never.
        """
        started = time.perf_counter()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while self._users:
                    self._unused.clear()
                    await self._unused.wait()
        if timeout_seconds is not None:
            timeout_seconds = max(0.0, timeout_seconds - (time.perf_counter() - started))
        await self.batcher.close(timeout_seconds)


class LoadTimeoutError(BundleError):
    """A bundle takes too long to open and to test."""


class Loader:
    """Opens bundles beside the traffic, one at a time, on a thread of its own."""

    def __init__(self, settings: ServiceSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        behind = _behind_the_traffic if settings.threads == 1 else None
        self._threads = DaemonThreads("loader", behind)
        self._stop: Stop | None = None

    async def open(self, path: Path, like: InputSpec | None) -> LoadedModel:
        """Open the bundle in the folder `path` and prove it.

        like: what clients of the model send already; None: nothing yet.

        Raises:
            BundleError: it is damaged, fails its self-test, or takes other images than `like`.
            LoadTimeoutError: that has taken too long.
            StoppingError: the service is stopping.
        """
        seconds = self._settings.load_timeout_seconds
        stop = self._stop = Stop()
        try:
            bundle, predictor, costs = await self._threads.call(
                seconds, self._open, path, like, stop
            )
        except TimeoutError:
            stop.set()
            raise LoadTimeoutError(
                f"{path} could not be opened and tested within {seconds:g} seconds; export it "
                "again, or allow more with --load-timeout-seconds."
            ) from None
        except BaseException:
            stop.set()
            raise
        finally:
            self._stop = None  # what is in service goes on when the loader stops
        return self.serve(bundle, bundle.card, predictor, predictor.calibrated, costs)

    def serve(
        self,
        bundle: Bundle,
        card: str,
        predictor: RowPredictor,
        calibrated: Calibrator | None,
        costs: Costs | None = None,
    ) -> LoadedModel:
        """Put a queue in front of an opened model; call it in a running event loop."""
        settings, manifest = self._settings, bundle.manifest
        limits = Limits(
            batch_rows=settings.max_batch_rows,
            queue_rows=settings.max_queue_rows,
            timeout_seconds=settings.inference_timeout_seconds,
            inline_seconds=_INLINE_SECONDS[settings.workers >= processors()],
        )
        version = str(manifest.version)
        batcher = Batcher(manifest.name, predictor, limits, self._metrics, version, costs)
        return LoadedModel(bundle, card, batcher, calibrated)

    def stop(self) -> None:
        """End what is being opened, and open nothing more."""
        if self._stop is not None:
            self._stop.set()
        self._threads.abandon()

    def _open(
        self, path: Path, like: InputSpec | None, stop: Stop
    ) -> tuple[Bundle, Predictor, Costs]:
        bundle = open_bundle(path)
        _require_alike(bundle, like)
        predictor = open_tested(bundle, self._settings.threads, stop)
        try:
            costs = self._warm(bundle, predictor)
        except Exception as error:  # whatever a graph raises that its manifest does not describe
            reason = str(error).partition("\n")[0]
            raise BundleError(
                f"{path} does not take the images its manifest declares ({reason}); "
                "export it again."
            ) from None
        predictor.run_options = None  # those of `stop`, which is over
        return bundle, predictor, costs

    def _warm(self, bundle: Bundle, predictor: Predictor) -> Costs:
        """Run the sizes to come, so that the first request pays for no allocation or mask.

        Returns:
            What the network takes: later requests are bounded and sliced by it.
        """
        settings, spec = self._settings, bundle.manifest.input
        layers = bundle.manifest.dropout_layers
        how = FixedSamples(settings.default_seed, settings.default_samples)
        # Of processor time others take no share; but more threads' time cannot be told.
        clock = time.thread_time if settings.threads == 1 else time.perf_counter

        def trunk(rows: int) -> float:
            images = np.zeros((rows, spec.channels, spec.height, spec.width), np.float32)
            started = clock()
            predictor.predict(images)
            return (clock() - started) / rows

        def head() -> float:
            started = time.thread_time()  # of a single thread always
            predictor.uncertainty(prediction, how)
            return (time.thread_time() - started) / how.samples

        one = np.zeros((1, spec.channels, spec.height, spec.width), np.float32)
        prediction = predictor.predict(one)
        predictor.uncertainty(prediction, how)
        trunk_seconds = min(trunk(1) for _ in range(_TIMED_RUNS))
        batch = int(SLICE_SECONDS / trunk_seconds) if trunk_seconds else settings.max_batch_rows
        return Costs(
            min(trunk_seconds, trunk(max(1, min(batch, settings.max_batch_rows)))),
            min(head() for _ in range(_TIMED_RUNS)),
            max(POINTS, layers[0].width + 1) if len(layers) == 1 else 0,
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
