"""GET /health/live, GET /health/ready, GET /metrics and the page at /."""

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST

from service import schemas
from service.errors import NotReadyError
from service.metrics import Metrics
from service.repository import Repository
from service.routes import json_response

_PAGE = Path(__file__).parent.parent / "playground" / "index.html"


def router(repository: Repository, metrics: Metrics) -> APIRouter:
    """Build the four routes."""
    routes = APIRouter(tags=["operations"])
    page = _PAGE.read_text(encoding="utf-8")

    @routes.get("/", include_in_schema=False)
    async def playground() -> HTMLResponse:
        return HTMLResponse(page)

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
