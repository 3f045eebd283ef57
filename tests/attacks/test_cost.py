"""Costly requests: refused if they cannot meet their timeout, otherwise run in slices.

Each run waits for a permit, so that a test forces each order; costs are fixed, not measured.
"""

import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model.dropout.sampling_methods import AdaptiveSamples, Analytic, FixedSamples, Sampling
from model.graphs.sessions import RunOptions, create_session
from model.images.preprocessing import to_float
from model.inference.prediction import Prediction
from model.inference.predictor import Predictor
from model.uncertainty.uncertainty_measures import Uncertainty
from service.engine.batcher import Batcher, Limits
from service.engine.latency_estimator import Costs
from service.engine.pending_requests import Floats, Result
from service.errors import DeadlineError, NotReadyError, OverloadedError, TooCostlyError
from service.observability.metrics_recorder import Metrics
from tests.model.graphs.test_sessions import endless_graph
from tests.pictures import instances
from tests.service.bad_requests import PICTURE
from tests.service.engine.test_batcher import EchoPredictor, all_submitted, images, queued_rows
from tests.service.serving import (
    JSON,
    TIMEOUT_SECONDS,
    check_error,
    predictions,
    real_predictor,
    serving_models,
)
from training.data.dataset import Split

ROW, SAMPLE = 1e-6, 1e-7
CHEAP = Costs(trunk_seconds=ROW, head_seconds=SAMPLE)
"""Shorter than any run of a test, so that no run lowers the estimates."""
TWO_ROWS = Limits(64, 1024, timeout_seconds=60, inline_seconds=0, slice_seconds=2.9 * ROW)
"""Slices of two rows at the costs of `CHEAP`, and no inline run, which would block the test."""
EXPENSIVE = Costs(trunk_seconds=0.03, head_seconds=0.0012)
"""The costs of AlexNet's head on a slow core."""


