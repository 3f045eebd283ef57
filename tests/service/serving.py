"""Runs the service under test in this process, with its event loop on a thread of its own.

Tests stay plain functions: they send requests and get httpx responses, one at a time or many at
once, and wait for events, never for a fixed time.
"""

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI
from numpy.typing import NDArray
from starlette.types import Receive, Scope, Send

from model.bundle.store import open_bundle
from model.dropout.sampling_methods import FixedSamples, Sampling
from model.graphs.sessions import CancellationToken
from model.images.preprocessing import InputSpec
from model.inference.prediction import Prediction
from model.inference.predictor import Predictor
from model.inference.predictor_loading import load_predictor, read_calibrator
from model.uncertainty.uncertainty_measures import Summary, Uncertainty
from service.api import schemas
from service.app import create_app
from service.engine.batcher import RowPredictor
from service.engine.model_loader import Loader
from service.http.asgi_request import CONTROL
from service.http.middleware import REQUEST_ID_HEADER
from service.observability.metrics_recorder import Metrics
from service.registry.model_repository import Repository
from service.settings import ServiceSettings

TIMEOUT_SECONDS = 60
"""How long a test waits for an event before it fails; a passing test never waits so long."""

PNG = {"Content-Type": "image/png"}
JSON = {"Content-Type": "application/json"}

MAX_SAMPLES = 512
"""`max_samples` of the shared service; `samples=auto` stops there if a label stays undecided."""

Floats = NDArray[np.float32]


class Application:
    """A running application; use `serving` to get one."""

    def __init__(
        self,
        portal: BlockingPortal,
        app: FastAPI,
        state: Mapping[str, Any],
        *,
        is_control: bool = True,
    ) -> None:
        self.portal = portal
        self.app = app
        self.state = state
        """The lifespan state."""

        async def listener(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, CONTROL: is_control}, receive, send)

        transport = httpx.ASGITransport(listener)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://localhost")

    def public(self) -> "Application":
        """Return the same application as a client of the public port reaches it."""
        return Application(self.portal, self.app, self.state, is_control=False)

    def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        return self.portal.call(partial(self._client.request, method, url, **options))

    def submit(self, method: str, url: str, **options: Any) -> "Future[httpx.Response]":
        """Send a request without waiting for its response."""
        return self.portal.start_task_soon(partial(self._client.request, method, url, **options))

    def get(self, url: str, **options: Any) -> httpx.Response:
        return self.request("GET", url, **options)

    def post(self, url: str, content: Any = None, **options: Any) -> httpx.Response:
        return self.request("POST", url, content=content, **options)

    def compressed(self, url: str, content: bytes, encoding: str) -> tuple[str, bytes]:
        """Post, and return the response's Content-Encoding and its body, not decompressed."""

        async def exchange() -> tuple[str, bytes]:
            headers = {"Accept-Encoding": encoding}
            async with self._client.stream("POST", url, content=content, headers=headers) as sent:
                body = b"".join([piece async for piece in sent.aiter_raw()])
                return sent.headers.get("Content-Encoding", ""), body

        return self.portal.call(exchange)

    def metric(self, name: str, **labels: str) -> float:
        """Return one sample of GET /metrics; 0 if it does not exist yet."""
        return metric(self.get("/metrics").text, name, **labels)


class WatchedRepository(Repository):
    """A repository that loads once `released` is set, and sets `loaded` when it has loaded."""

    def __init__(self, settings: ServiceSettings) -> None:
        metrics = Metrics()
        loader = BlockingLoader(settings, metrics)
        super().__init__(settings, metrics, loader)
        self.released = loader.released
        self.loaded = threading.Event()

    async def load(self) -> None:
        await super().load()
        self.loaded.set()


class BlockingLoader(Loader):
    """A loader that opens a bundle once `released` is set, as it is at first."""

    def __init__(self, settings: ServiceSettings, metrics: Metrics) -> None:
        super().__init__(settings, metrics)
        self.released = threading.Event()
        self.released.set()

    def _open(self, path: Path, required_input: InputSpec | None, stop: CancellationToken) -> Any:
        wait(self.released)
        return super()._open(path, required_input, stop)


class StubbedRepository(Repository):
    """A repository that serves the real bundle's manifest with another predictor."""

    def __init__(self, settings: ServiceSettings, predictor: RowPredictor) -> None:
        super().__init__(settings, Metrics())
        self._predictor = predictor

    async def run(self) -> None:
        bundle = open_bundle(self._settings.models_folder / "digits" / "1")
        calibrator = read_calibrator(bundle)
        self.add(self._loader.serve(bundle, bundle.card, self._predictor, calibrator))


