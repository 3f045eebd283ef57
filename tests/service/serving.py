"""The service under test, in this process: the real application, run by a loop on its own thread.

Tests stay plain functions: they send requests and get httpx responses, one at a time or many at
once, and wait for events, never for a time.
"""

import threading
from collections.abc import Iterator
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
from model.dropout.sampling import FixedSamples, Sampling
from model.graphs.sessions import Stop
from model.images.preprocessing import InputSpec
from model.inference.predictor import Prediction, Predictor, calibrated, open_tested
from model.uncertainty.summary import Summary, Uncertainty
from service.api import schemas
from service.app import create_app
from service.engine.batcher import RowPredictor
from service.engine.loader import Loader
from service.http.middleware import REQUEST_ID_HEADER
from service.http.protocol import CONTROL
from service.observability.metrics import Metrics
from service.registry.repository import ActiveVersions, Repository
from service.registry.rollout import RolloutSpec
from service.settings import ServiceSettings

PATIENCE_SECONDS = 60
"""How long a test waits for an event before it fails; none waits so long when all is well."""

PNG = {"Content-Type": "image/png"}
JSON = {"Content-Type": "application/json"}

MAX_SAMPLES = 512
"""Of the shared service; where `samples=auto` never settles, it decides the answer."""

Floats = NDArray[np.float32]


class Application:
    """A running application; use `serving` to get one."""

    def __init__(self, portal: BlockingPortal, app: FastAPI, *, is_control: bool = True) -> None:
        self.portal = portal
        self.app = app

        async def listener(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, CONTROL: is_control}, receive, send)

        transport = httpx.ASGITransport(listener)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://service")

    def public(self) -> "Application":
        """The same application, as a client of the public port meets it."""
        return Application(self.portal, self.app, is_control=False)

    def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        return self.portal.call(partial(self._client.request, method, url, **options))

    def submit(self, method: str, url: str, **options: Any) -> "Future[httpx.Response]":
        """Send a request and go on; several are answered at once."""
        return self.portal.start_task_soon(partial(self._client.request, method, url, **options))

    def get(self, url: str, **options: Any) -> httpx.Response:
        return self.request("GET", url, **options)

    def post(self, url: str, content: Any = None, **options: Any) -> httpx.Response:
        return self.request("POST", url, content=content, **options)

    def compressed(self, url: str, content: bytes, encoding: str) -> tuple[str, bytes]:
        """Post, and return the answer's Content-Encoding and body as it came."""

        async def exchange() -> tuple[str, bytes]:
            headers = {"Accept-Encoding": encoding}
            async with self._client.stream("POST", url, content=content, headers=headers) as answer:
                body = b"".join([piece async for piece in answer.aiter_raw()])
                return answer.headers.get("Content-Encoding", ""), body

        return self.portal.call(exchange)

    def metric(self, name: str, **labels: str) -> float:
        """Return one figure of GET /metrics; 0 where it has not been counted yet."""
        return metric(self.get("/metrics").text, name, **labels)


class WatchedRepository(Repository):
    """Says when it has finished loading; its loading waits for `permission`."""

    def __init__(self, settings: ServiceSettings) -> None:
        super().__init__(settings, Metrics())
        self._loader = HeldLoader(settings, self.metrics)
        self.permission = self._loader.permission
        self.loaded = threading.Event()

    async def load(self) -> None:
        await super().load()
        self.loaded.set()


class HeldLoader(Loader):
    """Opens nothing until the test permits it."""

    def __init__(self, settings: ServiceSettings, metrics: Metrics) -> None:
        super().__init__(settings, metrics)
        self.permission = threading.Event()
        self.permission.set()

    def _open(self, path: Path, like: InputSpec | None, stop: Stop) -> Any:
        wait(self.permission)
        return super()._open(path, like, stop)


class StubbedRepository(Repository):
    """Serves the real bundle's manifest with another predictor."""

    def __init__(self, settings: ServiceSettings, predictor: RowPredictor) -> None:
        super().__init__(settings, Metrics())
        self._predictor = predictor

    async def run(self) -> None:
        bundle = open_bundle(self._settings.models_folder / "digits" / "1")
        served = self._loader.serve(bundle, bundle.card, self._predictor, calibrated(bundle))
        self._opened["digits", 1] = served
        self._offers["digits"] = ActiveVersions(served, None, RolloutSpec())
        self._loading = False


