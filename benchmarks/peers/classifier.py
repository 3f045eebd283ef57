"""The ONNX graph that every peer runs, on one thread, followed by a softmax.

Runs in the environments of the peers: numpy, ONNX Runtime and, for files, Pillow.
"""

import io
import os
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

Floats = NDArray[np.float32]


class Classifier:
    """The graph of a bundle, which environment variables name."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self.shape = tuple(map(int, os.environ["BENCHMARK_SHAPE"].split(",")))
        """Channels, height and width of an image."""
        self._temperature = np.float32(os.environ["BENCHMARK_TEMPERATURE"])
        self._session = onnxruntime.InferenceSession(
            os.environ["BENCHMARK_MODEL"], options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, images: Floats) -> Floats:
        """Classify images float32 [N, C, H, W]; return probabilities float32 [N, K]."""
        (logits,) = self._session.run(["logits"], {"images": images})
        scaled = logits / self._temperature
        powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def image(self, numbers: list[float]) -> Floats:
        """Return flat numbers as an image float32 [1, C, H, W]."""
        return np.array(numbers, np.float32).reshape(1, *self.shape)

    def decode(self, file: bytes) -> Floats:
        """Decode a file to an image float32 [1, C, H, W], in the usual way."""
        from PIL import Image

        return self.pixels(Image.open(io.BytesIO(file)))

    def pixels(self, image: "Image.Image") -> Floats:
        """Bring an image to the colours and the size of the model: float32 [1, C, H, W]."""
        channels, height, width = self.shape
        image = image.convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            from PIL.Image import Resampling

            image = image.resize((width, height), Resampling.BILINEAR)
        pixels = np.asarray(image, np.float32) / 255
        planes = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
        return np.ascontiguousarray(planes[None])
