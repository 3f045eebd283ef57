"""The batcher; events block the runs of its predictor, so that a test forces each order."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.dropout.sampling_methods import FixedSamples, Sampling
from model.inference.prediction import Prediction
from model.uncertainty.uncertainty_measures import Summary, Uncertainty
from service.engine.batcher import Batcher, Limits, RowPredictor
from service.engine.pending_requests import Floats
from service.errors import DeadlineError, OverloadedError, StoppingError
from service.observability.metrics_recorder import Metrics
from tests.service.serving import BlockingPredictor, metric

ROOMY = Limits(batch_rows=64, queue_rows=1024, timeout_seconds=60)
POISON = -1.0


class EchoPredictor:
    """Returns the numbers of its images, so that every result shows which request it belongs to."""

    def __init__(self) -> None:
        self.head_runs: list[tuple[int, int, int]] = []
        """Rows, seed and samples of each run of the head."""

    def predict(self, images: Floats) -> Prediction:
        if POISON in images:
            raise ValueError("poisoned")
        numbers = images.reshape(len(images), 1)
        return Prediction(numbers * 2, numbers, (numbers, numbers[:, 0].astype(np.int64)))

    def uncertainty(self, prediction: Prediction, how: Sampling) -> Uncertainty:
        assert isinstance(how, FixedSamples)
        number = prediction.features[:, 0].astype(np.float64)
        self.head_runs.append((len(number), how.seed, how.samples))
        parameters = (np.full_like(number, how.seed), np.full_like(number, how.samples))
        matrix, integers = np.stack([number, *parameters], 1), number.astype(np.int64)
        return Uncertainty(
            labels=integers,
            mean_probabilities=matrix,
            probability_std=matrix,
            standard_error=matrix,
            predictive_entropy=number,
            expected_entropy=number,
            mutual_information=number,
            mutual_information_error=number,
            variation_ratio=number,
            samples_used=integers,
            label_decided=integers > 0,
            typicality=number,
            set_draws=number,
            sample_probabilities=np.full(len(number), None),
        )

    def summary(self, prediction: Prediction, how: FixedSamples) -> Summary:
        self.head_runs.append((len(prediction.features), how.seed, how.samples))
        numbers = prediction.features.astype(np.float32)
        typicality = numbers[:, 0].astype(np.float64)
        return Summary(numbers, numbers[:, 0].astype(np.int64), typicality)


def images(*numbers: float) -> Floats:
    return np.array(numbers, np.float32).reshape(len(numbers), 1, 1, 1)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def batcher(
    predictor: RowPredictor, limits: Limits = ROOMY, metrics: Metrics | None = None
) -> Batcher:
    return Batcher("echo", predictor, limits, metrics or Metrics())


def queued_rows(metrics: Metrics) -> float:
    return metric(metrics.render().decode(), "dropserve_queue_rows", model="echo")


async def until_running(held: BlockingPredictor) -> None:
    await asyncio.to_thread(held.wait_until_running)


async def all_submitted(*requests: Coroutine[Any, Any, Any]) -> list["asyncio.Task[Any]"]:
    """Start the requests in order; each is queued when this returns."""
    tasks = [asyncio.create_task(request) for request in requests]
    await asyncio.sleep(0)  # in one turn of the loop each reaches the queue
    return tasks


def test_batcher_runs_requests_queued_during_a_run_as_one_batch() -> None:
    async def scenario() -> None:
        held = BlockingPredictor(EchoPredictor())
        queue = batcher(held)
        (first,) = await all_submitted(queue.predict(images(1)))
        await until_running(held)
        rest = await all_submitted(*(queue.predict(images(number, number)) for number in (2, 3, 4)))
        held.released.set()
        answers = await asyncio.gather(first, *rest)
        assert held.runs == [1, 6]
        assert [answer.logits[0, 0] for answer in answers] == [2, 4, 6, 8]
        await queue.close()

    run(scenario())


def test_batcher_delays_no_request_by_a_timer() -> None:
    class StoppedClock(asyncio.SelectorEventLoop):
        def time(self) -> float:
            return 0.0

    async def scenario() -> None:
        queue = batcher(EchoPredictor())
        answers = [await queue.predict(images(number)) for number in range(3)]
        answers += await asyncio.gather(*(queue.predict(images(number)) for number in range(3, 6)))
        assert [answer.features[0, 0] for answer in answers] == [0, 1, 2, 3, 4, 5]
        await queue.close()

    with asyncio.Runner(loop_factory=StoppedClock) as runner:
        runner.run(scenario())


def test_batcher_limits_rows_and_splits_no_short_request() -> None:
    async def scenario() -> None:
        held = BlockingPredictor(EchoPredictor())
        queue = batcher(held, Limits(batch_rows=5, queue_rows=1024, timeout_seconds=60))
        (first,) = await all_submitted(queue.predict(images(0)))
        await until_running(held)
        sizes = (2, 3, 1, 7, 1)
        rest = await all_submitted(*(queue.predict(images(*range(size))) for size in sizes))
        held.released.set()
        answers = await asyncio.gather(first, *rest)
        assert held.runs == [1, 5, 1, 7, 1]
        assert [len(answer.logits) for answer in answers] == [1, *sizes]
        await queue.close()

    run(scenario())


def test_batcher_runs_the_head_once_for_equal_sampling() -> None:
    async def scenario() -> None:
        echo = EchoPredictor()
        held = BlockingPredictor(echo)
        queue = batcher(held)
        (first,) = await all_submitted(queue.predict(images(0)))
        await until_running(held)
        samplings = [
            FixedSamples(1, 8),
            FixedSamples(2, 8),
            FixedSamples(1, 8),
            FixedSamples(1, 16),
        ]
        rest = await all_submitted(
            *(queue.uncertainty(images(row, row), each) for row, each in enumerate(samplings)),
            queue.predict(images(9)),
        )
        held.released.set()
        await asyncio.gather(first, *rest)
        assert held.runs == [1, 9]
        assert sorted(echo.head_runs) == [(2, 1, 16), (2, 2, 8), (4, 1, 8)]
        await queue.close()

    run(scenario())


REQUESTS = st.lists(
    st.tuples(
        st.integers(1, 5),  # rows
        st.none()
        | st.builds(
            FixedSamples, st.integers(0, 2), st.integers(1, 3), summary_only=st.just(False)
        ),
        st.booleans() | st.just(False) | st.just(False),  # poisoned
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=50)
@given(requests=REQUESTS, batch_rows=st.integers(1, 20))
def test_batcher_returns_each_result_to_its_caller(
    requests: list[tuple[int, FixedSamples | None, bool]], batch_rows: int
) -> None:
    """Each concurrent request gets its own rows, in order, and only poisoned ones fail."""

    async def predict(
        queue: Batcher, number: int, rows: int, sampling: FixedSamples | None
    ) -> None:
        sent = [number + row / 8 for row in range(rows)]
        if sampling is None:
            prediction = await queue.predict(images(*sent))
            assert prediction.features[:, 0].tolist() == sent
            assert prediction.logits[:, 0].tolist() == [2 * each for each in sent]
        else:
            answer = await queue.uncertainty(images(*sent), sampling)
            assert answer.predictive_entropy.tolist() == sent
            expected = [[each, sampling.seed, sampling.samples] for each in sent]
            assert answer.mean_probabilities.tolist() == expected

    async def fail(queue: Batcher, rows: int) -> None:
        with pytest.raises(ValueError, match="poisoned"):
            await queue.predict(images(*[POISON] * rows))

    async def scenario() -> None:
        queue = batcher(EchoPredictor(), Limits(batch_rows, queue_rows=1024, timeout_seconds=60))
        await asyncio.gather(
            *(
                fail(queue, rows) if poisoned else predict(queue, number, rows, sampling)
                for number, (rows, sampling, poisoned) in enumerate(requests)
            )
        )
        await queue.close()

    run(scenario())


def test_batcher_refuses_requests_while_its_queue_is_full() -> None:
    async def scenario() -> None:
        metrics = Metrics()
        held = BlockingPredictor(EchoPredictor())
        queue = batcher(held, Limits(batch_rows=64, queue_rows=4, timeout_seconds=60), metrics)
        (first,) = await all_submitted(queue.predict(images(0)))
        await until_running(held)
        waiting = await all_submitted(queue.predict(images(1, 2, 3)))
        assert queued_rows(metrics) == 3
        with pytest.raises(OverloadedError, match=r"^3 images are waiting already; try again"):
            await queue.predict(images(4, 5))
        waiting += await all_submitted(queue.predict(images(6)))
        held.released.set()
        await asyncio.gather(first, *waiting)
        assert queued_rows(metrics) == 0
        assert len((await queue.predict(images(7, 8))).logits) == 2
        await queue.close()

    run(scenario())


def test_batcher_accepts_a_request_larger_than_its_empty_queue() -> None:
    async def scenario() -> None:
        queue = batcher(EchoPredictor(), Limits(batch_rows=2, queue_rows=2, timeout_seconds=60))
        assert len((await queue.predict(images(1, 2, 3))).logits) == 3
        await queue.close()

    run(scenario())


def test_batcher_times_out_pending_requests_and_never_runs_them() -> None:
    async def scenario() -> None:
        held = BlockingPredictor(EchoPredictor())
        queue = batcher(held, Limits(batch_rows=64, queue_rows=1024, timeout_seconds=0.01))
        sentence = "^No answer within 0.01 seconds; try again later, with fewer images or samples.$"
        with pytest.raises(DeadlineError, match=sentence):
            await queue.predict(images(1))
        await until_running(held)
        with pytest.raises(DeadlineError, match=sentence):
            await queue.predict(images(2, 3))
        held.released.set()
        await queue.close()
        assert held.runs == [1]

    run(scenario())


def test_batcher_drops_cancelled_requests_from_the_next_batch() -> None:
    async def scenario() -> None:
        metrics = Metrics()
        held = BlockingPredictor(EchoPredictor())
        queue = batcher(held, metrics=metrics)
        (running,) = await all_submitted(queue.predict(images(0)))
        await until_running(held)
        requests = (queue.predict(images(1, 2)), queue.predict(images(3, 4, 5)))
        waiting, gone = await all_submitted(*requests)
        for task in (running, gone):
            task.cancel()
        await asyncio.wait([running, gone])
        held.released.set()
        assert (await waiting).features[:, 0].tolist() == [1, 2]
        assert held.runs == [1, 2]
        assert queued_rows(metrics) == 0
        await queue.close()

    run(scenario())


def test_batcher_fails_only_the_request_that_raises() -> None:
    async def scenario() -> None:
        held = BlockingPredictor(EchoPredictor())
        queue = batcher(held)
        (first,) = await all_submitted(queue.predict(images(0)))
        await until_running(held)
        rest = await all_submitted(*(queue.predict(images(each)) for each in (1, POISON, 2)))
        held.released.set()
        good, bad, also_good = rest
        with pytest.raises(ValueError, match="poisoned"):
            await bad
        assert [(await each).logits[0, 0] for each in (good, also_good)] == [2, 4]
        assert held.runs == [1, 3, 1, 1, 1]
        await asyncio.gather(first, queue.predict(images(3)))  # and the batcher keeps running
        await queue.close()

    run(scenario())


def test_batcher_close_answers_pending_requests_and_refuses_new_ones() -> None:
    async def scenario() -> None:
        held = BlockingPredictor(EchoPredictor())
        queue = batcher(held)
        (first,) = await all_submitted(queue.predict(images(1)))
        await until_running(held)
        rest = await all_submitted(queue.predict(images(2)), queue.close())
        with pytest.raises(StoppingError, match=r"^The server is stopping; send the request"):
            await queue.predict(images(3))
        held.released.set()
        first_answer, queued_answer, _ = await asyncio.gather(first, *rest)
        assert (first_answer.logits[0, 0], queued_answer.logits[0, 0]) == (2, 4)

    run(scenario())


def test_batcher_close_returns_when_idle() -> None:
    async def scenario() -> None:
        queue = batcher(EchoPredictor())
        await queue.close()
        with pytest.raises(StoppingError):
            await queue.predict(images(1))

    run(scenario())


def test_batcher_counts_batch_rows_and_stages() -> None:
    async def scenario() -> None:
        metrics = Metrics()
        queue = batcher(EchoPredictor(), metrics=metrics)
        await queue.predict(images(1, 2, 3))
        await queue.uncertainty(images(1, 2), FixedSamples(0, 4))
        await queue.close()
        text = metrics.render().decode()
        assert metric(text, "dropserve_batch_rows_sum", model="echo") == 5
        assert metric(text, "dropserve_batch_rows_count", model="echo") == 2
        assert metric(text, "dropserve_stage_seconds_count", stage="trunk") == 2
        assert metric(text, "dropserve_stage_seconds_count", stage="head") == 1

    run(scenario())


@pytest.mark.parametrize("outcome", ["answer", "error", "deadline"])
def test_batcher_keeps_no_reference_to_a_finished_request(outcome: str) -> None:
    """Checked without garbage collection, until which a cycle through an error keeps the images."""

    async def scenario() -> None:
        queue = batcher(EchoPredictor())
        await queue.predict(images(0))
        rows = images(POISON if outcome == "error" else 1)
        kept = weakref.ref(rows)
        timeout_seconds = 1e-9 if outcome == "deadline" else None
        with suppress(ValueError, DeadlineError):
            await queue.predict(rows, timeout_seconds)
        del rows
        await queue.close()
        for _ in range(3):  # the loop itself still refers to its last callbacks
            await asyncio.sleep(0)
        assert kept() is None

    gc.disable()
    try:
        run(scenario())
    finally:
        gc.enable()


class ThreadRecorder(EchoPredictor):
    """Records which thread each run is on."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[int] = []

    def predict(self, images: Floats) -> Prediction:
        self.threads.append(threading.get_ident())
        return super().predict(images)


