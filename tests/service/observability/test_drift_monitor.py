"""The drift tests of one version, fed as the requests feed them."""

import asyncio
import fcntl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from model.bundle.store import open_bundle
from model.dropout.sampling_methods import AdaptiveSamples, Analytic, FixedSamples, Sampling
from model.inference.predictor_loading import read_calibrator
from model.uncertainty.calibration import Calibrator
from service.errors import DeadlineError
from service.observability.drift_monitor import FIGURES, DriftMonitor, Figure
from service.observability.drift_state_storage import DriftStates
from service.observability.metrics_recorder import Metrics
from tests.service.serving import metric

LEVEL = 0.01


@pytest.fixture(scope="module")
def calibrator(bundle_folder: Path) -> Calibrator:
    calibrator = read_calibrator(open_bundle(bundle_folder))
    assert calibrator is not None
    return calibrator


def monitor(
    calibrator: Calibrator, metrics: Metrics, states: DriftStates, digest: str = "0" * 64
) -> DriftMonitor:
    return DriftMonitor("digits", "1", calibrator, LEVEL, metrics, states, digest)


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


def images(tested: DriftMonitor, figure: Figure = "typicality") -> int:
    return tested.tests[figure].images


def test_images_are_tested_before_the_metrics_are_read(calibrator: Calibrator) -> None:
    async def scenario() -> None:
        metrics = Metrics()
        tested = monitor(calibrator, metrics, DriftStates(None))
        with capture_logs() as log:
            for _ in range(10):
                tested.observe_typicality(np.zeros(2))
            assert images(tested) == 0, "a request only notes its images"
            text = metrics.render().decode()
        assert images(tested) == 20
        labels = {"model": "digits", "version": "1", "figure": "typicality"}
        wealth = metric(text, "dropserve_drift_log_wealth", **labels)
        assert wealth == pytest.approx(tested.tests["typicality"].log_wealth)
        assert metric(text, "dropserve_drift_alarm", **labels) == 1
        assert metric(text, "dropserve_drift_alarm", **labels | {"figure": "confidence"}) == 0
        drift = [line for line in log if line["event"] == "drift"]
        (reason,) = [line.pop("reason") for line in drift]
        assert drift == [{"event": "drift", "log_level": "warning", **labels}]
        assert "too many images of low typicality" in reason
        assert "python -m service.control reset-drift digits" in reason

    run(scenario)


def test_requests_give_the_same_test_as_their_images_at_once(calibrator: Calibrator) -> None:
    typicality = np.random.default_rng(0).random(60)

    async def scenario() -> None:
        one, other = (monitor(calibrator, Metrics(), DriftStates(None)) for _ in range(2))
        for part in np.split(typicality, 20):
            one.observe_typicality(part)
            one.advance()
        other.observe_typicality(typicality)
        other.advance()
        assert one.tests["typicality"].log_wealth == pytest.approx(
            other.tests["typicality"].log_wealth, rel=1e-9
        )

    run(scenario)


@pytest.mark.parametrize(
    ("sampling", "is_tested"),
    [
        (FixedSamples(7, 64), True),
        (FixedSamples(0, 128, summary_only=True), True),
        (FixedSamples(0, 32), False),
        (FixedSamples(0, 64, "independent"), False),
        (AdaptiveSamples(0, 1024), False),
        (Analytic(), False),
    ],
)
def test_confidence_is_tested_where_it_compares_with_the_validation_images(
    calibrator: Calibrator, sampling: Sampling, is_tested: bool
) -> None:
    async def scenario() -> None:
        tested = monitor(calibrator, Metrics(), DriftStates(None))
        confidences = np.full(3, 0.1)
        tested.observe_confidence(confidences, sampling)
        tested.advance()
        assert images(tested, "confidence") == 3 * is_tested
        assert images(tested) == 0

    run(scenario)


def test_rank_of_a_confidence_is_that_among_the_validation_images(calibrator: Calibrator) -> None:
    count = calibrator.parameters.images
    assert calibrator.confidence_ranks(np.array([0.0, 1.1])).tolist() == [0, count]
    np.testing.assert_array_equal(
        calibrator.typicality_ranks(np.arange(1, count + 2) / (count + 1)), np.arange(count + 1)
    )


def test_many_images_are_tested_at_once_and_not_kept(calibrator: Calibrator) -> None:
    async def scenario() -> None:
        tested = monitor(calibrator, Metrics(), DriftStates(None))
        tested.observe_typicality(np.full(2000, 0.5))
        assert images(tested) == 2000

    run(scenario)


def test_memory_is_bounded_while_another_worker_holds_the_tests(
    calibrator: Calibrator, tmp_path: Path
) -> None:
    async def scenario() -> None:
        tested = monitor(calibrator, Metrics(), DriftStates(tmp_path))
        (file,) = tmp_path.iterdir()
        with file.open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            for _ in range(10):
                tested.observe_typicality(np.full(1000, 0.5))
            with pytest.raises(DeadlineError, match="another worker holds"):
                await tested.refresh()
        await tested.refresh()
        assert images(tested) == 1000, "it notes no more while it has so many"

    run(scenario)


def test_workers_continue_one_test_and_any_of_them_resets_it(
    calibrator: Calibrator, tmp_path: Path
) -> None:
    async def scenario() -> None:
        one, other = (monitor(calibrator, Metrics(), DriftStates(tmp_path)) for _ in range(2))
        for _ in range(5):
            for worker in (one, other):
                worker.observe_typicality(np.zeros(1))
                worker.advance()
        await one.refresh()
        assert [images(one), images(other)] == [10, 10]
        for figure in FIGURES:
            assert one.tests[figure].to_bytes() == other.tests[figure].to_bytes()
        assert one.tests["typicality"].alarm is not None
        await other.reset()
        await one.refresh()
        for worker in (one, other):
            assert images(worker) == 0
            assert worker.tests["typicality"].alarm is None

    run(scenario)


def test_reset_leaves_out_what_other_workers_had_noted_before_it(
    calibrator: Calibrator, tmp_path: Path
) -> None:
    async def scenario() -> None:
        one, other = (monitor(calibrator, Metrics(), DriftStates(tmp_path)) for _ in range(2))
        one.observe(np.zeros(40), np.zeros(40), FixedSamples(0, 128))
        await other.reset()
        one.observe_typicality(np.zeros(2))
        await one.refresh()
        assert [images(one), images(one, "confidence")] == [2, 0]
        await other.refresh()
        assert images(other) == 2

    run(scenario)


def test_version_that_is_loaded_again_goes_on_and_another_bundle_begins_anew(
    calibrator: Calibrator,
) -> None:
    async def scenario() -> None:
        states = DriftStates(None)
        first = monitor(calibrator, Metrics(), states)
        first.observe_typicality(np.zeros(10))
        first.advance()
        metrics = Metrics()
        again = monitor(calibrator, metrics, states)
        assert images(again) == 10
        labels = {"model": "digits", "version": "1", "figure": "typicality"}
        assert metric(metrics.render().decode(), "dropserve_drift_alarm", **labels) == 1
        assert images(monitor(calibrator, Metrics(), states, digest="1" * 64)) == 0

    run(scenario)
