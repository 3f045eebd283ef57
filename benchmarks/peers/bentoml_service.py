"""The graph as a service of BentoML, with its adaptive batching."""

from typing import Annotated

import bentoml
import numpy as np
from bentoml.validators import DType
from classifier import Classifier
from PIL.Image import Image


@bentoml.service(
    workers=1, threads=1, traffic={"timeout": 30}, logging={"access": {"enabled": False}}
)
class Service:
    """The service that BentoML runs."""

    def __init__(self) -> None:
        self.classify = Classifier()

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=1000)
    def predict(self, images: Annotated[np.ndarray, DType("float32")]) -> np.ndarray:
        """Classify images float32 [N, C, H, W]."""
        return self.classify(images)

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=1000)
    def png(self, file: list[Image]) -> list[list[float]]:
        """Classify encoded files."""
        pixels = [self.classify.pixels(each) for each in file]
        return self.classify(np.concatenate(pixels)).tolist()
