"""The pictures and the report that a bundle carries: /models/{name}/examples and …/report.

A bundle may come from anybody, so what a browser gets of it may run nothing and load nothing.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import HTMLResponse

from model.bundle.store import REPORT_FILE
from service.api import schemas
from service.api.routes import RawResponse, json_response, new_router
from service.engine.model_loader import LoadedModel
from service.errors import UnknownExampleError
from service.keys.scopes import requires
from service.registry.model_repository import Repository

_POLICY = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
"""Styles and pictures within the page alone; `sandbox` takes scripts and the service's origin from
it, should a browser know no other directive."""
_HEADERS = {"Content-Security-Policy": _POLICY}
_IMAGE_TYPE = "image/webp"

_Query = Annotated[schemas.VersionQuery, Query()]
_Number = Annotated[
    str, Path(description="from 0", json_schema_extra={"type": "integer", "minimum": 0})
]


def router(repository: Repository) -> APIRouter:
    """Build the routes."""
    routes = new_router("models")
    errors = schemas.error_responses(400, 404, 500, 503)

    @routes.get(
        "/models/{name}/examples",
        summary="Validation images that the bundle carries",
        response_model=schemas.Examples,
        responses=errors,
    )
    @requires("read")
    async def examples(name: str, query: _Query) -> Response:
        model = repository.get(name, query.version)
        return json_response(_listed(model))

    @routes.get(
        "/models/{name}/examples/{number}",
        summary="One of these images",
        response_class=Response,
        responses=errors | _body(_IMAGE_TYPE, {"type": "string", "format": "binary"}),
    )
    @requires("read")
    async def example(request: Request, name: str, number: _Number, query: _Query) -> Response:
        model = repository.get(name, query.version)
        files = model.bundle.manifest.examples
        index = next((place for place in range(len(files)) if str(place) == number), None)
        if index is None:
            raise UnknownExampleError(
                f"{name} version {model.version} has no example {number!r}; "
                f"GET /models/{name}/examples lists them."
            )
        tag = model.bundle.manifest.files[files[index].file]
        if _is_known(request, tag):
            return _not_modified(tag)
        headers = [(key.lower().encode(), value.encode()) for key, value in _tagged(tag).items()]
        return RawResponse(model.bundle.examples[index], _IMAGE_TYPE.encode(), headers)

    @routes.get(
        "/models/{name}/report",
        summary="The bundle's report, a page for people",
        response_class=Response,
        responses=errors | schemas.error_responses(504) | _body("text/html", {"type": "string"}),
    )
    @requires("read")
    async def report(request: Request, name: str, query: _Query) -> Response:
        model = repository.get(name, query.version)
        tag = model.bundle.manifest.files.get(REPORT_FILE, "")
        if tag and _is_known(request, tag):
            return _not_modified(tag)
        page = await repository.read_report(model)
        return HTMLResponse(page, headers=_tagged(tag))

    return routes


def _body(media_type: str, schema: dict[str, str]) -> dict[int | str, dict[str, Any]]:
    """Build FastAPI's `responses` for a body that is no JSON."""
    return {200: {"content": {media_type: {"schema": schema}}}}


def _listed(model: LoadedModel) -> dict[str, object]:
    """Build the `schemas.Examples` of a version."""
    entries = [
        {
            "number": number,
            "label": example.label,
            "href": f"examples/{number}?version={model.version}",
        }
        for number, example in enumerate(model.bundle.manifest.examples)
    ]
    return {"model": model.name, "version": model.version, "examples": entries}


def _tagged(digest: str) -> dict[str, str]:
    """Return the headers of a file of this digest: a client asks each time if it has changed."""
    return {**_HEADERS, "ETag": f'"{digest}"', "Cache-Control": "no-cache"}


def _is_known(request: Request, digest: str) -> bool:
    """Return whether the client has the file already (RFC 9110, 13.1.2)."""
    known = request.headers.get("if-none-match", "").strip()
    tags = (tag.strip().removeprefix("W/") for tag in known.split(","))
    return known == "*" or f'"{digest}"' in tags


def _not_modified(digest: str) -> Response:
    return Response(status_code=304, headers=_tagged(digest))
