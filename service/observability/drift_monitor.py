"""Tests the stream of images of one model version for drift, and shows the result as metrics.

Requests note their typicality and confidence; the tests continue later, with many images at once.
No image is kept. Knows no route.
"""

import asyncio
import struct
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import structlog
from numpy.typing import NDArray

from model.dropout.sampling_methods import FixedSamples, Sampling
from model.uncertainty.calibration import Calibrator
from model.uncertainty.drift import DriftTest
from service.errors import DeadlineError
from service.observability.drift_state_storage import DriftStates
from service.observability.metrics_recorder import Metrics

logger = structlog.stdlib.get_logger("service")

Figure = Literal["typicality", "confidence"]
Floats = NDArray[np.floating[Any]]

FIGURES: tuple[Figure, ...] = ("typicality", "confidence")
"""What is tested of an image. Each figure has half of the level."""
_RESET_TIME = struct.Struct("d")
"""It is stored in front of the states of the tests; 0 before the first reset."""
_MAX_PENDING_IMAGES = 512
"""With so many values noted, the tests continue at once, which takes a millisecond. They also do so
before the metrics are read. Fewer at once take up to four times as long an image."""
_RETRY_SECONDS = 0.005
_TIMEOUT_SECONDS = 1.0
"""How long to try when another worker continues the tests."""