class BlockingPredictor:
    """Predicts as `predictor` does, but each run waits until `released` is set."""

    def __init__(self, predictor: RowPredictor) -> None:
        self._predictor = predictor
        self.started = threading.Semaphore(0)
        self.released = threading.Event()
        self.runs: list[int] = []
        """The number of rows of each run, in order."""

    def predict(self, images: Floats) -> Prediction:
        self.runs.append(len(images))
        self.started.release()
        wait(self.released)
        return self._predictor.predict(images)

    def uncertainty(self, prediction: Prediction, how: Sampling) -> Uncertainty:
        return self._predictor.uncertainty(prediction, how)

    def summary(self, prediction: Prediction, how: FixedSamples) -> Summary:
        return self._predictor.summary(prediction, how)

    def wait_until_running(self) -> None:
        assert self.started.acquire(timeout=TIMEOUT_SECONDS), "no run has started"


class BrokenPredictor:
    """A predictor whose every run raises."""

    def predict(self, images: Floats) -> Prediction:
        raise RuntimeError(f"no memory for {len(images)} rows")

    def uncertainty(self, prediction: Prediction, how: Sampling) -> Uncertainty:
        raise NotImplementedError

    def summary(self, prediction: Prediction, how: FixedSamples) -> Summary:
        raise NotImplementedError


def wait(event: threading.Event) -> None:
    assert event.wait(TIMEOUT_SECONDS), "what the test waited for did not happen"


@contextmanager
def serving(app: FastAPI) -> Iterator[Application]:
    """Run an application; it may still be loading."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(app.router.lifespan_context(app)) as state,
    ):
        yield Application(portal, app, state or {})


@contextmanager
def serving_models(models_folder: Path, **settings: Any) -> Iterator[Application]:
    """Run the application over a folder of bundles, once it has loaded what it can."""
    service_settings = ServiceSettings(models_folder=models_folder, **settings)
    repository = WatchedRepository(service_settings)
    with serving(create_app(service_settings, repository)) as application:
        wait(repository.loaded)
        yield application


@contextmanager
def serving_stub(
    models_folder: Path, predictor: RowPredictor, **settings: Any
) -> Iterator[Application]:
    """Run the application over the real bundle's manifest, with another predictor."""
    service_settings = ServiceSettings(models_folder=models_folder, **settings)
    with serving(
        create_app(service_settings, StubbedRepository(service_settings, predictor))
    ) as application:
        wait_until_ready(application)
        yield application


def wait_until_ready(application: Application) -> None:
    """Request /health/ready until it is 200; a stub needs one or two requests."""
    while application.get("/health/ready").status_code != 200:
        pass


def real_predictor(models_folder: Path, threads: int = 1) -> Predictor:
    bundle = open_bundle(models_folder / "digits" / "1")
    return load_predictor(bundle, threads)


def metric(exposition: str, name: str, **labels: str) -> float:
    """Return one sample of Prometheus' text format; 0 if it does not exist yet."""
    for line in exposition.splitlines():
        head, _, value = line.rpartition(" ")
        found, _, rest = head.partition("{")
        if found == name and _labels(rest) == labels:
            return float(value)
    return 0.0


def check_error(response: httpx.Response, status: int, code: str, sentence: str) -> None:
    """Check a response's error body, status, code and sentence ("…" stands for any text)."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers[REQUEST_ID_HEADER]
    error = schemas.Error.model_validate_json(response.content)
    assert error.code == code
    check_sentence(error.error, sentence)
    assert (response.headers.get("Retry-After") == "1") == (status == 503)


def check_sentence(sentence: str, expected: str) -> None:
    parts = expected.split("…")
    position = 0
    for part in parts:
        found = sentence.find(part, position)
        assert found >= 0, f"{sentence!r} is not {expected!r}"
        position = found + len(part)
    assert sentence.startswith(parts[0]), f"{sentence!r} is not {expected!r}"
    assert sentence.endswith(parts[-1]), f"{sentence!r} is not {expected!r}"


def predictions(response: httpx.Response) -> list[Any]:
    """Return the predictions of a response with status 200."""
    assert response.status_code == 200, response.text
    found: list[Any] = orjson.loads(response.content)["predictions"]
    return found


def _labels(text: str) -> dict[str, str]:
    pairs = (pair.split("=", 1) for pair in text.rstrip("}").split(",") if pair)
    return {name: value.strip('"') for name, value in pairs}