class SteppedPredictor(EchoPredictor):
    """Each run waits until the test permits one."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[list[float]] = []
        """The images of each run, as numbers."""
        self._started = threading.Semaphore(0)
        self._permitted = threading.Semaphore(0)

    def predict(self, images: Floats) -> Prediction:
        self.runs.append(images.ravel().tolist())
        self._started.release()
        assert self._permitted.acquire(timeout=TIMEOUT_SECONDS), "no run was permitted"
        return super().predict(images)

    def permit(self, runs: int = 1) -> None:
        self._permitted.release(runs)

    async def until_running(self) -> None:
        assert await asyncio.to_thread(self._started.acquire, timeout=TIMEOUT_SECONDS)


def stepped(limits: Limits = TWO_ROWS) -> tuple[SteppedPredictor, Batcher, Metrics]:
    predictor, metrics = SteppedPredictor(), Metrics()
    return predictor, Batcher("echo", predictor, limits, metrics, costs=CHEAP), metrics


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def refusing(costs: Costs, **limits: Any) -> Batcher:
    knobs = {"batch_rows": 64, "queue_rows": 1024, "timeout_seconds": 30, **limits}
    return Batcher("echo", EchoPredictor(), Limits(**knobs), Metrics(), costs=costs)


@pytest.mark.parametrize(
    ("rows", "sampling", "timeout_seconds", "seconds", "instead"),
    [
        (
            64,
            FixedSamples(5, 1024),
            30,
            81,
            "send at most 11 images at once, or draw at most 170 samples",
        ),
        (2, FixedSamples(5, 1024), 1, 2.5, "draw at most 183 samples"),
        (8, None, 0.2, 0.24, "send at most 3 images at once"),
        (64, AdaptiveSamples(0, 1024), 2, 3.1, "send at most 20 images at once"),
        (64, Analytic(), 20, 48, "send at most 13 images at once"),
        (1, FixedSamples(5, 65_536), 0.05, 79, "send one image, and draw no samples"),
    ],
)
def test_batcher_refuses_a_request_longer_than_its_timeout_at_once(
    rows: int, sampling: Sampling | None, timeout_seconds: float, seconds: float, instead: str
) -> None:
    async def scenario() -> None:
        costs = Costs(EXPENSIVE.trunk_seconds, EXPENSIVE.head_seconds, analytic_samples=600)
        queue = refusing(costs)
        with pytest.raises(TooCostlyError) as refused:
            await queue.infer(images(*range(rows)), sampling, timeout_seconds)
        assert str(refused.value) == (
            f"This would take about {seconds} seconds, and {timeout_seconds} are allowed; "
            f"{instead}."
        )
        await queue.close(0)

    run(scenario())


def test_batcher_accepts_what_a_refusal_advises() -> None:
    async def scenario() -> None:
        queue = refusing(EXPENSIVE)
        for rows, samples in ((11, 1024), (64, 170)):
            answer = await queue.uncertainty(images(*range(rows)), FixedSamples(5, samples))
            assert len(answer.labels) == rows
        await queue.close()

    run(scenario())


def test_batcher_never_refuses_a_single_deterministic_image_as_too_costly() -> None:
    async def scenario() -> None:
        queue = refusing(Costs(1000, 1000))
        assert len((await queue.predict(images(1))).logits) == 1
        await queue.close()

    run(scenario())


def test_batcher_reports_overload_when_pending_requests_take_too_long() -> None:
    async def scenario() -> None:
        predictor, metrics = SteppedPredictor(), Metrics()
        limits = Limits(batch_rows=64, queue_rows=1024, timeout_seconds=30)
        queue = Batcher("echo", predictor, limits, metrics, costs=EXPENSIVE)
        (first,) = await all_submitted(queue.uncertainty(images(*range(20)), FixedSamples(5, 1024)))
        await predictor.until_running()
        with pytest.raises(OverloadedError, match=r"^What waits already takes about 4\d seconds,"):
            await queue.uncertainty(images(*range(20)), FixedSamples(6, 1024))
        assert queued_rows(metrics) == 19
        short = await all_submitted(queue.predict(images(100)))  # waits for one slice only
        first.cancel()
        predictor.permit(2)
        assert (await short[0]).features[0, 0] == 100
        await queue.close()

    run(scenario())


def test_batcher_runs_short_requests_between_slices_of_a_long_one() -> None:
    async def scenario() -> None:
        predictor, queue, _ = stepped()
        (long,) = await all_submitted(queue.predict(images(*range(7))))
        await predictor.until_running()
        (short,) = await all_submitted(queue.predict(images(100)))
        predictor.permit(2)
        assert (await short).features[0, 0] == 100
        assert not long.done()
        predictor.permit(3)
        answer = await long
        assert answer.features[:, 0].tolist() == list(range(7))
        assert answer.logits[:, 0].tolist() == [2 * row for row in range(7)]
        assert predictor.runs == [[0, 1], [100], [2, 3], [4, 5], [6]]
        await queue.close()

    run(scenario())


def test_batcher_runs_the_long_request_with_the_shortest_remaining_time_first() -> None:
    async def scenario() -> None:
        predictor, queue, _ = stepped()
        (longest,) = await all_submitted(queue.predict(images(*range(8))))
        await predictor.until_running()
        (long,) = await all_submitted(queue.predict(images(100, 101, 102)))
        predictor.permit(3)
        assert (await long).features[:, 0].tolist() == [100, 101, 102]
        predictor.permit(3)
        await longest
        assert predictor.runs[:3] == [[0, 1], [100, 101], [102]]
        await queue.close()

    run(scenario())


@pytest.mark.parametrize("moment", ["queued", "during the first slice", "after the first slice"])
@pytest.mark.parametrize("reason", ["cancelled", "timed out"])
def test_batcher_never_runs_the_remaining_rows_of_an_abandoned_request(
    moment: str, reason: str
) -> None:
    async def scenario() -> None:
        predictor, queue, metrics = stepped()
        (other,) = await all_submitted(queue.predict(images(100)))
        await predictor.until_running()
        (gone,) = await all_submitted(queue.predict(images(*range(6))))
        runs = 0 if moment == "queued" else 1
        if runs:
            predictor.permit()
            await other
            await predictor.until_running()
        if moment == "after the first slice":
            (between,) = await all_submitted(queue.predict(images(150)))
            predictor.permit()
            await predictor.until_running()
            assert not between.done()
        assert queued_rows(metrics) == 6 - 2 * runs
        if reason == "cancelled":
            gone.cancel()
        else:
            for request in list(queue._deadlines._requests):
                if request.rows == 6:
                    request.expire()
        await asyncio.wait([gone])
        assert queued_rows(metrics) == 0
        assert 6 not in [request.rows for request in queue._deadlines._requests]
        (next_one,) = await all_submitted(queue.predict(images(200)))
        predictor.permit(2)
        assert (await next_one).features[0, 0] == 200
        others = [[150]] if moment == "after the first slice" else []
        assert predictor.runs == [[100], *[[0, 1]][:runs], *others, [200]]
        with pytest.raises(asyncio.CancelledError if reason == "cancelled" else DeadlineError):
            await gone
        assert not queue._queue
        await queue.close()

    run(scenario())


def test_failing_slice_fails_its_request_alone() -> None:
    async def scenario() -> None:
        predictor, queue, metrics = stepped()
        (bad,) = await all_submitted(queue.predict(images(0, 1, 2, -1, 4, 5)))
        await predictor.until_running()
        (good,) = await all_submitted(queue.predict(images(7)))
        predictor.permit(3)
        with pytest.raises(ValueError, match="poisoned"):
            await bad
        assert (await good).features[0, 0] == 7
        assert queued_rows(metrics) == 0
        assert [4, 5] not in predictor.runs
        await queue.close()

    run(scenario())


def test_batch_of_many_requests_is_no_longer_than_a_slice() -> None:
    async def scenario() -> None:
        predictor, queue, _ = stepped()
        (first,) = await all_submitted(queue.predict(images(0)))
        await predictor.until_running()
        rest = await all_submitted(*(queue.predict(images(number)) for number in range(1, 8)))
        predictor.permit(8)
        await asyncio.gather(first, *rest)
        assert max(len(rows) for rows in predictor.runs) == 2
        await queue.close()

    run(scenario())


def columns(answer: Result) -> list[NDArray[Any]]:
    if isinstance(answer, Prediction):
        return [answer.logits, answer.features, *answer.classification, answer.probabilities]
    if isinstance(answer, Uncertainty):
        return [getattr(answer, name) for name in Uncertainty.__slots__]
    return [answer.values, answer.labels]


@pytest.fixture(scope="module")
def predictor(models_folder: Path) -> Predictor:
    return real_predictor(models_folder)


@pytest.mark.parametrize(
    "sampling",
    [
        None,
        FixedSamples(1, 64),
        FixedSamples(1, 64, summary_only=True),
        FixedSamples(2, 37),
        AdaptiveSamples(0, 256),
        Analytic(),
    ],
    ids=str,
)
@pytest.mark.parametrize("rows", [1, 5])
def test_slices_give_the_same_bytes_as_one_run(
    predictor: Predictor, held_out: Split, sampling: Sampling | None, rows: int
) -> None:
    rows_sent = to_float(held_out.images[:32])

    async def answered(costs: Costs | None) -> list[NDArray[Any]]:
        metrics = Metrics()
        limits = Limits(64, 1024, timeout_seconds=60, slice_seconds=(rows + 0.5) * ROW)
        queue = Batcher("digits", predictor, limits, metrics, costs=costs)
        answer = await queue.infer(rows_sent, sampling, TIMEOUT_SECONDS)
        await queue.close()
        return columns(answer)

    whole = asyncio.run(answered(None))
    sliced = asyncio.run(answered(Costs(ROW, 0.0)))
    assert [each.tobytes() for each in sliced] == [each.tobytes() for each in whole]


def test_loader_measures_the_costs_of_a_bundle(models_folder: Path) -> None:
    """The network takes microseconds, so only the maximum number of samples is too costly."""
    body = instances([PICTURE] * 8)
    limits = {"inference_timeout_seconds": 0.11, "max_samples": 65_536}
    with serving_models(models_folder, **limits) as service:
        refused = service.post("/uncertainty?samples=65536&seed=9", body, headers=JSON)
        sentence = "This would take about … seconds, and 0.11 are allowed; …"
        check_error(refused, 413, "too_costly", sentence)
        assert service.metric("dropserve_inference_runs_total", model="digits-mc", version="1") == 0
        assert len(predictions(service.post("/predict", body, headers=JSON))) == 8


class ExitingPredictor(EchoPredictor):
    """Raises SystemExit, as a library might."""

    def predict(self, images: Floats) -> Prediction:
        if images[0, 0, 0, 0] < 0:
            raise SystemExit("of a library")
        return super().predict(images)


def test_batcher_keeps_running_after_its_thread_raises_system_exit() -> None:
    async def scenario() -> None:
        queue = Batcher("echo", ExitingPredictor(), TWO_ROWS, Metrics())
        with pytest.raises(RuntimeError, match=r"^A run of the network broke off \(SystemExit"):
            await queue.predict(images(-1))
        assert len((await queue.predict(images(1))).logits) == 1
        await queue.close()

    run(scenario())


def test_batcher_fails_requests_and_closes_after_its_executor_was_shut_down() -> None:
    async def scenario() -> None:
        queue = Batcher("echo", EchoPredictor(), TWO_ROWS, Metrics())
        queue._thread.shutdown()
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"^A run of the network broke off"):
                await queue.predict(images(1))
        await queue.close()

    run(scenario())


class EndlessPredictor(EchoPredictor):
    """Runs a graph that never ends for negative images."""

    def __init__(self) -> None:
        super().__init__()
        self.run_options: RunOptions | None = None
        self.session = create_session(endless_graph(), threads=1)
        self.started = threading.Event()

    def predict(self, images: Floats) -> Prediction:
        if images[0, 0, 0, 0] < 0:
            self.started.set()
            self.session.run(["count"], {"step": np.ones(1, np.int64)}, self.run_options)
        return super().predict(images)


def test_batcher_terminates_a_run_that_nobody_awaits() -> None:
    async def scenario() -> None:
        predictor = EndlessPredictor()
        queue = Batcher("echo", predictor, TWO_ROWS, Metrics())
        requests = await all_submitted(queue.predict(images(-2)), queue.predict(images(-3)))
        await asyncio.to_thread(predictor.started.wait, TIMEOUT_SECONDS)
        (other,) = await all_submitted(queue.predict(images(1)))
        for each in requests:
            each.cancel()
        assert (await other).features[0, 0] == 1
        await queue.close()

    run(scenario())


def test_batcher_close_terminates_an_endless_run() -> None:
    async def scenario() -> None:
        predictor = EndlessPredictor()
        queue = Batcher("echo", predictor, TWO_ROWS, Metrics())
        (waiting,) = await all_submitted(queue.predict(images(-2)))
        await asyncio.to_thread(predictor.started.wait, TIMEOUT_SECONDS)
        await queue.close(timeout_seconds=0)
        with pytest.raises(NotReadyError):
            await waiting
        assert queue._idle.is_set()

    run(scenario())


def test_batcher_close_fails_pending_requests_after_its_timeout() -> None:
    async def scenario() -> None:
        predictor, queue, _ = stepped()
        waiting = await all_submitted(
            queue.predict(images(1)), queue.predict(images(2, 3, 4)), queue.predict(images(5))
        )
        await predictor.until_running()
        await queue.close(timeout_seconds=0)
        for each in waiting:
            with pytest.raises(NotReadyError, match=r"^The server is stopping;"):
                await each
        predictor.permit()

    run(scenario())
