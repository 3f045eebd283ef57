"""Classifier -> `model.onnx`, `head.onnx` and `golden.npz`, with the gate they must pass.

Knows no training loop and no report: it is handed real images to compare on.
"""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.bundle.store import GOLDEN_FILE, HEAD_FILE, MODEL_FILE
from model.dropout import masks
from model.dropout.sampling import FixedSamples
from model.errors import ExportError
from model.inference.predictor import Predictor
from training.network.classifier import Classifier, Head

PARITY_TOLERANCE = 1e-4
"""Largest allowed |logit(torch) - logit(ONNX Runtime)|, for the same images and masks."""

GOLDEN_IMAGES = 4
GOLDEN_SAMPLES = 8
GOLDEN_SEED = 20_201
_PARITY_SAMPLES = 16

_RANDOM_OPERATORS = ("Dropout", "Bernoulli", "Multinomial")


class _Model(nn.Module):
    """The plain classifier's graph: images -> logits, features."""

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.trunk(images)
        return self.network.head(features), features


class _SampledHead(nn.Module):
    """The head's graph: features and one mask a dropout layer -> logits."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor, *layer_masks: Tensor) -> Tensor:
        return self.head.sample(features, layer_masks)


def export_graphs(network: Classifier, shape: tuple[int, int, int], folder: Path) -> None:
    """Write `model.onnx` and `head.onnx`, weights inside, batch and samples dynamic.

    Args:
        network: is put into evaluation mode and onto the CPU.
        shape: (C, H, W) of one image.
        folder: where to write.

    Raises:
        ExportError: a graph fails the ONNX checker or holds a random operator.
    """
    network = network.cpu().eval()
    batch, samples = torch.export.Dim("batch"), torch.export.Dim("samples")
    images = torch.rand(2, *shape)  # torch.export would specialise on a batch of 1
    with torch.no_grad():
        features = network.trunk(images)
    layers = network.head.dropout_layers
    _export(
        _Model(network),
        (images,),
        folder / MODEL_FILE,
        ["images"],
        ["logits", "features"],
        {"images": {0: batch}},
    )
    _export(
        _SampledHead(network.head),
        (features, *(torch.ones(3, layer.width) for layer in layers)),
        folder / HEAD_FILE,
        ["features", *(f"mask_{index}" for index in range(len(layers)))],
        ["logits"],
        {"features": {0: batch}, "layer_masks": tuple({0: samples} for _ in layers)},
    )


def parity(network: Classifier, predictor: Predictor, images: NDArray[np.float32]) -> float:
    """Measure max |logit(torch) - logit(ONNX Runtime)|, plain and sampled with the same masks.

    Args:
        network: in evaluation mode, on the CPU.
        predictor: over the exported graphs.
        images: float32 [N, C, H, W], real ones.

    Raises:
        ExportError: the difference exceeds PARITY_TOLERANCE.
    """
    exported = predictor.predict(images)
    sampled = predictor.sample(exported.features, FixedSamples(GOLDEN_SEED, _PARITY_SAMPLES))
    drawn = masks.draw(GOLDEN_SEED, _PARITY_SAMPLES, network.head.dropout_layers)
    with torch.no_grad():
        features = network.trunk(torch.from_numpy(images))
        logits = network.head(features).numpy()
        samples = network.head.sample(features, [torch.tensor(mask) for mask in drawn]).numpy()
    worst = max(_largest(logits - exported.logits), _largest(samples - sampled))
    if not worst <= PARITY_TOLERANCE:  # also true of NaN
        raise ExportError(
            f"The exported graphs differ from the network by {worst:.2g} in a logit, more than "
            f"{PARITY_TOLERANCE:g}; no bundle was written."
        )
    return worst


def write_golden(predictor: Predictor, images: NDArray[np.float32], folder: Path) -> None:
    """Write the self-test: a few real images, and the outputs they give now."""
    images = images[:GOLDEN_IMAGES]
    prediction = predictor.predict(images)
    np.savez_compressed(
        folder / GOLDEN_FILE,
        images=images,
        logits=prediction.logits,
        seed=np.int64(GOLDEN_SEED),
        samples=np.int64(GOLDEN_SAMPLES),
        sampled_logits=predictor.sample(
            prediction.features, FixedSamples(GOLDEN_SEED, GOLDEN_SAMPLES)
        ),
    )


def _export(
    module: nn.Module,
    arguments: tuple[Tensor, ...],
    path: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic: dict[str, object],
) -> None:
    for talkative in ("onnxscript", "torch.onnx"):
        logging.getLogger(talkative).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        torch.onnx.export(
            module.eval(),
            arguments,
            path,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=dynamic,
            external_data=False,
            verbose=False,
            dynamo=True,
        )
    _check(path)


def _check(path: Path) -> None:
    graph = onnx.load(path)
    try:
        onnx.checker.check_model(graph, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"{path.name} fails the ONNX checker: {error}") from None
    operators = {node.op_type for node in graph.graph.node}
    operators |= {node.op_type for function in graph.functions for node in function.node}
    random = {name for name in operators if name in _RANDOM_OPERATORS or "Random" in name}
    if random:
        raise ExportError(f"{path.name} holds random operators: {', '.join(sorted(random))}.")


def _largest(difference: NDArray[np.float32]) -> float:
    return float(np.abs(difference).max())
