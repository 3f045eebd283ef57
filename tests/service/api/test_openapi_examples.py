"""Every request that the OpenAPI description suggests is answered 200 by a running service.

For each route and each type of body: the examples, the defaults, and an image where the description
asks for a file. The service runs below a path prefix, which the description names.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.bundles import copy_bundle
from tests.service.process import ServiceProcess, service_process

PREFIX = "/below/this"
JSON, FORM, BINARY = "application/json", "multipart/form-data", "application/octet-stream"
LENGTH_HEADER = "Inference-Header-Content-Length"
FORMATS = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/webp": "WEBP",
    "image/gif": "GIF",
    "image/bmp": "BMP",
    "image/tiff": "TIFF",
    "image/avif": "AVIF",
    "image/heic": "HEIF",
    "image/heif": "HEIF",
}


@dataclass
class Suggested:
    """One request of the description."""

    method: str
    path: str
    kind: str | None
    """The type of the body; None for none."""
    is_control: bool
    query: dict[str, Any] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)

    def send(self, public: httpx.Client, control: httpx.Client, server: str) -> httpx.Response:
        """Send it, to the control listener where only that takes it."""
        client = control if self.is_control else public
        return client.request(self.method, server + self.path, params=self.query, **self.body)


@pytest.fixture(scope="module")
def service(
    bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    """Serve two versions, so that there can be a canary."""
    folder = tmp_path_factory.mktemp("models")
    for version in (1, 2):
        copy_bundle(bundle_folder, folder, version=version)
    with service_process(folder, "--root-path", PREFIX) as process:
        yield process


def test_every_request_of_the_description_is_answered_200(service: ServiceProcess) -> None:
    with service.client() as public, service.control() as control:
        description = public.get(f"{PREFIX}/openapi.json").json()
        (server,) = (each["url"] for each in description["servers"])
        assert server == PREFIX
        requests = {
            f"{each.method} {each.path} {each.kind}": each for each in suggested(description)
        }
        assert len(requests) > 60
        follow, canary, unload = (
            next(each for name, each in requests.items() if action in name)
            for action in ("/follow", "/canary", "/unload")
        )
        answers = {}
        for name, request in requests.items():
            if request is unload:
                continue
            if "/promote" in name or "/rollback" in name:  # which need a canary
                follow.send(public, control, server)
                canary.send(public, control, server)
            answers[name] = request.send(public, control, server)
        answers["unload"] = unload.send(public, control, server)  # or no model would be left
    assert {name: each.text for name, each in answers.items() if each.status_code != 200} == {}


def test_every_control_request_of_the_description_is_refused_to_the_public(
    service: ServiceProcess,
) -> None:
    with service.client() as public:
        description = public.get(f"{PREFIX}/openapi.json").json()
        controls = [each for each in suggested(description) if each.is_control]
        answers = [each.send(public, public, PREFIX) for each in controls]
    assert [each.status_code for each in answers] == [403] * 11
    operations = [each for methods in description["paths"].values() for each in methods.values()]
    for operation in operations:
        says_how = "python -m service.control" in operation.get("description", "")
        assert says_how == ("403" in operation["responses"])


def suggested(description: dict[str, Any]) -> Iterator[Suggested]:
    """Yield the requests of a description."""
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            values: dict[str, dict[str, Any]] = {"path": {}, "query": {}, "header": {}}
            for parameter in operation.get("parameters", ()):
                name, place, value = parameter_value(description, parameter)
                if value is not None:
                    values[place][name] = value
            bodies = operation.get("requestBody", {}).get("content", {None: {}})
            for kind, content in bodies.items():
                yield Suggested(
                    method=method.upper(),
                    path=path.format_map(values["path"]),
                    kind=kind,
                    is_control="403" in operation["responses"],
                    query=values["query"],
                    body=body(kind, content),
                )


def parameter_value(
    description: dict[str, Any], parameter: dict[str, Any]
) -> tuple[str, str, object]:
    """Return a parameter's name, its place and what Swagger UI fills in; None for nothing."""
    if "$ref" in parameter:
        key = parameter["$ref"].removeprefix("#/components/parameters/")
        parameter = description["components"]["parameters"][key]
    value = parameter.get("example", parameter["schema"].get("default"))
    assert value is not None or not parameter.get("required"), parameter
    return parameter["name"], parameter["in"], value


def body(kind: str | None, content: dict[str, Any]) -> dict[str, Any]:
    """Return httpx's arguments for a body of a type."""
    if kind is None:
        return {}
    if kind == JSON:
        return {"json": content["example"]}
    if kind == FORM:
        ((name, files),) = content["schema"]["properties"].items()
        return {"files": [(name, ("image.png", picture("PNG")))] * min(2, files.get("maxItems", 2))}
    if kind == BINARY:  # one tensor without JSON, as the header's description says
        tensor = np.full((1, 1, 8, 8), 0.5, np.float32)
        return {"content": tensor.tobytes(), "headers": {LENGTH_HEADER: "0", "Content-Type": kind}}
    return {"content": picture(FORMATS[kind]), "headers": {"Content-Type": kind}}


def picture(kind: str) -> bytes:
    """Return an image file; a PNG in place of HEIC where that cannot be encoded."""
    if kind == "HEIF":
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            kind = "PNG"
        else:
            register_heif_opener()
    file = BytesIO()
    Image.new("RGB", (64, 64), (90, 120, 200)).save(file, kind)
    return file.getvalue()
