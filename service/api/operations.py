"""GET /health/live, GET /health/ready and GET /metrics."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.api import schemas
from service.api.routes import json_response
from service.errors import NotReadyError
from service.observability.metrics import Metrics
from service.registry.repository import Repository


def router(repository: Repository, metrics: Metrics) -> APIRouter:
    """Build the three routes."""
    routes = APIRouter(tags=["operations"])

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
        problem = repository.problem()
        if problem is not None:
            raise NotReadyError(problem)
        return json_response({"ready": True})

    @routes.get(
        "/metrics",
        summary="Figures for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}},
    )
    async def figures() -> Response:
        return Response(await metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    return routes
