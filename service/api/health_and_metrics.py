"""GET /health/live, GET /health/ready and GET /metrics: the routes for operators."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.api import schemas
from service.api.routes import json_response, new_router
from service.errors import NotReadyError
from service.observability.metrics_recorder import Metrics
from service.registry.model_repository import Repository


def router(repository: Repository, metrics: Metrics) -> APIRouter:
    """Build the three routes."""
    routes = new_router("operations")

    @routes.get(
        "/health/live",
        summary="Whether the process answers",
        response_model=schemas.Live,
        responses=schemas.error_responses(400, 500),
    )
    async def live(query: Annotated[schemas.NoQuery, Query()]) -> Response:
        return json_response({"live": True})

    @routes.get(
        "/health/ready",
        summary="Whether a bundle is loaded and warmed",
        response_model=schemas.Ready,
        responses=schemas.error_responses(400, 500, 503),
    )
    async def ready(query: Annotated[schemas.NoQuery, Query()]) -> Response:
        problem = repository.not_ready_reason()
        if problem is not None:
            raise NotReadyError(problem)
        return json_response({"ready": True})

    @routes.get(
        "/metrics",
        summary="Metrics for Prometheus",
        operation_id="figures_metrics_get",  # clients are generated from it, so it is kept
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}},
    )
    async def prometheus_metrics() -> Response:
        return Response(await metrics.render_in_thread(), media_type=CONTENT_TYPE_LATEST)

    return routes