def test_batcher_runs_only_known_short_batches_inline() -> None:
    async def scenario() -> None:
        predictor = ThreadRecorder()
        limits = Limits(batch_rows=64, queue_rows=64, timeout_seconds=60, inline_seconds=60)
        queue = batcher(predictor, limits)
        here = threading.get_ident()
        await queue.predict(images(1))
        await queue.predict(images(2))
        await asyncio.gather(queue.predict(images(3)), queue.predict(images(4)))
        await queue.uncertainty(images(5), FixedSamples(seed=0, samples=2))
        await queue.uncertainty(images(6), FixedSamples(seed=1, samples=2))
        await queue.uncertainty(images(7), FixedSamples(seed=1, samples=2))
        assert [thread == here for thread in predictor.threads] == [
            False,  # its cost key has never run
            True,
            *[True] * (len(predictor.threads) - 5),
            False,  # nor with samples
            False,  # nor with that seed, whose masks have to be drawn
            True,
        ]
        await queue.close()

    run(scenario())


def test_batcher_runs_no_long_batch_inline() -> None:
    async def scenario() -> None:
        predictor = ThreadRecorder()
        limits = Limits(batch_rows=64, queue_rows=64, timeout_seconds=60, inline_seconds=0)
        queue = batcher(predictor, limits)
        for number in range(3):
            await queue.predict(images(number))
        assert threading.get_ident() not in predictor.threads
        await queue.close()

    run(scenario())
