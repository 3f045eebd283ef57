"""Exports a classifier to the graphs of a bundle and `golden.npz`, and checks their parity.

Knows no training loop and no report: the caller passes the images to compare on.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.bundle.store import GOLDEN_FILE, HEAD_FILE, MODEL_FILE
from model.dropout import masks
from model.dropout.sampling_methods import FixedSamples
from model.errors import ExportError
from model.graphs.output_tolerance import scaled_tolerance
from model.inference.predictor import Predictor
from training.export.ood_statistics import STATISTICS, features_and_statistics
from training.export.serving_graphs import finish_graphs
from training.network.classifier import Classifier, Head

PARITY_TOLERANCE = 1e-4
"""Largest allowed difference of an output of the exported graphs, see `parity_tolerance`."""

GOLDEN_IMAGES = 4
GOLDEN_SAMPLES = 8
GOLDEN_SEED = 20_201
PARITY_IMAGES = 256
"""Validation images of the parity check, and of the golden file."""
_PARITY_SAMPLES = 16

_RANDOM_OPERATORS = ("Dropout", "Bernoulli", "Multinomial")


class _ClassifierGraph(nn.Module):
    """The graph of `model.onnx`: images [N, C, H, W] -> logits [N, K], features [N, F].

    With statistics it also gives those that the out-of-distribution score is fitted to, [N, S].
    """

    def __init__(self, network: Classifier, with_statistics: bool) -> None:
        super().__init__()
        self.network = network
        self.with_statistics = with_statistics

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if not self.with_statistics:
            features = self.network.trunk(images)
            return self.network.head(features), features
        features, statistics = features_and_statistics(self.network, images)
        return self.network.head(features), features, statistics


class _TrunkGraph(nn.Module):
    """The graph of a trunk alone: images [N, C, H, W] -> features [N, F]."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.trunk(images)
        return features


class _HeadGraph(nn.Module):
    """The graph of `head.onnx`: features [N, F], T masks a dropout layer -> logits [N, T, K]."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor, *layer_masks: Tensor) -> Tensor:
        return self.head.sample(features, layer_masks)


def export_graphs(
    network: Classifier,
    shape: tuple[int, int, int],
    folder: Path,
    with_statistics: bool = False,
) -> None:
    """Write the finished graphs, weights included, with dynamic batch and samples.

    Args:
        network: is moved to the CPU and put into evaluation mode.
        shape: (C, H, W) of one image.
        folder: folder to write into.
        with_statistics: whether `model.onnx` has the further output STATISTICS, which
            `training.export.ood_graph` replaces by a score.

    Raises:
        ExportError: a graph fails the ONNX checker or contains a random operator.
    """
    network = network.cpu().eval()
    batch, samples = torch.export.Dim("batch"), torch.export.Dim("samples")
    images = torch.rand(2, *shape)  # torch.export would specialise on a batch of 1
    with torch.no_grad():
        features = network.trunk(images)
    layers = network.head.dropout_layers
    _export(
        _ClassifierGraph(network, with_statistics),
        (images,),
        folder / MODEL_FILE,
        ["images"],
        ["logits", "features", *([STATISTICS] if with_statistics else [])],
        {"images": {0: batch}},
    )
    _export(
        _HeadGraph(network.head),
        (features, *(torch.ones(3, layer.width) for layer in layers)),
        folder / HEAD_FILE,
        ["features", *(f"mask_{index}" for index in range(len(layers)))],
        ["logits"],
        {"features": {0: batch}, "layer_masks": tuple({0: samples} for _ in layers)},
    )
    finish_graphs(folder)


def export_trunk(trunk: nn.Module, shape: tuple[int, int, int], path: Path) -> None:
    """Write a trunk alone: `images` [N, C, H, W] -> `features` [N, F].

    Args:
        trunk: on the CPU, in evaluation mode.
        shape: (C, H, W) of one image.
        path: file to write.

    Raises:
        ExportError: the graph fails the ONNX checker or contains a random operator.
    """
    images = torch.rand(2, *shape)  # torch.export would specialise on a batch of 1
    dynamic = {0: torch.export.Dim("batch")}
    _export(_TrunkGraph(trunk), (images,), path, ["images"], ["features"], {"images": dynamic})


def parity_tolerance(outputs: NDArray[np.floating]) -> float:
    """Return by how much an exported graph may differ from a network that has these outputs."""
    return scaled_tolerance(PARITY_TOLERANCE, outputs)


def check_parity(network: Classifier, predictor: Predictor, images: NDArray[np.float32]) -> float:
    """Return max |logit(torch) - logit(ONNX Runtime)|, deterministic and with the same masks.

    Args:
        network: in evaluation mode, on the CPU.
        predictor: over the exported graphs.
        images: float32 [N, C, H, W] in 0..1, real ones.

    Raises:
        ExportError: a difference exceeds `parity_tolerance`.
    """
    exported = predictor.predict(images)
    sampled = predictor.sample(exported.features, FixedSamples(GOLDEN_SEED, _PARITY_SAMPLES))
    layer_masks = masks.draw(GOLDEN_SEED, _PARITY_SAMPLES, network.head.dropout_layers)
    with torch.no_grad():
        features = network.trunk(torch.from_numpy(images))
        logits = network.head(features).numpy()
        samples = network.head.sample(
            features, [torch.tensor(mask) for mask in layer_masks]
        ).numpy()
    differences = []
    for own, found in ((logits, exported.logits), (samples, sampled)):
        difference, tolerance = float(np.abs(own - found).max()), parity_tolerance(own)
        if not difference <= tolerance < np.inf:  # `difference > tolerance` would accept NaN
            raise ExportError(
                f"The exported graphs differ from the network by {difference:.2g} in a logit, more "
                f"than {tolerance:.2g}; no bundle was written."
            )
        differences.append(difference)
    return max(differences)


def write_golden(predictor: Predictor, images: NDArray[np.float32], folder: Path) -> None:
    """Write `golden.npz`, the self-test of a bundle: a few real images and their outputs."""
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
    with quiet_exporter():
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
    _strip_metadata(path)
    _check_graph(path)


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Suppress the warnings and the log of torch's exporter for as long as the block runs."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "torch.onnx")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def _strip_metadata(path: Path) -> None:
    """Remove what torch notes of its own source: paths of this machine, names of classes.

    They reveal where the model was trained, and would give equal graphs other digests elsewhere.
    """
    model = onnx.load(path)
    graph = model.graph
    parts = (model, graph, *graph.node, *graph.initializer, *graph.value_info)
    for part in (*parts, *graph.input, *graph.output, *model.functions):
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.save(model, path)


def _check_graph(path: Path) -> None:
    model = onnx.load(path)
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"{path.name} fails the ONNX checker: {error}") from None
    operators = {node.op_type for node in model.graph.node}
    operators |= {node.op_type for function in model.functions for node in function.node}
    random = {name for name in operators if name in _RANDOM_OPERATORS or "Random" in name}
    if random:
        raise ExportError(f"{path.name} holds random operators: {', '.join(sorted(random))}.")
