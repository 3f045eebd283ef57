"""The graph in Triton's Python backend, which runs the requests of one call as one batch."""

from __future__ import annotations  # the backend defines some types later

import numpy as np
import triton_python_backend_utils as triton
from classifier import Classifier


class TritonPythonModel:
    """The model class that the backend calls."""

    def initialize(self, _arguments: dict[str, str]) -> None:
        """Load the graph."""
        self.classify = Classifier()

    def execute(self, requests: list[triton.InferenceRequest]) -> list[triton.InferenceResponse]:
        """Classify the requests that the dynamic batcher has put together."""
        images = [triton.get_input_tensor_by_name(each, "images").as_numpy() for each in requests]
        probabilities = self.classify(images[0] if len(images) == 1 else np.concatenate(images))
        ends = np.cumsum([len(each) for each in images])[:-1]
        return [
            triton.InferenceResponse([triton.Tensor("probabilities", each)])
            for each in np.split(probabilities, ends)
        ]
