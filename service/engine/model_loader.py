"""Loads a bundle from disk into a `LoadedModel`: opened, verified, self-tested and warmed up.

Knows nothing of the other models.
"""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from model.bundle.store import Bundle, open_bundle
from model.container_resources import available_processors
from model.dropout.analytic_integration import QMC_POINTS
from model.dropout.sampling_methods import FixedSamples
from model.errors import BundleError, UnreadableBundleError
from model.graphs.sessions import CancellationToken
from model.images.preprocessing import InputSpec
from model.inference.predictor import Predictor
from model.inference.predictor_loading import load_predictor
from model.uncertainty.calibration import CALIBRATION_FILE, Calibrator
from service.engine.batcher import Batcher, Limits, RowPredictor
from service.engine.daemon_threads import DaemonThreads
from service.engine.latency_estimator import Costs
from service.engine.request_scheduling import SLICE_SECONDS
from service.engine.thread_priority import lower_thread_priority
from service.observability.drift_monitor import DriftMonitor
from service.observability.drift_state_storage import DriftStates
from service.observability.metrics_recorder import Metrics
from service.settings import ServiceSettings

_INLINE_SECONDS = {False: 0.002, True: 0.02}
"""The longest inline run, by whether each worker has only one core: another thread then gains
nothing, and health checks wait no longer than they would wait for the core."""

_TIMED_RUNS = 2
"""The faster one counts: the first may have to read the weights into the processor's caches."""


