"""The least that a server can do: Starlette, orjson, the graph on the event loop, no checks."""

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
    """Classify flat numbers."""
    image = classify.image(orjson.loads(await request.body())["image"])
    return json_response({"probabilities": classify(image)[0]})


async def png(request: Request) -> Response:
    """Classify an encoded file."""
    return json_response({"probabilities": classify(classify.decode(await request.body()))[0]})


async def infer(request: Request) -> Response:
    """Answer a request of the Open Inference Protocol, binary where the header announces it."""
    body = await request.body()
    length = request.headers.get("inference-header-content-length")
    if length is None:
        tensor = orjson.loads(body)["inputs"][0]
        images = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
        return json_response(infer_response(classify(images)))
    shape = orjson.loads(body[: int(length)])["inputs"][0]["shape"]
    probabilities = classify(np.frombuffer(body, np.float32, offset=int(length)).reshape(shape))
    raw = probabilities.tobytes()
    tensor = output_metadata(probabilities) | {"parameters": {"binary_data_size": len(raw)}}
    head = orjson.dumps({"model_name": "bare", "model_version": "1", "outputs": [tensor]})
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return Response(head + raw, headers=headers, media_type="application/octet-stream")


def infer_response(probabilities: Floats) -> dict[str, object]:
    """Return a response of the protocol."""
    tensor = output_metadata(probabilities) | {"data": probabilities.ravel()}
    return {"model_name": "bare", "model_version": "1", "outputs": [tensor]}


def output_metadata(probabilities: Floats) -> dict[str, object]:
    """Return the protocol's description of an output."""
    return {"name": "probabilities", "datatype": "FP32", "shape": probabilities.shape}


def json_response(content: dict[str, object]) -> Response:
    """Write a JSON response."""
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
