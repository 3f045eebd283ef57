"""Small classifiers of the digits as other people export them, in ONNX: one function a layout.

Their convolutions are random and their last layer is fitted by least squares, so that they are
right nine times of ten without a training.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession

from training.config import TrainingConfig
from training.data.dataset import load_dataset

CLASSES = 10
_SEED = 0


class Builder:
    """Adds nodes to a network whose input is an image."""

    def __init__(self, shape: Sequence[int | str], opset: int) -> None:
        self.shape, self.opset = shape, opset
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: list[onnx.TensorProto] = []
        self.value = "input"
        self.random = np.random.default_rng(_SEED)

    def add(self, operator: str, *arrays: NDArray[np.generic] | None, **options: Any) -> str:
        """Add a node behind the last one; further inputs are constants, None: left out."""
        names = [self.value]
        for array in arrays:
            name = "" if array is None else f"constant_{len(self.arrays)}"
            if array is not None:
                self.arrays.append(numpy_helper.from_array(np.array(array, order="C"), name))
            names.append(name)
        self.value = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, names, [self.value], self.value, **options))
        return self.value

    def convolution(self, inner: int, outer: int, size: int = 3) -> None:
        """Add a random convolution of the same height and width, and a ReLU."""
        scale = np.sqrt(2 / (inner * size * size))
        weight = self.random.normal(0, scale, (outer, inner, size, size)).astype(np.float32)
        self.add("Conv", weight, pads=[size // 2] * 4)
        self.add("Relu")

    def random_dense(self, inner: int, outer: int) -> None:
        """Add a random dense layer as a Gemm with transposed weights, as torch has it."""
        weight = self.random.normal(0, np.sqrt(2 / inner), (outer, inner)).astype(np.float32)
        self.add("Gemm", weight, np.zeros(outer, np.float32), transB=1)

    def model(self, output_shape: Sequence[int | str] = ("batch", CLASSES)) -> onnx.ModelProto:
        """Return the network, whose output is the last value."""
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, list(self.shape))],
            [helper.make_tensor_value_info(self.value, TensorProto.FLOAT, list(output_shape))],
            self.arrays,
        )
        opsets = [helper.make_opsetid("", self.opset)]
        made = helper.make_model(graph, opset_imports=opsets)
        made.ir_version = min(made.ir_version, 10)
        return made

    def fitted(self, scale: float = 1.0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Fit a dense layer behind the last value to the training digits: [F, K] and [K].

        scale: of the pixels, above 0..1.
        """
        train = load_dataset(TrainingConfig(data="digits")).train
        images = train.images.astype(np.float32) / 255 * scale
        if self.shape[-1] in (1, 3):
            images = images.transpose(0, 2, 3, 1)
        batch = self.shape[0] if isinstance(self.shape[0], int) else len(images)
        session = InferenceSession(self.model(("batch", "features")).SerializeToString())
        count = len(images) // batch * batch
        parts = [
            session.run(None, {"input": images[start : start + batch]})[0]
            for start in range(0, count, batch)
        ]
        features = np.concatenate(parts).reshape(count, -1)
        targets = 8 * np.eye(CLASSES)[train.labels[:count]]
        inputs = np.column_stack([features, np.ones(count)]).astype(np.float64)
        ridge = 1e-3 * len(inputs) * np.eye(inputs.shape[1])
        solved = np.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ targets).astype(np.float32)
        return solved[:-1], solved[-1]


def keras_like(opset: int = 15) -> onnx.ModelProto:
    """As tf2onnx writes Keras: NHWC, pixels 0..255, MatMul and Add, a softmax at the end."""
    net = Builder(("unk__1", 8, 8, 1), opset)
    net.add("Mul", np.array(1 / 255, np.float32))
    net.add("Transpose", perm=[0, 3, 1, 2])
    net.convolution(1, 16)
    net.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    net.add("Transpose", perm=[0, 2, 3, 1])
    net.add("Reshape", np.array([-1, 256], np.int64))
    weight, bias = net.fitted(scale=255)
    net.add("MatMul", weight)
    net.add("Add", bias)
    net.add("Softmax")
    return net.model()


def vgg_like(opset: int = 18, dropout: bool = True, batch: int | str = "batch") -> onnx.ModelProto:
    """Dense, ReLU, dropout, dense, ReLU, dropout, dense, on pixels of mean 0.5, deviation 0.5."""
    net = Builder((batch, 1, 8, 8), opset)
    net.add("Sub", np.array(0.5, np.float32))
    net.add("Div", np.array(0.5, np.float32))
    net.convolution(1, 8)
    rows = batch if isinstance(batch, int) else -1
    net.add("Reshape", np.array([rows, 512], np.int64))
    for inner, outer, p in ((512, 128, 0.5), (128, 64, 0.25)):
        net.random_dense(inner, outer)
        net.add("Relu")
        if dropout and opset < 12:
            net.add("Dropout", ratio=p)
        elif dropout:
            net.add("Dropout", np.array(p, np.float32), np.array(False))
    weight, bias = net.fitted()
    net.add("Gemm", weight, bias)
    return net.model((batch, CLASSES))


def without_dense_layer() -> onnx.ModelProto:
    """As SqueezeNet ends: a convolution of one channel a class, ReLU, average pooling."""
    net = Builder(("batch", 1, 8, 8), 18)
    net.convolution(1, CLASSES)
    net.add("GlobalAveragePool")
    net.add("Flatten")
    return net.model()


def convolution_as_dense_layer(pool_first: bool) -> onnx.ModelProto:
    """A 1 x 1 convolution of one channel a class, behind average pooling or before it."""
    net = Builder(("batch", 1, 8, 8), 17)
    net.convolution(1, 64)
    before = len(net.nodes)
    net.add("GlobalAveragePool")
    weight, bias = net.fitted()
    kernel = weight.T[:, :, np.newaxis, np.newaxis]
    if not pool_first:
        del net.nodes[before:]
        net.value = net.nodes[-1].output[0]
    net.add("Conv", kernel, bias)
    if not pool_first:
        net.add("GlobalAveragePool")
    net.add("Flatten")
    return net.model()


def of_bytes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the network with a cast in front: it takes uint8."""
    name = model.graph.input[0].name
    for node in model.graph.node:
        node.input[:] = ["floats" if each == name else each for each in node.input]
    model.graph.node.insert(0, helper.make_node("Cast", [name], ["floats"], to=TensorProto.FLOAT))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    return model


def save(model: onnx.ModelProto, folder: Path) -> Path:
    """Write a network to a file in `folder`."""
    path = folder / "network.onnx"
    onnx.save(model, path)
    return path
