"""GET /metrics/recent: the last 15 minutes of all workers as JSON, for the page /ui/monitor."""

import asyncio
import time
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Response

from service.api import schemas
from service.api.drift import describe_drift
from service.api.feedback_fields import describe_figures
from service.api.model_list import describe_failures
from service.api.recent_metrics_from_history import (
    WINDOWS_SECONDS,
    engine_figures,
    route_figures,
    version_figures,
)
from service.api.recent_metrics_schemas import RecentMetrics
from service.api.routes import RawResponse, new_router
from service.engine.model_loader import LoadedModel
from service.feedback.feedback_recorder import Feedback
from service.keys.scopes import requires
from service.observability.history_rings import INTERVAL_SECONDS, HistoryRings
from service.registry.active_versions import CANARY, STABLE
from service.registry.model_repository import Repository

_GRACE_SECONDS = 1.5
"""An interval is shown so long after its end: by then every worker has recorded it."""
_HEADERS = [(b"cache-control", b"no-store")]


def router(
    repository: Repository, rings: HistoryRings, feedback: Feedback | None = None
) -> APIRouter:
    """Build the route; feedback: None where no true labels are taken."""
    routes = new_router("operations")
    figures = _RecentFigures(repository, rings, feedback)

    @routes.get(
        "/metrics/recent",
        summary="What happened in the last 15 minutes",
        response_model=RecentMetrics,
        responses=schemas.error_responses(400, 500),
    )
    @requires("metrics")
    async def recent_metrics(query: Annotated[schemas.NoQuery, Query()]) -> Response:
        return RawResponse(await figures.body(), headers=_HEADERS)

    return routes


class _RecentFigures:
    """The body of the response, which is built once for each interval however many ask for it."""

    def __init__(
        self, repository: Repository, rings: HistoryRings, feedback: Feedback | None
    ) -> None:
        self._repository = repository
        self._rings = rings
        self._feedback = feedback
        self._lock = asyncio.Lock()
        self._last, self._body = 0, b""

    async def body(self) -> bytes:
        """Return the JSON of the intervals up to now."""
        last = int((time.time() - _GRACE_SECONDS) // INTERVAL_SECONDS) - 1
        async with self._lock:
            if last != self._last:
                self._body, self._last = await self._build(last), last
        return self._body

    async def _build(self, last: int) -> bytes:
        models = [
            (model, CANARY if model is active.canary else STABLE)
            for active in self._repository.active_versions
            for model in active.all
        ]
        drifts = []
        for model, _ in models:
            if model.drift is not None:
                model.drift.advance()  # where another worker is at it, the tests are a little older
            drifts.append(describe_drift(model))
        labels = [self._describe_feedback(model) for model, _ in models]
        content = {
            "time": (last + 1) * INTERVAL_SECONDS,
            "interval_seconds": INTERVAL_SECONDS,
            "windows_seconds": WINDOWS_SECONDS,
            "refused": describe_failures(self._repository),
        }

        def render() -> bytes:
            versions: list[dict[str, Any]] = [
                version_figures(self._rings, last, model, role)
                | {"drift": drift, "feedback": feedback}
                for (model, role), drift, feedback in zip(models, drifts, labels, strict=True)
            ]
            routes = route_figures(self._rings, last)
            engine = engine_figures(self._rings, last)
            return orjson.dumps(content | engine | routes | {"versions": versions})

        return await asyncio.to_thread(render)

    def _describe_feedback(self, model: LoadedModel) -> dict[str, Any] | None:
        """Build a `VersionFeedback`; None where there is nothing to build it from."""
        if self._feedback is None or model not in self._feedback.known:
            return None
        figures, rate = self._feedback.known[model], self._feedback.limits.alarm_rate
        return describe_figures(model.name, model.version, figures, rate)
