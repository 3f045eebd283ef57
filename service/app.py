"""Builds the application from the settings: it creates the parts and connects them, no more."""

import asyncio
import gc
import gzip
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import orjson
from fastapi import FastAPI
from fastapi.routing import APIRoute

from model.container_resources import available_processors
from service import API_VERSION
from service.api import (
    bundle_contents,
    drift,
    feedback,
    health_and_metrics,
    label_studio,
    model_list,
    occlusion,
    open_inference,
    openapi,
    predict,
    recent_metrics,
    rollouts,
    tensorflow_serving,
)
from service.api.answer_by_another_version import answer_as_noted
from service.api.openapi_security import describe_keys
from service.api.record_answer_for_log_shadow_feedback import AnswerNotes
from service.edge.allowed_hosts import AllowedHosts, parse_hosts
from service.edge.cors_origins import parse_origins
from service.edge.trusted_proxies import ReverseProxies
from service.engine.model_loader import LoadedModel
from service.feedback.feedback_recorder import Feedback
from service.http import error_responses
from service.http.client_quotas import Clients, ResourceLimits
from service.http.client_rate_limits import ClientRates, RateLimits
from service.http.cors_headers import CrossOrigin
from service.http.drain_state import DrainState
from service.http.fast_path.route_cache import RouteCache
from service.http.key_and_rate_check_before_routes import protect
from service.http.lifespan_state import HTTP_CONTEXT, HttpContext
from service.http.middleware import RequestMiddleware
from service.http.rate_table_of_all_workers import shared_table, table_in_memory
from service.http.request_head_checks import HeadInspector
from service.keys.access_control import AccessControl
from service.keys.key_ring import KeyRing
from service.label_studio.task_images import TaskImages
from service.observability import log_format
from service.observability.files_shared_by_workers import shared_folder
from service.observability.history_recorder import HistoryRecorder
from service.observability.history_rings import HistoryRings
from service.observability.metrics_recorder import Metrics
from service.observability.watched_tasks import watched
from service.registry.model_repository import Repository
from service.sandbox.sandboxed_image_reader import ImageReader
from service.settings import ServiceSettings
from service.shadow.background_comparison import ShadowComparison
from service.shadow.spare_time import SpareTime
from service.tls.server_certificate import ServerCertificate
from service.tracing.tracer import Tracer
from service.traffic_log.traffic_log import TrafficLog
from service.web import api_reference, pages, prefix_redirect

_LOAD_SECONDS = 10.0
"""How long one of several workers waits for its models before it accepts connections."""
_COLLECT_AFTER = 5_000  # allocated minus freed containers; a request leaves none behind
_DESCRIPTION = (
    "Image classification with answers that say how sure they are. "
    'Every error is `{"error": "a sentence", "code": "a word"}`.'
)


class Application(FastAPI):
    """FastAPI with a complete OpenAPI description, which is built once."""

    def __init__(self, **described: Any) -> None:
        super().__init__(**described)
        self.complete: Callable[[dict[str, Any]], dict[str, Any]] = lambda description: description
        """Adds to FastAPI's description what it cannot know: the routes of /v1 and /v2, errors."""
        self._description: bytes | None = None
        """The description as compressed JSON, a tenth of the JSON and a sixtieth of its objects."""
        self._building = threading.Lock()
        self._rendered: tuple[tuple[str, str | None], bytes] | None = None
        """The description as it was last asked for, and for which prefix and model."""

    def openapi(self) -> dict[str, Any]:
        """Return the description of every route."""
        with self._building:  # an early request waits for the thread that builds it at the start
            if self._description is None:
                self._description = gzip.compress(orjson.dumps(self.complete(super().openapi())))
                self.openapi_schema = None  # where FastAPI keeps what it has built
        description: dict[str, Any] = orjson.loads(gzip.decompress(self._description))
        return description

    def openapi_gzip(self, prefix: str, model: str | None) -> bytes:
        """Return the description as JSON in gzip's format; see `openapi.description_for_client`."""
        key = prefix, model
        rendered = self._rendered
        if rendered is None or rendered[0] != key:
            content = openapi.description_for_client(self.openapi(), prefix, model)
            self._rendered = rendered = key, gzip.compress(orjson.dumps(content))
        return rendered[1]


