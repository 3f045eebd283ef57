"""GET /models/{name}/drift and its reset: do the images still look like the validation images?"""

import math
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from model.uncertainty.change_point_bets import Moment
from model.uncertainty.drift import DriftTest, Tail
from service.api import schemas
from service.api.routes import json_response, new_router, require_control
from service.engine.model_loader import LoadedModel
from service.keys.scopes import requires
from service.registry.model_repository import Repository
from service.settings import ServiceSettings

_TAILS = (0.01, 0.05)
"""The p-values at or below which images are counted in the response."""


def router(settings: ServiceSettings, repository: Repository) -> APIRouter:
    """Build both routes."""
    routes = new_router("models", "/models/{name}/drift")

    @routes.get(
        "",
        summary="Whether the images still look like the validation images",
        response_model=schemas.Drift,
        responses=schemas.error_responses(400, 404, 500, 503, 504),
    )
    @requires("read")
    async def drift(name: str, query: Annotated[schemas.VersionQuery, Query()]) -> Response:
        model = repository.get(name, query.version)
        if model.drift is not None:
            await model.drift.refresh()
        return json_response(describe_drift(model))

    @routes.post(
        "/reset",
        summary="End a model's drift alarm and test anew",
        response_model=schemas.DriftReset,
        responses=schemas.error_responses(400, 403, 404, 500, 503, 504),
    )
    @requires("control")
    async def reset(
        request: Request, name: str, query: Annotated[schemas.NoQuery, Query()]
    ) -> Response:
        require_control(request, settings)
        versions = repository.versions(repository.get(name, "stable"))
        for model in versions:
            if model.drift is not None:
                await model.drift.reset()
        return json_response({"model": name, "versions": [model.version for model in versions]})

    return routes


def describe_drift(model: LoadedModel) -> dict[str, Any]:
    """Build a `schemas.Drift` from the tests as this process knows them."""
    content = {"model": model.name, "version": model.version}
    monitor = model.drift
    if monitor is None:
        nothing = dict.fromkeys(("level", "alarm", "typicality", "confidence"))
        return content | {"calibration": "uncalibrated"} | nothing
    figures = {figure: _describe(test) for figure, test in monitor.tests.items()}
    alarm = any(each["alarm"] for each in figures.values())
    return content | {"calibration": "fitted", "level": monitor.level, "alarm": alarm} | figures


def _describe(test: DriftTest) -> dict[str, Any]:
    """Build a `schemas.DriftFigure`."""
    return {
        "alarm": test.alarm is not None,
        "log_wealth": test.log_wealth,
        "p_value": test.p_value,
        "images": test.images,
        "raised": _moment(test.alarm),
        "since": _moment(test.since),
        "tails": [_tail(tail) for tail in test.tails(_TAILS)],
    }


def _moment(moment: Moment | None) -> dict[str, Any] | None:
    if moment is None:
        return None
    time = datetime.fromtimestamp(moment.time, UTC).isoformat(timespec="milliseconds")
    return {"image": moment.event, "time": time.replace("+00:00", "Z")}


def _tail(tail: Tail) -> dict[str, Any]:
    share = None if math.isnan(tail.share) else tail.share
    return {"p_value": tail.p_value, "share": share, "expected": tail.expected}
