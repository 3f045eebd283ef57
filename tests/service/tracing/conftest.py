"""Fixtures: collectors, the variables that name them, and a service that sends them every trace."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.service.listening import Listening, listening
from tests.service.serving import serving_models
from tests.service.tracing.collector import Collector, collecting


def name_collector(collector: Collector, variables: pytest.MonkeyPatch) -> None:
    variables.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    variables.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that the services of a test send every trace to, at once."""
    with collecting() as running:
        name_collector(running, monkeypatch)
        yield running


@pytest.fixture(scope="module")
def shared_collector() -> Iterator[Collector]:
    """The collector of `traced`."""
    with collecting() as running:
        yield running


@pytest.fixture(scope="module")
def traced(shared_collector: Collector, models_folder: Path) -> Iterator[Listening]:
    """A service with a port that sends every trace to `shared_collector`."""
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as variables:  # of this service, and of no other
            name_collector(shared_collector, variables)
            service = stack.enter_context(serving_models(models_folder))
        yield stack.enter_context(listening(service))