class HeldPredictor:
    """Answers as `predictor` does, but each run waits until the test lets it go."""

    def __init__(self, predictor: RowPredictor) -> None:
        self._predictor = predictor
        self.started = threading.Semaphore(0)
        self.permission = threading.Event()
        self.runs: list[int] = []
        """Rows of each run, in order."""

    def predict(self, images: Floats) -> Prediction:
        self.runs.append(len(images))
        self.started.release()
        wait(self.permission)
        return self._predictor.predict(images)

    def uncertainty(self, prediction: Prediction, how: Sampling) -> Uncertainty:
        return self._predictor.uncertainty(prediction, how)

    def summary(self, prediction: Prediction, how: FixedSamples) -> Summary:
        return self._predictor.summary(prediction, how)

    def wait_until_running(self) -> None:
        assert self.started.acquire(timeout=PATIENCE_SECONDS), "no run has started"


class BrokenPredictor:
    """Fails every run."""

    def predict(self, images: Floats) -> Prediction:
        raise RuntimeError(f"no memory for {len(images)} rows")

    def uncertainty(self, prediction: Prediction, how: Sampling) -> Uncertainty:
        raise NotImplementedError

    def summary(self, prediction: Prediction, how: FixedSamples) -> Summary:
        raise NotImplementedError


def wait(event: threading.Event) -> None:
    assert event.wait(PATIENCE_SECONDS), "what the test waited for did not happen"


@contextmanager
def serving(app: FastAPI) -> Iterator[Application]:
    """Run an application; it may still be loading."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(app.router.lifespan_context(app)),
    ):
        yield Application(portal, app)


@contextmanager
def serving_models(models_folder: Path, **settings: Any) -> Iterator[Application]:
    """Run the application over a folder of bundles, once it has loaded what it can."""
    knobs = ServiceSettings(models_folder=models_folder, **settings)
    repository = WatchedRepository(knobs)
    with serving(create_app(knobs, repository)) as application:
        wait(repository.loaded)
        yield application


@contextmanager
def serving_stub(
    models_folder: Path, predictor: RowPredictor, **settings: Any
) -> Iterator[Application]:
    """Run the application over the real bundle's manifest, with another predictor."""
    knobs = ServiceSettings(models_folder=models_folder, **settings)
    with serving(create_app(knobs, StubbedRepository(knobs, predictor))) as application:
        wait_until_ready(application)
        yield application


def wait_until_ready(application: Application) -> None:
    """A stub loads in one step of the loop, so this asks once or twice."""
    while application.get("/health/ready").status_code != 200:
        pass


def real_predictor(models_folder: Path, threads: int = 1) -> Predictor:
    bundle = open_bundle(models_folder / "digits" / "1")
    return open_tested(bundle, threads)


def metric(exposition: str, name: str, **labels: str) -> float:
    """Find one figure in Prometheus' text format; 0 where it has not been counted yet."""
    for line in exposition.splitlines():
        head, _, value = line.rpartition(" ")
        found, _, rest = head.partition("{")
        if found == name and _labels(rest) == labels:
            return float(value)
    return 0.0


def check_error(response: httpx.Response, status: int, code: str, sentence: str) -> None:
    """Hold an error to its one shape, and to its status, code and sentence ("…" is anything)."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers[REQUEST_ID_HEADER]
    error = schemas.Error.model_validate_json(response.content)
    assert error.code == code
    check_sentence(error.error, sentence)
    assert (response.headers.get("Retry-After") == "1") == (status == 503)


def check_sentence(sentence: str, expected: str) -> None:
    parts = expected.split("…")
    place = 0
    for part in parts:
        found = sentence.find(part, place)
        assert found >= 0, f"{sentence!r} is not {expected!r}"
        place = found + len(part)
    assert sentence.startswith(parts[0]), f"{sentence!r} is not {expected!r}"
    assert sentence.endswith(parts[-1]), f"{sentence!r} is not {expected!r}"


def predictions(response: httpx.Response) -> list[Any]:
    """Return the predictions of a 200; equal ones are equal to the last bit."""
    assert response.status_code == 200, response.text
    found: list[Any] = orjson.loads(response.content)["predictions"]
    return found


def _labels(text: str) -> dict[str, str]:
    pairs = (pair.split("=", 1) for pair in text.rstrip("}").split(",") if pair)
    return {name: value.strip('"') for name, value in pairs}
