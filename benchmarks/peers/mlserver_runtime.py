"""The graph as a custom runtime of MLServer, written as in its documentation."""

from classifier import Classifier
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Runtime(MLModel):
    """The runtime that MLServer loads; MLServer makes the batches."""

    async def load(self) -> bool:
        """Load the graph."""
        self.classify = Classifier()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Classify a batch, which MLServer has merged into one request."""
        images = NumpyCodec.decode_input(payload.inputs[0])
        output = NumpyCodec.encode_output("probabilities", self.classify(images))
        return InferenceResponse(model_name=self.name, outputs=[output])
