"""The graph as a deployment of Ray Serve, with its batching, behind its HTTP proxy."""

import os

import numpy as np
import orjson
import ray
from classifier import Classifier, Floats
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(
    num_replicas=1,
    max_ongoing_requests=256,
    ray_actor_options={"num_cpus": 1},
    logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
)
class Deployment:
    """The deployment, which Ray runs in a process of its own."""

    def __init__(self) -> None:
        self.classify = Classifier()

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0)
    async def classify_batch(self, images: list[Floats]) -> list[Floats]:
        """Classify the images of several requests."""
        return list(self.classify(np.concatenate(images)))

    async def __call__(self, request: Request) -> Response:
        """Classify flat numbers in JSON, or an encoded file."""
        body = await request.body()
        if request.url.path.endswith("/png"):
            image = self.classify.decode(body)
        else:
            image = self.classify.image(orjson.loads(body)["image"])
        response = {"probabilities": await self.classify_batch(image)}
        content = orjson.dumps(response, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(content, media_type="application/json")


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, configure_logging=False)
    serve.start(
        http_options=HTTPOptions(host="127.0.0.1", port=int(os.environ["BENCHMARK_PORT"])),
        logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
    )
    serve.run(Deployment.bind(), blocking=True)
