"""GET /health/live, GET /health/ready and GET /metrics: the routes for operators."""

import re
from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.openmetrics import exposition as openmetrics

from service.api import schemas
from service.api.routes import json_response, new_router
from service.errors import NotReadyError
from service.keys.scopes import public, requires
from service.observability.metrics_recorder import Metrics

_OPENMETRICS = "application/openmetrics-text"
_REFUSED = re.compile(r"q\s*=\s*0(\.0*)?")


def router(not_ready_reason: Callable[[], str | None], metrics: Metrics) -> APIRouter:
    """Build the three routes.

    not_ready_reason: returns in one sentence why the service is not ready; None when it is.
    """
    routes = new_router("operations")

    @routes.get(
        "/health/live",
        summary="Whether the process answers",
        response_model=schemas.Live,
        responses=schemas.error_responses(400, 500),
    )
    @public
    async def live(query: Annotated[schemas.NoQuery, Query()]) -> Response:
        return json_response({"live": True})

    @routes.get(
        "/health/ready",
        summary="Whether a bundle is loaded and warmed, and the service is not ending",
        response_model=schemas.Ready,
        responses=schemas.error_responses(400, 500, 503),
    )
    @public
    async def ready(query: Annotated[schemas.NoQuery, Query()]) -> Response:
        problem = not_ready_reason()
        if problem is not None:
            raise NotReadyError(problem)
        return json_response({"ready": True})

    @routes.get(
        "/metrics",
        summary="Metrics for Prometheus",
        operation_id="figures_metrics_get",  # clients are generated from it, so it is kept
        response_class=Response,
        responses={200: {"content": {"text/plain": {}, _OPENMETRICS: {}}}},
    )
    @requires("metrics")
    async def prometheus_metrics(request: Request) -> Response:
        as_openmetrics = accepts_openmetrics(", ".join(request.headers.getlist("accept")))
        return Response(
            await metrics.render_in_thread(as_openmetrics=as_openmetrics),
            media_type=openmetrics.CONTENT_TYPE_LATEST if as_openmetrics else CONTENT_TYPE_LATEST,
            headers={"Vary": "Accept"},
        )

    return routes


def accepts_openmetrics(accept: str) -> bool:
    """Return whether an `Accept` header names OpenMetrics, as Prometheus' own does."""
    for each in accept.lower().split(","):
        name, *parameters = (part.strip() for part in each.split(";"))
        if name == _OPENMETRICS:
            return not any(_REFUSED.fullmatch(parameter) for parameter in parameters)
    return False