@dataclass(frozen=True)
class _Parts:
    """What one application is made of."""

    settings: ServiceSettings
    repository: Repository
    history: HistoryRecorder
    reader: ImageReader
    traffic: TrafficLog | None
    feedback: Feedback | None
    task_images: TaskImages | None
    shadows: ShadowComparison
    keys: KeyRing | None
    certificate: ServerCertificate | None
    clients: Clients
    proxies: ReverseProxies
    tracer: Tracer | None
    drain: DrainState

    @classmethod
    def of(
        cls,
        settings: ServiceSettings,
        repository: Repository | None,
        history: HistoryRecorder | None,
        shadows: ShadowComparison | None,
    ) -> Self:
        repository = repository or Repository(settings, Metrics())
        metrics, tls_files = repository.metrics, settings.tls_files
        keys_file = settings.api_keys_file
        return cls(
            settings,
            repository,
            history=history or HistoryRecorder(metrics, HistoryRings.of_service()),
            reader=ImageReader(settings, metrics),
            traffic=TrafficLog.of(settings, metrics),
            feedback=Feedback.of(settings, metrics),
            task_images=TaskImages.of(settings),
            shadows=shadows
            or ShadowComparison(
                repository,
                answer_as_noted,
                SpareTime(available_processors() / settings.workers),
            ),
            keys=None if keys_file is None else KeyRing(keys_file, metrics),
            certificate=None if tls_files is None else ServerCertificate(tls_files, metrics),
            clients=Clients(
                ResourceLimits(
                    connections=settings.max_connections,
                    buffered_bytes=settings.max_buffered_bytes,
                    requests=settings.max_concurrent_requests,
                )
            ),
            proxies=ReverseProxies(settings.root_path or "", settings.trusted_networks),
            tracer=Tracer.of(os.environ),
            drain=DrainState(metrics.report_draining),
        )

    @property
    def head_inspector(self) -> HeadInspector:
        """What decides about each request by its head."""
        hosts, origins = self.settings.allowed_hosts, self.settings.cors_origins
        return HeadInspector(
            self.proxies,
            None if hosts is None else AllowedHosts(parse_hosts(hosts)),
            None if origins is None else CrossOrigin(parse_origins(origins)),
        )

    @property
    def client_rates(self) -> ClientRates | None:
        """What limits each client; None where nothing does."""
        if not self.settings.limits_client_rates:
            return None
        limits = RateLimits(
            self.settings.client_requests_per_second,
            self.settings.client_images_per_second,
            self.settings.client_burst_seconds,
        )
        folder = shared_folder()
        table = table_in_memory() if folder is None else shared_table(folder)
        return ClientRates(limits, table, self.metrics)

    @property
    def metrics(self) -> Metrics:
        return self.repository.metrics

    @property
    def notes(self) -> AnswerNotes:
        """Where the routes note their answers."""
        return AnswerNotes(self.traffic, self.shadows, self.feedback)

    def _active_models(self) -> list[LoadedModel]:
        return [model for active in self.repository.active_versions for model in active.all]

    @property
    def named_model(self) -> str | None:
        """The model that examples of requests name; who has no key is told of none."""
        if self.keys is not None:
            return None
        loaded = (each.stable.name for each in self.repository.active_versions)
        return self.repository.default or next(loaded, None)

    def not_ready_reason(self) -> str | None:
        """Return in one sentence why the service is not ready; None when it is."""
        return self.drain.not_ready_reason or self.repository.not_ready_reason()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run what works in the background; at the end stop it and close everything."""
        async with self._writing():
            serving = watched("repository", self.repository.run())
            tasks = [watched(part, work) for part, work in self._endless_work().items()]
            self.reader.start_soon()
            try:
                if self.settings.workers > 1:  # meanwhile the other workers answer
                    await self.repository.wait_until_loaded(_LOAD_SECONDS)
                yield
            finally:
                for task in tasks:
                    task.cancel()
                self.repository.stop()
                await asyncio.gather(*tasks, return_exceptions=True)
                await self.reader.close()
                await serving
                await self.repository.close()

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[None]:
        """Run the threads that write what was answered; at the end they write what waits."""
        async with AsyncExitStack() as stack:
            stack.callback(self.metrics.close)
            if self.tracer is not None:
                spans = self.tracer.start()
                stack.push_async_callback(asyncio.to_thread, self.tracer.close)
                if spans is not None:
                    self.metrics.count_spans(spans)
            for part in (self.feedback, self.traffic):
                if part is not None:
                    part.start()
                    stack.push_async_callback(asyncio.to_thread, part.close)
            yield

    def _endless_work(self) -> dict[str, Coroutine[Any, Any, None]]:
        """Return what each part does until it is cancelled."""
        endless = {
            "metrics": self.metrics.flush_periodically(),
            "history": self.history.run(),
            "shadows": self.shadows.run(),
        }
        if self.feedback is not None:
            endless["feedback"] = self.feedback.run(self._active_models)
        if self.keys is not None:
            endless["keys"] = self.keys.run()
        if self.certificate is not None:
            endless["certificate"] = self.certificate.run()
        return endless


def create_app(
    settings: ServiceSettings,
    repository: Repository | None = None,
    history: HistoryRecorder | None = None,
    shadows: ShadowComparison | None = None,
) -> Application:
    """Build the application; it loads the bundles after its start, while it already answers.

    repository: replaces the repository of `settings.models_folder`, for tests.
    history: replaces the recorder of the last minutes, which must be of the repository's metrics.
    shadows: replaces the comparison of shadow versions, which must be of the repository.
    """
    parts = _Parts.of(settings, repository, history, shadows)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        # On a thread, since it takes 50 ms; the result is kept.
        describing = asyncio.create_task(asyncio.to_thread(app.openapi))
        async with parts.running():
            try:
                yield {HTTP_CONTEXT: context}
            finally:
                await describing

    app = Application(
        title="Dropserve",
        version=API_VERSION,
        description=_DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # `web.api_reference` serves them
        redoc_url=None,
        openapi_url=None,
    )
    error_responses.add_handlers(app)
    requests = RequestMiddleware(parts.metrics, parts.clients, parts.head_inspector, parts.tracer)
    app.add_middleware(requests.around)
    _add_routes(app, parts)
    context = HttpContext(
        clients=parts.clients,
        head_timeout_seconds=settings.head_timeout_seconds,
        write_timeout_seconds=settings.write_timeout_seconds,
        handler=requests,
        routes=RouteCache(app.router.routes, parts.proxies.route_path),
        proxies=parts.proxies,
        drain=parts.drain,
        certificate=parts.certificate,
    )
    return app


def _add_routes(app: Application, parts: _Parts) -> None:
    """Add every route, the check of keys before them, and what completes their description."""
    settings, repository, reader = parts.settings, parts.repository, parts.reader
    routers = (
        open_inference.router(
            settings, repository, reader, parts.metrics, parts.notes, parts.not_ready_reason
        ),
        tensorflow_serving.router(settings, repository, reader, parts.notes),
    )
    protocols = [each for router in routers for each in router.routes if isinstance(each, APIRoute)]
    routes = app.router.routes
    routes += [
        *predict.router(settings, repository, reader, parts.metrics, parts.notes).routes,
        *occlusion.router(settings, repository, reader).routes,
        *model_list.router(repository, parts.shadows).routes,
        *bundle_contents.router(repository).routes,
        *rollouts.router(settings, repository, parts.shadows).routes,
        *drift.router(settings, repository).routes,
        *feedback.router(settings, repository, reader, parts.feedback).routes,
        *label_studio.router(
            settings, repository, reader, parts.notes, parts.feedback, parts.task_images
        ).routes,
        *health_and_metrics.router(parts.not_ready_reason, parts.metrics).routes,
        *recent_metrics.router(repository, parts.history.rings, parts.feedback).routes,
        *pages.router().routes,
        *api_reference.router(
            lambda prefix: app.openapi_gzip(prefix, parts.named_model), parts.proxies
        ).routes,
        *protocols,
    ]
    if parts.proxies.root_path:
        routes.append(prefix_redirect.route(parts.proxies.root_path))
    access = None if parts.keys is None else AccessControl(parts.keys, parts.metrics)
    rates = parts.client_rates
    if access is not None or rates is not None:
        protect(routes, access, rates)

    def complete(description: dict[str, Any]) -> dict[str, Any]:
        description = openapi.complete_description(description, protocols, settings)
        return description if parts.keys is None else describe_keys(description, routes)

    app.complete = complete


def create_worker_app() -> FastAPI:
    """Build the application of one worker process from the environment that all workers share."""
    settings = ServiceSettings()
    log_format.configure(settings.log_level, settings.log_format)
    app = create_app(settings)
    tune_gc()
    return app


def tune_gc() -> None:
    """Exempt everything loaded so far from garbage collection, and collect less often.

    Otherwise a full collection would delay every request by 50 ms now and then.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