@dataclass(eq=False)
class LoadedModel:
    """One version of one model, with its batcher; requests use it inside `with`, see `drain`."""

    bundle: Bundle
    card: str
    batcher: Batcher
    calibrator: Calibrator | None
    drift: DriftMonitor | None
    """None for an uncalibrated model."""
    _users: int = 0
    _unused: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> str:
        """The name of the model."""
        return self.bundle.manifest.name

    @property
    def version_number(self) -> int:
        """The version as a number."""
        return self.bundle.manifest.version

    @cached_property
    def version(self) -> str:
        """The version as clients see it."""
        return str(self.version_number)

    def __enter__(self) -> "LoadedModel":
        """Count one more user."""
        self._users += 1
        return self

    def __exit__(self, *_: object) -> None:
        """Count one user less."""
        self._users -= 1
        if not self._users:
            self._unused.set()

    async def drain(self, timeout_seconds: float | None = None) -> None:
        """Wait for the requests that use the model, then close its batcher.

        The model must already be out of service, so that no new request gets it.

        timeout_seconds: afterwards the batcher is closed although it is in use, see
            `Batcher.close`; None: wait for all requests.
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
    """Opening and testing a bundle took too long."""


class Loader:
    """Opens bundles while requests are served, one at a time, each on a new thread."""

    def __init__(self, settings: ServiceSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._drift_states = DriftStates.of_service()
        # The threads of a larger pool would inherit the priority and keep it.
        initializer = lower_thread_priority if settings.threads == 1 else None
        self._threads = DaemonThreads("loader", initializer)
        self._stop: CancellationToken | None = None

    async def open(self, path: Path, required_input: InputSpec | None) -> LoadedModel:
        """Open, verify, self-test and warm up the bundle in the folder `path`.

        required_input: the input that clients of the model already send; None: any.

        Raises:
            BundleError: it is damaged, fails its self-test, or takes other images than
                `required_input`.
            LoadTimeoutError: this took too long.
            UnreadableBundleError: its files, or the memory for it, cannot be had now.
            StoppingError: the service is stopping.
        """
        seconds = self._settings.load_timeout_seconds
        stop = self._stop = CancellationToken()
        try:
            bundle, predictor, costs = await self._threads.call(
                seconds, self._open, path, required_input, stop
            )
        except TimeoutError:
            stop.set()
            raise LoadTimeoutError(
                f"{path} could not be opened and tested within {seconds:g} seconds; export it "
                "again, or allow more with --load-timeout-seconds."
            ) from None
        except MemoryError:
            raise UnreadableBundleError(
                f"{path} could not be opened and tested for want of memory; give the service more, "
                "or let it serve fewer versions."
            ) from None
        except BaseException:
            stop.set()
            raise
        finally:
            self._stop = None  # `stop` must not end the runs of a model in service
        return self.serve(bundle, bundle.card, predictor, predictor.calibrator, costs)

    def serve(
        self,
        bundle: Bundle,
        card: str,
        predictor: RowPredictor,
        calibrator: Calibrator | None,
        costs: Costs | None = None,
    ) -> LoadedModel:
        """Create the batcher of an opened model; call it in a running event loop."""
        settings, manifest = self._settings, bundle.manifest
        limits = Limits(
            batch_rows=settings.max_batch_rows,
            queue_rows=settings.max_queue_rows,
            timeout_seconds=settings.inference_timeout_seconds,
            inline_seconds=_INLINE_SECONDS[settings.workers >= available_processors()],
        )
        version = str(manifest.version)
        batcher = Batcher(manifest.name, predictor, limits, self._metrics, version, costs)
        drift = None
        if calibrator is not None:
            drift = DriftMonitor(
                manifest.name,
                version,
                calibrator,
                settings.drift_level,
                self._metrics,
                self._drift_states,
                digest=manifest.files[CALIBRATION_FILE],
            )
        return LoadedModel(bundle, card, batcher, calibrator, drift)

    def stop(self) -> None:
        """Abandon the bundle that is being opened, and open no more."""
        if self._stop is not None:
            self._stop.set()
        self._threads.abandon()

    def _open(
        self, path: Path, required_input: InputSpec | None, stop: CancellationToken
    ) -> tuple[Bundle, Predictor, Costs]:
        bundle = open_bundle(path, self._settings.served_model_name)
        _require_same_input(bundle, required_input)
        predictor = load_predictor(bundle, self._settings.threads, stop, self._settings.provider)
        try:
            costs = self._warm(bundle, predictor)
        except MemoryError:
            raise
        except Exception as error:  # any error of a graph that its manifest does not describe
            reason = str(error).partition("\n")[0]
            raise BundleError(
                f"{path} does not take the images its manifest declares ({reason}); "
                "export it again."
            ) from None
        predictor.run_options = None  # they belonged to `stop`
        return bundle, predictor, costs

    def _warm(self, bundle: Bundle, predictor: Predictor) -> Costs:
        """Run one row and a full batch, so that no request pays for allocations or default masks.

        Returns:
            The measured costs, by which later requests are bounded and sliced.
        """
        settings, spec = self._settings, bundle.manifest.input
        layers = bundle.manifest.dropout_layers
        how = FixedSamples(settings.default_seed, settings.default_samples)
        # Other threads do not add to the thread's own time, but it covers a single thread only.
        alone = settings.threads == 1 and settings.provider == "cpu"
        clock = time.thread_time if alone else time.perf_counter

        def trunk(rows: int) -> float:
            images = np.zeros((rows, spec.channels, spec.height, spec.width), np.float32)
            started = clock()
            predictor.predict(images)
            return (clock() - started) / rows

        def head() -> float:
            started = time.thread_time()  # the head always runs on a single thread
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
            max(QMC_POINTS, layers[0].width + 1) if len(layers) == 1 else 0,
        )


def _require_same_input(bundle: Bundle, required_input: InputSpec | None) -> None:
    if required_input is None:
        return
    spec = bundle.manifest.input
    if _shape(spec) != _shape(required_input):
        raise BundleError(
            f"{bundle.path} takes images of {_format_shape(spec)}, but clients of "
            f"{bundle.manifest.name} send {_format_shape(required_input)}; train it "
            "under another name, or unload the model first."
        )


def _shape(spec: InputSpec) -> tuple[int, int, int]:
    return spec.channels, spec.height, spec.width


def _format_shape(spec: InputSpec) -> str:
    return " x ".join(map(str, _shape(spec)))
