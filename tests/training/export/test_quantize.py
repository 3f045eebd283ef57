from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper

from model.bundle.architecture_description import Architecture
from model.bundle.store import GRAPH_FILES, MODEL_FILE
from model.errors import ExportError
from model.images.preprocessing import InputSpec, to_float
from model.inference.predictor import Predictor
from tests.exported import DIGIT, Export, Exported
from training.export.quantize import quantize
from training.export.to_onnx import export_graphs
from training.network.classifier import build_classifier

ROWS = 64


@pytest.fixture(scope="module")
def images() -> NDArray[np.float32]:
    """Return images of random bytes, which have the values of decoded images."""
    return to_float(np.random.default_rng(0).integers(0, 256, (ROWS, 1, 8, 8), dtype=np.uint8))


@pytest.fixture(scope="module")
def exported(images: NDArray[np.float32], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Export the default preset with running statistics of normalisation, as after training.

    As in every calibrated bundle, the graph also pools statistics beside the trunk.
    """
    torch.manual_seed(0)
    network = build_classifier(Architecture(classes=10, input=DIGIT), [0.3], [0.4])
    for _ in range(8):
        network.train()(torch.from_numpy(images))
    for module in network.trunk.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            torch.nn.init.normal_(module.bias)
    folder = tmp_path_factory.mktemp("exported")
    export_graphs(network, (1, 8, 8), folder, with_statistics=True)
    return Exported(network, folder, Predictor.open(folder, network.head.dropout_layers), images)


def copy_other_graphs(source: Path, target: Path) -> None:
    for file in set(GRAPH_FILES) - {MODEL_FILE}:
        (target / file).write_bytes((source / file).read_bytes())


@pytest.fixture(scope="module")
def quantised(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with both graphs, `model.onnx` in 8-bit integers."""
    folder = tmp_path_factory.mktemp("quantised")
    quantize(exported.folder / MODEL_FILE, exported.images, folder / MODEL_FILE)
    copy_other_graphs(exported.folder, folder)
    return folder


def test_quantize_keeps_features_close(
    exported: Exported, quantised: Path, images: NDArray[np.float32]
) -> None:
    before = exported.predictor.predict(images).features
    after = Predictor.open(quantised, exported.network.head.dropout_layers).predict(images).features
    assert np.abs(after - before).mean() < 0.02 * np.abs(before).mean()
    assert not np.array_equal(after, before)


@given(start=st.integers(0, ROWS - 1), count=st.integers(1, ROWS), threads=st.sampled_from([1, 3]))
def test_quantised_graph_gives_the_same_bytes_in_any_batch_with_any_threads(
    exported: Exported,
    quantised: Path,
    images: NDArray[np.float32],
    start: int,
    count: int,
    threads: int,
) -> None:
    layers = exported.network.head.dropout_layers
    batch = images[start : start + count]
    together = Predictor.open(quantised, layers, threads).predict(batch)
    alone = Predictor.open(quantised, layers).predict(batch[-1:])
    assert together.logits[-1].tobytes() == alone.logits[0].tobytes()
    assert together.features[-1].tobytes() == alone.features[0].tobytes()


def test_quantised_graph_gives_the_same_integers_with_other_kernels(
    quantised: Path, images: NDArray[np.float32], tmp_path: Path
) -> None:
    """Without layout optimisations ONNX Runtime runs other kernels, as on another processor."""
    graph = onnx.load(quantised / MODEL_FILE)
    last = [each.output[0] for each in graph.graph.node if each.op_type == "DequantizeLinear"][-1]
    float32 = onnx.TensorProto.FLOAT
    graph.graph.output.append(onnx.helper.make_tensor_value_info(last, float32, None))
    onnx.save(graph, tmp_path / MODEL_FILE)
    integers = []
    for level in ("ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"):
        settings = onnxruntime.SessionOptions()
        settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        session = onnxruntime.InferenceSession(tmp_path / MODEL_FILE, settings)
        integers.append(session.run([last], {"images": images})[0])
    assert integers[0].tobytes() == integers[1].tobytes()
    assert len(np.unique(integers[0])) > 20


def test_quantize_makes_every_convolution_integer_but_the_first(
    quantised: Path, tmp_path: Path
) -> None:
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    settings.log_severity_level = 3  # a warning that the saved graph is specific to this machine
    onnxruntime.InferenceSession(quantised / MODEL_FILE, settings)
    operators = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert operators.count("Conv") == 1
    assert operators.count("QLinearConv") == 4
    # Once for the features, and for the mean of each of the four activations before.
    assert operators.count("DequantizeLinear") == 1 + 4


def test_quantised_weights_have_seven_bits(quantised: Path) -> None:
    graph = onnx.load(quantised / MODEL_FILE).graph
    arrays = [numpy_helper.to_array(each) for each in graph.initializer]
    weights = [array for array in arrays if array.dtype == np.int8 and array.ndim == 4]
    assert len(weights) == 4
    assert 2 * 255 * max(np.abs(each.astype(int)).max() for each in weights) < 2**15


@given(st.integers(0, 2**32 - 1))
def test_first_convolution_of_a_quantised_graph_never_rounds(quantised: Path, seed: int) -> None:
    """Weights are whole multiples of a channel's step, and no sum exceeds 2^24 steps."""
    graph = onnx.load(quantised / MODEL_FILE).graph
    arrays = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    first = next(node for node in graph.node if node.op_type == "Conv")
    weight, bias = (arrays[name].astype(np.float64) for name in first.input[1:])
    mean = float(arrays["mean_pixel"].item())
    pixels = np.random.default_rng(seed).choice([0.0, 255.0], weight.shape[1:]) - mean
    for channel in range(len(weight)):
        numbers = np.append(weight[channel].ravel(), bias[channel])
        numbers = numbers[numbers != 0]
        _, exponents = np.frexp(numbers)
        step = np.exp2(exponents.min() - 24)  # of the smallest number's last bit
        while (np.mod(numbers, 2 * step) == 0).all():
            step *= 2
        assert np.abs(weight[channel] * pixels).sum() + abs(bias[channel]) <= 2**24 * step


def test_quantised_graph_rounds_images_to_bytes(
    exported: Exported, quantised: Path, images: NDArray[np.float32]
) -> None:
    predictor = Predictor.open(quantised, exported.network.head.dropout_layers)
    perturbed = np.clip(images + np.float32(0.4 / 255), 0, 1)
    assert np.array_equal(predictor.predict(perturbed).logits, predictor.predict(images).logits)


def test_quantize_keeps_the_first_convolution_for_each_channel(tmp_path: Path) -> None:
    """At the border float32 pads with the mean, the quantised graph with the byte nearest to it."""
    torch.manual_seed(0)
    spec = InputSpec(channels=3, height=8, width=8, resize="pad")
    network = build_classifier(
        Architecture(classes=3, input=spec), [0.1, 0.5, 0.9], [0.1, 0.2, 0.4]
    )
    images = to_float(np.random.default_rng(0).integers(0, 256, (ROWS, 3, 8, 8), dtype=np.uint8))
    for _ in range(8):
        network.train()(torch.from_numpy(images))
    export_graphs(network, (3, 8, 8), tmp_path)
    before = first_activations(tmp_path / MODEL_FILE, images)
    quantize(tmp_path / MODEL_FILE, images, tmp_path / MODEL_FILE)
    after = first_activations(tmp_path / MODEL_FILE, images)
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    # The 27 weights of a channel have 12 bits; the 8-bit output has a step of about 0.03.
    np.testing.assert_allclose(after[inside], before[inside], atol=2e-3)
    np.testing.assert_allclose(after, before, atol=0.1)


def first_activations(path: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the output of the graph's first ReLU: [N, channels, H, W]."""
    graph = onnx.load(path)
    name = next(node.output[0] for node in graph.graph.node if node.op_type == "Relu")
    value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
    graph.graph.output.append(value)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    activations: NDArray[np.float32] = session.run([name], {"images": images})[0]
    return activations


@pytest.mark.parametrize("count", [1, 20, 33, 63])
def test_quantize_accepts_any_number_of_images(
    exported: Exported, tmp_path: Path, count: int
) -> None:
    quantize(exported.folder / MODEL_FILE, exported.images[:count], tmp_path / MODEL_FILE)
    copy_other_graphs(exported.folder, tmp_path)
    predictor = Predictor.open(tmp_path, exported.network.head.dropout_layers)
    assert np.isfinite(predictor.predict(exported.images).logits).all()


def test_quantize_refuses_a_network_without_convolutions(
    export: Export, images: NDArray[np.float32], tmp_path: Path
) -> None:
    mlp = export(Architecture(preset="mlp", classes=10, input=DIGIT))
    with pytest.raises(ExportError, match="no convolution behind its first"):
        quantize(mlp.folder / MODEL_FILE, images, tmp_path / MODEL_FILE)
    assert not list(tmp_path.iterdir())
