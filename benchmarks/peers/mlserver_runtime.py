"""The graph as a runtime of MLServer, as its documentation writes one; it batches by itself."""

from classifier import Classifier
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Runtime(MLModel):
    """What MLServer loads."""

    async def load(self) -> bool:
        """Load the graph."""
        self.classify = Classifier()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer the requests of a batch, which MLServer has made one."""
        images = NumpyCodec.decode_input(payload.inputs[0])
        output = NumpyCodec.encode_output("probabilities", self.classify(images))
        return InferenceResponse(model_name=self.name, outputs=[output])
