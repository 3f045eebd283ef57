"""The graph in LitServe, with batches and its fast queue enabled."""

import os
from typing import Any

import litserve
import numpy as np
from classifier import Classifier, Floats
from fastapi import Request


class Api(litserve.LitAPI):
    """Classifies flat numbers in JSON, or an encoded file in a form."""

    def setup(self, device: str) -> None:
        """Load the graph in the worker."""
        self.classify = Classifier()

    def decode_request(self, request: Request) -> Floats:
        """Decode one request to an image float32 [C, H, W]."""
        if "file" in request:
            return self.classify.decode(request["file"].file.read())[0]
        return self.classify.image(request["image"])[0]

    def batch(self, inputs: list[Floats]) -> Floats:
        """Stack the images of several requests."""
        return np.stack(inputs)

    def predict(self, images: Floats) -> Floats:
        """Classify a batch."""
        return self.classify(images)

    def unbatch(self, output: Floats) -> list[Floats]:
        """Split the probabilities of a batch."""
        return list(output)

    def encode_response(self, output: Floats) -> dict[str, Any]:
        """Write one response."""
        return {"probabilities": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(
        Api(max_batch_size=64, batch_timeout=0),
        accelerator="cpu",
        workers_per_device=1,
        fast_queue=True,
    )
    server.run(
        host="127.0.0.1",
        port=int(os.environ["BENCHMARK_PORT"]),
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )
