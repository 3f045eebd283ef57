"""As little as a server can do: Starlette, orjson, the graph on the event loop. No checks."""

import os

import numpy as np
import orjson
import uvicorn
from classifier import Classifier, Floats
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

classify = Classifier()


async def numbers(request: Request) -> Response:
    """Flat numbers."""
    image = classify.image(orjson.loads(await request.body())["image"])
    return written({"probabilities": classify(image)[0]})


async def png(request: Request) -> Response:
    """An encoded file."""
    return written({"probabilities": classify(classify.decoded(await request.body()))[0]})


async def infer(request: Request) -> Response:
    """The Open Inference Protocol, its binary form where the header says so."""
    body = await request.body()
    length = request.headers.get("inference-header-content-length")
    if length is None:
        tensor = orjson.loads(body)["inputs"][0]
        images = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
        return written(output(classify(images)))
    shape = orjson.loads(body[: int(length)])["inputs"][0]["shape"]
    found = classify(np.frombuffer(body, np.float32, offset=int(length)).reshape(shape))
    raw = found.tobytes()
    tensor = described(found) | {"parameters": {"binary_data_size": len(raw)}}
    head = orjson.dumps({"model_name": "bare", "model_version": "1", "outputs": [tensor]})
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return Response(head + raw, headers=headers, media_type="application/octet-stream")


def output(found: Floats) -> dict[str, object]:
    """The protocol's answer."""
    tensor = described(found) | {"data": found.ravel()}
    return {"model_name": "bare", "model_version": "1", "outputs": [tensor]}


def described(found: Floats) -> dict[str, object]:
    """The protocol's description of an output."""
    return {"name": "probabilities", "datatype": "FP32", "shape": found.shape}


def written(content: dict[str, object]) -> Response:
    """JSON."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, media_type="application/json")


routes = [
    Route("/predict", numbers, methods=["POST"]),
    Route("/png", png, methods=["POST"]),
    Route("/infer", infer, methods=["POST"]),
]
uvicorn.run(
    Starlette(routes=routes),
    port=int(os.environ["BENCHMARK_PORT"]),
    loop="uvloop",
    http="httptools",
    access_log=False,
    log_level="warning",
)