class DriftMonitor:
    """The drift tests of one loaded version. Only the event-loop thread may use it."""

    def __init__(
        self,
        model: str,
        version: str,
        calibrator: Calibrator,
        level: float,
        metrics: Metrics,
        states: DriftStates,
        digest: str,
    ) -> None:
        """Begin, or continue where another worker is, or an earlier load of the same version was.

        level: largest probability of an alarm while images are like the validation images.
        digest: of the calibration, so that another bundle of the same version begins anew.
        """
        self.level = level
        self._labels = {"model": model, "version": version}
        self._calibrator = calibrator
        self._states = states
        self._key = f"{model}-{version}-{digest[:16]}"
        self._deferred = metrics.deferred
        self._gauges = {
            figure: (
                metrics.drift_log_wealth.labels(model, version, figure),
                metrics.drift_alarm.labels(model, version, figure),
            )
            for figure in FIGURES
        }
        self._noted: dict[Figure, list[tuple[float, Floats]]] = {each: [] for each in FIGURES}
        """When each request was noted, and the typicality or the confidence of its images, [N]."""
        self._noted_images = 0
        self._advances_at_flush = False
        self._reset_time = 0.0
        """When a worker last began the tests anew, seconds since 1970."""
        self.tests: dict[Figure, DriftTest] = self._tests(b"")
        """The tests, as this process last knew them."""
        self.advance()

    def observe(self, typicality: Floats, confidences: Floats, sampling: Sampling) -> None:
        """Note both figures of the N images of a request, [N] each."""
        self.observe_typicality(typicality)
        self.observe_confidence(confidences, sampling)

    def observe_typicality(self, typicality: Floats) -> None:
        """Note the typicality of the N images of a request, [N]."""
        self._note("typicality", typicality)

    def observe_confidence(self, confidences: Floats, sampling: Sampling) -> None:
        """Note the labels' mean probabilities of the N images of a request, [N].

        Those of fewer samples than the calibration's, or of other designs, are left out: their
        confidences differ from those of the validation images on the same images already.
        """
        if (
            isinstance(sampling, FixedSamples)
            and sampling.design == "orthogonal"
            and sampling.samples >= self._calibrator.parameters.samples
        ):
            self._note("confidence", confidences)

    def _note(self, figure: Figure, values: Floats) -> None:
        if self._noted_images >= _MAX_PENDING_IMAGES and not self.advance():
            return  # without these images the tests stay as valid, and the memory bounded
        self._noted[figure].append((time.time(), values))
        self._noted_images += len(values)
        if self._noted_images >= _MAX_PENDING_IMAGES:
            self.advance()
        elif not self._advances_at_flush:
            self._advances_at_flush = True
            self._deferred.defer_until_flush(self._advance_at_flush)

    def _advance_at_flush(self) -> None:
        self._advances_at_flush = False
        self.advance()

    def advance(self) -> bool:
        """Continue the tests with what was noted; return whether that was possible now.

        Afterwards `tests` are those of all workers.
        """
        raised: list[Figure] = []

        def step(state: bytes) -> bytes:
            if state:
                (self._reset_time,) = _RESET_TIME.unpack_from(state)
            self.tests = self._tests(state[_RESET_TIME.size :])
            for figure, test in self.tests.items():
                had_alarm = test.alarm is not None
                test.observe(*self._ranks_and_times(figure))
                if test.alarm is not None and not had_alarm:
                    raised.append(figure)
            return self._show()

        if not self._states.update(self._key, step):
            return False
        self._forget_noted()
        for figure in raised:
            logger.warning(
                "drift",
                **self._labels,
                figure=figure,
                reason=_reason(figure, self._labels["model"]),
            )
        return True

    async def refresh(self) -> None:
        """Make `tests` those of all workers now.

        Raises:
            DeadlineError: another worker holds them.
        """
        await self._retry(self.advance)

    async def reset(self) -> None:
        """Begin the tests anew, in all workers; an alarm ends.

        Raises:
            DeadlineError: another worker holds them.
        """

        def step(_: bytes) -> bytes:
            self._reset_time = time.time()
            self.tests = self._tests(b"")
            return self._show()

        await self._retry(lambda: self._states.update(self._key, step))

    async def _retry(self, attempt: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                while not attempt():
                    await asyncio.sleep(_RETRY_SECONDS)
        except TimeoutError:
            raise DeadlineError(
                "The drift test cannot be continued now, since another worker holds its file or "
                "the file cannot be written; try again, or see the log."
            ) from None

    def _tests(self, state: bytes) -> dict[Figure, DriftTest]:
        """Return the tests with the states in the bytes, one behind the other; empty: new ones."""
        images = self._calibrator.parameters.images
        size = len(state) // len(FIGURES)
        return {
            figure: DriftTest(
                images, self.level / len(FIGURES), state[number * size : (number + 1) * size]
            )
            for number, figure in enumerate(FIGURES)
        }

    def _ranks_and_times(self, figure: Figure) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the ranks of all images noted since the reset, and when they were."""
        noted = [each for each in self._noted[figure] if each[0] > self._reset_time]
        if not noted:
            return np.empty(0, np.int64), np.empty(0)
        values = np.concatenate([values for _, values in noted])
        times = np.repeat([moment for moment, _ in noted], [len(values) for _, values in noted])
        if figure == "typicality":
            return self._calibrator.typicality_ranks(values), times
        return self._calibrator.confidence_ranks(values), times

    def _forget_noted(self) -> None:
        for values in self._noted.values():
            values.clear()
        self._noted_images = 0

    def _show(self) -> bytes:
        """Show the tests in the metrics, and return the state to store.

        Called while no other worker continues the tests, so that the most recent value of a gauge
        is that of the newest state.
        """
        for figure, (log_wealth, alarm) in self._gauges.items():
            log_wealth.set(self.tests[figure].log_wealth)
            alarm.set(self.tests[figure].alarm is not None)
        return _RESET_TIME.pack(self._reset_time) + b"".join(
            test.to_bytes() for test in self.tests.values()
        )


def _reason(figure: Figure, model: str) -> str:
    """Say what an alarm means and what to do, for the log."""
    return (
        f"too many images of low {figure}, compared with the validation images, or a few of them "
        f"again and again, as when one tries the service; see GET /models/{model}/drift and "
        "docs/operations.md, and end the alarm with "
        f"python -m service.control reset-drift {model}"
    )
