"""GET /metrics/recent over a real bundle: what happened in the last 15 minutes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from service.api.recent_metrics_schemas import RecentMetrics, RecentRoute, RecentVersion
from service.app import create_app
from service.observability.history_recorder import HistoryRecorder
from service.observability.history_rings import INTERVAL_SECONDS, INTERVALS, HistoryRings
from service.settings import ServiceSettings
from tests.bundles import copy_bundle, edit_manifest
from tests.pictures import Pixels, encode, instances
from tests.service.serving import (
    JSON,
    PNG,
    Application,
    WatchedRepository,
    check_error,
    serving,
    wait,
)


class Recorded:
    """A running service whose history is recorded when a test says so."""

    def __init__(self, service: Application, history: HistoryRecorder) -> None:
        self.service = service
        self._history = history

    def recent(self) -> RecentMetrics:
        """Record what has happened, as that of an interval which has ended, and ask for it."""
        ended = int(time.time() // INTERVAL_SECONDS) - 2
        self.service.portal.call(self._history.record, ended)
        response = self.service.get("/metrics/recent")
        assert response.status_code == 200
        return RecentMetrics.model_validate_json(response.content)


@contextmanager
def serving_recorded(models_folder: Path) -> Iterator[Recorded]:
    settings = ServiceSettings(models_folder=models_folder)
    repository = WatchedRepository(settings)
    history = HistoryRecorder(repository.metrics, HistoryRings(None))
    with serving(create_app(settings, repository, history)) as service:
        wait(repository.loaded)
        yield Recorded(service, history)


@pytest.fixture
def recorded(models_folder: Path) -> Iterator[Recorded]:
    with serving_recorded(models_folder) as recorded:
        yield recorded


def route(recent: RecentMetrics, path: str) -> RecentRoute:
    (found,) = [each for each in recent.routes if each.route == path]
    return found


def version(recent: RecentMetrics) -> RecentVersion:
    (found,) = recent.versions
    return found


def test_requests_are_shown_by_route_with_their_durations(
    recorded: Recorded, digit: Pixels
) -> None:
    service = recorded.service
    for _ in range(3):
        service.post("/predict", encode(digit), headers=PNG)
    service.post("/predict", b"no image", headers=PNG)
    service.get("/nowhere")
    service.get("/health/live")
    recent = recorded.recent()
    predict = route(recent, "/predict")
    assert (sum(predict.answered), sum(predict.refused), sum(predict.failed)) == (3, 1, 0)
    for window in predict.windows:
        assert (window.answered, window.refused) == (3, 1)
        assert window.seconds.p50 is not None
        assert window.seconds.p99 is not None
        assert 0 < window.seconds.p50 <= window.seconds.p99
    assert sum(route(recent, "unmatched").refused) == 1
    assert route(recent, "/health/live").for_operators
    assert not predict.for_operators
    assert (sum(recent.requests.answered), sum(recent.requests.refused)) == (3, 2)


def test_uncertainty_is_shown_beside_that_of_the_validation_images(
    recorded: Recorded, digits: Pixels
) -> None:
    body = instances([encode(digit) for digit in digits[:50]])
    recorded.service.post("/uncertainty?max_false_alarm=0.2", body, headers=JSON)
    recorded.service.post("/predict", encode(digits[0]), headers=PNG)
    found = version(recorded.recent())
    assert (found.model, found.version, found.role) == ("digits", "1", "stable")
    assert sum(found.images) == 50
    for window in found.windows:
        assert window.images == 50
        for counts in window.histograms.model_dump().values():
            assert sum(counts) == 50
        assert sum(window.abstentions.model_dump().values()) == sum(found.abstained) > 0
    for name, shares in found.reference.model_dump().items():
        assert sum(shares) == pytest.approx(1, abs=1e-3), name
        assert len(shares) == len(getattr(found.edges, name)) + 1
    assert found.drift.typicality is not None
    assert found.drift.typicality.images == 50


def test_bundle_without_distributions_has_no_reference(tmp_path: Path, bundle_folder: Path) -> None:
    place = copy_bundle(bundle_folder, tmp_path)
    edit_manifest(place, metrics={})
    with serving_recorded(tmp_path) as recorded:
        reference = version(recorded.recent()).reference
    assert reference.predictive_entropy is None
    assert reference.set_size is None
    assert reference.typicality is not None


def test_time_without_a_recording_is_unknown(recorded: Recorded) -> None:
    recent = recorded.recent()
    assert len(recent.workers) == INTERVALS
    assert recent.workers[0] == 0
    assert recent.engine.memory_bytes[0] is None
    assert 1 in recent.workers
    assert max(each or 0 for each in recent.engine.memory_bytes) > 10_000_000
    assert recent.time <= time.time()


def test_response_is_the_same_until_the_next_interval(recorded: Recorded, digit: Pixels) -> None:
    first = recorded.service.get("/metrics/recent")
    recorded.service.post("/predict", encode(digit), headers=PNG)
    second = recorded.service.get("/metrics/recent")
    assert first.headers["Cache-Control"] == "no-store"
    intervals = [each.json()["time"] // INTERVAL_SECONDS for each in (first, second)]
    assert first.content == second.content or intervals[1] > intervals[0]


def test_paths_that_clients_invent_make_no_routes(recorded: Recorded) -> None:
    for number in range(20):
        recorded.service.get(f"/invented/{number}")
        recorded.service.request(f"METHOD{number}", "/predict")
        recorded.service.get(f"/models/invented-{number}")
    recent = recorded.recent()
    paths = {each.route for each in recent.routes}
    assert paths <= {"unmatched", "/models/{name}", "/predict"}
    assert len(orjson.dumps(recent.model_dump())) < 100_000


def test_query_is_refused(recorded: Recorded) -> None:
    response = recorded.service.get("/metrics/recent?model=digits")
    sentence = "/metrics/recent takes no query parameter 'model'; leave it out."
    check_error(response, 400, "invalid_query", sentence)
