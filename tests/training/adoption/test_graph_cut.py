"""Networks of many layouts are cut in two; the parts together answer as the whole does."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import external_data_helper, helper, numpy_helper

from model.bundle.architecture_description import DropoutLayer
from model.errors import ExportError
from model.inference.predictor import Predictor
from tests.training.adoption import networks
from training.adoption.dynamic_batch import free_batch
from training.adoption.graph_cut import Cut, choose_cut, find_tail
from training.adoption.input_layout import Preprocessing, read_input
from training.adoption.network_file import read_network
from training.adoption.network_graph import NetworkGraph
from training.adoption.original_network import Original
from training.adoption.trunk_and_head import write_graphs

IMAGES = np.random.default_rng(0).random((7, 1, 8, 8), dtype=np.float32)


def parts(
    model: onnx.ModelProto,
    folder: Path,
    node: str | None = None,
    rule: Preprocessing | None = None,
) -> tuple[Cut, float]:
    """Cut a network; return the cut, and the largest difference of an answer."""
    rule = rule or Preprocessing()
    read = read_network(networks.save(model, folder))
    image = read_input(read, None, None, None)
    network = NetworkGraph(read)
    network.observe(image.convert(IMAGES[: image.batch or 2], rule))
    cut = choose_cut(find_tail(network), node)
    original = Original.start(read, image, cut.tail)
    free_batch(network)
    write_graphs(network, image, rule, cut, folder, with_statistics=False)
    predictor = Predictor.open(folder, [DropoutLayer(p=0, width=width) for width in cut.widths])
    return cut, original.check_parity(predictor, IMAGES, rule)


def network(*layers: str, opset: int = 18) -> onnx.ModelProto:
    """Return a network that ends in the named functions behind and between two dense layers."""
    net = networks.Builder(("batch", 1, 8, 8), opset)
    net.add("Flatten")
    net.random_dense(64, 32)
    for layer in layers:
        net.add(layer)
    net.random_dense(32, 10)
    return net.model()


@pytest.mark.parametrize("opset", [11, 12, 13, 17, 18, 20, 22])
def test_own_dropout_gives_place_and_probability_in_every_operator_set(
    tmp_path: Path, opset: int
) -> None:
    cut, difference = parts(networks.vgg_like(opset), tmp_path)
    assert cut.trained
    assert [each.p for each in cut.dropout] == [0.5, 0.25]
    assert cut.widths == [128, 64]
    assert difference <= 1e-4


@pytest.mark.parametrize("opset", [11, 15])
def test_softmax_at_the_end_is_taken_off(tmp_path: Path, opset: int) -> None:
    rule = Preprocessing(255.0)
    cut, difference = parts(networks.keras_like(opset), tmp_path, rule=rule)
    assert cut.tail.output_kind == "probabilities"
    assert cut.first_dense.name == "matmul_7"
    assert difference <= 1e-4


def test_dropout_stands_before_both_last_layers_of_a_network_without_any(tmp_path: Path) -> None:
    cut, difference = parts(networks.vgg_like(dropout=False), tmp_path)
    assert not cut.trained
    assert cut.widths == [128, 64]
    assert difference <= 1e-4


def test_named_layer_is_where_the_head_begins(tmp_path: Path) -> None:
    last = networks.vgg_like(dropout=False)
    name = last.graph.node[-1].name
    cut, difference = parts(last, tmp_path, name)
    assert (cut.first_dense.name, cut.widths) == (name, [64])
    assert difference <= 1e-4


@pytest.mark.parametrize("batch", [1, 4])
def test_fixed_number_of_images_becomes_any_number(tmp_path: Path, batch: int) -> None:
    _, difference = parts(networks.vgg_like(batch=batch), tmp_path)
    assert difference <= 1e-4
    given, _ = onnx.load(tmp_path / "model.onnx").graph.input
    assert given.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_reshaping_of_torchs_default_export_takes_any_number_of_images(tmp_path: Path) -> None:
    model = networks.vgg_like(opset=20, batch=1)
    (reshape,) = [node for node in model.graph.node if node.op_type == "Reshape"]
    reshape.attribute.append(helper.make_attribute("allowzero", 1))
    _, difference = parts(model, tmp_path)
    assert difference <= 1e-4


@pytest.mark.parametrize("domain", ["com.microsoft", "some.where.else"])
def test_operator_domain_that_is_imported_for_nothing_does_not_matter(
    tmp_path: Path, domain: str
) -> None:
    model = networks.vgg_like()
    model.opset_import.append(helper.make_opsetid(domain, 1))
    assert parts(model, tmp_path)[1] <= 1e-4


def test_network_of_the_third_version_of_the_format_is_read(tmp_path: Path) -> None:
    model = networks.vgg_like(opset=11)
    model.ir_version = 3
    for array in model.graph.initializer:
        value = helper.make_tensor_value_info(array.name, array.data_type, list(array.dims))
        model.graph.input.append(value)
    assert parts(model, tmp_path)[1] <= 1e-4


def test_sequence_within_a_network_is_passed_over(tmp_path: Path) -> None:
    net = networks.Builder(("batch", 1, 8, 8), 18)
    net.add("SplitToSequence", np.array([3, 5], np.int64), axis=3)
    net.add("ConcatFromSequence", axis=3)
    net.add("Flatten")
    net.random_dense(64, 10)
    assert parts(net.model(), tmp_path)[1] <= 1e-4


@pytest.mark.parametrize("pool_first", [True, False])
def test_convolution_of_one_pixel_is_a_dense_layer_before_or_behind_pooling(
    tmp_path: Path, pool_first: bool
) -> None:
    cut, difference = parts(networks.convolution_as_dense_layer(pool_first), tmp_path)
    assert cut.widths == [64]
    assert difference <= 1e-4


@pytest.mark.parametrize("function", ["Relu", "HardSwish", "Sigmoid", "Tanh", "Elu", "Softplus"])
def test_function_between_dense_layers_belongs_to_the_head(tmp_path: Path, function: str) -> None:
    cut, difference = parts(network(function), tmp_path, "gemm_1")
    assert cut.widths == [64, 32]
    assert difference <= 1e-4


def test_function_of_several_nodes_belongs_to_the_head(tmp_path: Path) -> None:
    """x * sigmoid(x), as it is exported; then a ReLU6, whose limits are scalars."""
    net = networks.Builder(("batch", 1, 8, 8), 18)
    net.add("Flatten")
    net.random_dense(64, 32)
    inner = net.value
    net.add("Sigmoid")
    net.nodes.append(helper.make_node("Mul", [inner, net.value], ["swish"], "swish"))
    net.value = "swish"
    net.add("Clip", np.array(0, np.float32), np.array(6, np.float32))
    scale, zero, one = (np.full(32, each, np.float32) for each in (1.5, 0.0, 1.0))
    net.add("BatchNormalization", scale, zero, zero, one)
    net.random_dense(32, 10)
    cut, difference = parts(net.model(), tmp_path, "gemm_1")
    assert cut.widths == [64, 32]
    assert difference <= 1e-4


@pytest.mark.parametrize("output", [(), ("LogSoftmax",)])
def test_large_answers_may_differ_in_proportion(tmp_path: Path, output: tuple[str, ...]) -> None:
    net = networks.Builder(("batch", 1, 8, 8), 18)
    net.add("Flatten")
    net.random_dense(64, 32)
    net.add("Relu")
    weight = net.random.normal(size=(32, 10)).astype(np.float32)
    net.add("Gemm", weight * np.float32(1e4), np.zeros(10, np.float32))
    for operator in output:
        net.add(operator)
    assert 0 < parts(net.model(), tmp_path)[1] < 1


def test_scaled_and_transposed_gemm_is_read_as_it_computes(tmp_path: Path) -> None:
    net = networks.Builder(("batch", 1, 8, 8), 18)
    net.add("Flatten")
    weight: NDArray[np.float32] = net.random.normal(size=(10, 64)).astype(np.float32)
    net.add("Gemm", weight, np.ones((1, 10), np.float32), transB=1, alpha=0.5, beta=3.0)
    cut, difference = parts(net.model(), tmp_path)
    assert cut.first_dense.bias is not None
    assert cut.first_dense.bias.tolist() == [3.0] * 10
    assert difference <= 1e-4


def test_weights_that_nodes_compute_from_constants_are_read(tmp_path: Path) -> None:
    net = networks.Builder(("batch", 1, 8, 8), 18)
    net.add("Flatten")
    features = net.value
    net.arrays.append(
        onnx.numpy_helper.from_array(net.random.random((10, 64)).astype(np.float32), "weight")
    )
    net.nodes.append(helper.make_node("Transpose", ["weight"], ["turned"], perm=[1, 0]))
    net.nodes.append(helper.make_node("MatMul", [features, "turned"], ["logits"], "last"))
    net.value = "logits"
    cut, difference = parts(net.model(), tmp_path)
    assert cut.first_dense.name == "last"
    assert difference <= 1e-4


def test_network_without_a_dense_layer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no dense layer .* GlobalAveragePool .*; put a dense"):
        parts(networks.without_dense_layer(), tmp_path)


def test_sigmoid_at_the_end_is_refused(tmp_path: Path) -> None:
    model = network("Relu")
    (output,) = model.graph.output
    model.graph.node.append(helper.make_node("Sigmoid", [output.name], ["scores"], "scores"))
    output.name = "scores"
    with pytest.raises(ExportError, match="ends in a sigmoid"):
        parts(model, tmp_path)


def test_labels_alone_are_refused(tmp_path: Path) -> None:
    model = network("Relu")
    (output,) = model.graph.output
    model.graph.node.append(helper.make_node("ArgMax", [output.name], ["label"], axis=1))
    del model.graph.output[:]
    value = helper.make_tensor_value_info("label", onnx.TensorProto.INT64, ["batch", 1])
    model.graph.output.append(value)
    with pytest.raises(ExportError, match=r"no output of one number a class, only label \[2, 1\]"):
        parts(model, tmp_path)


def test_one_number_an_image_is_refused_with_what_to_do(tmp_path: Path) -> None:
    net = networks.Builder(("batch", 1, 8, 8), 18)
    net.add("Flatten")
    net.random_dense(64, 1)
    net.add("Sigmoid")
    with pytest.raises(ExportError, match=r"one number an image \(.*\), .*; give it two outputs"):
        parts(net.model(("batch", 1)), tmp_path)


def test_features_beside_the_logits_are_not_taken_for_them(tmp_path: Path) -> None:
    model = network("Relu")
    value = helper.make_tensor_value_info("relu_2", onnx.TensorProto.FLOAT, ["batch", 32])
    model.graph.output.insert(0, value)
    with pytest.raises(ExportError, match=r"several outputs .* with its logits as the only one"):
        parts(model, tmp_path)


@pytest.mark.parametrize("opset", [13, 18, 21])
def test_weights_behind_a_dequantisation_are_constants(tmp_path: Path, opset: int) -> None:
    model = network("Relu", opset=opset)
    weight = np.arange(320, dtype=np.int64).astype(np.int8).reshape(32, 10)
    names = ["integers", "scale", "zero"]
    model.graph.initializer.append(numpy_helper.from_array(weight, "integers"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.01, np.float32), "scale"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), "zero"))
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", names, ["weight"]))
    model.graph.node[-1].input[1] = "weight"
    del model.graph.node[-1].attribute[:]
    read = NetworkGraph(read_network(networks.save(model, tmp_path)))
    found = read.constant(read.graph.node[-1].input[1])
    assert found is not None
    np.testing.assert_allclose(found, weight * 0.01, rtol=1e-6)


def test_quantised_network_is_refused_with_what_to_adopt(tmp_path: Path) -> None:
    model = network("Relu")
    (output,) = model.graph.output
    scale = numpy_helper.from_array(np.array(0.1, np.float32), "scale")
    zero = numpy_helper.from_array(np.array(0, np.int8), "zero")
    model.graph.initializer.extend([scale, zero])
    quantised = ["quantised", "scale", "zero"]
    model.graph.node.append(
        helper.make_node("QuantizeLinear", [output.name, "scale", "zero"], quantised[:1])
    )
    model.graph.node.append(helper.make_node("DequantizeLinear", quantised, ["dequantised"]))
    output.name = "dequantised"
    with pytest.raises(ExportError, match=r"is quantised, .*; adopt the float32 file"):
        parts(model, tmp_path)


def test_network_in_training_mode_is_refused_with_how_to_export_it(tmp_path: Path) -> None:
    net = networks.Builder(("batch", 1, 8, 8), 18)
    ones = np.ones(1, np.float32)
    net.add("BatchNormalization", ones, 0 * ones, 0 * ones, ones, training_mode=1)
    net.nodes[0].output.extend(["mean", "variance"])
    net.add("Flatten")
    net.random_dense(64, 10)
    with pytest.raises(ExportError, match=r"in training mode, .*TrainingMode\.PRESERVE"):
        parts(net.model(), tmp_path)


def test_last_layers_in_float16_are_refused_with_how_to_export_them(tmp_path: Path) -> None:
    net = networks.Builder(("batch", 1, 8, 8), 18)
    net.add("Flatten")
    net.add("Cast", to=onnx.TensorProto.FLOAT16)
    net.add("MatMul", np.ones((64, 10), np.float16))
    net.add("Cast", to=onnx.TensorProto.FLOAT)
    with pytest.raises(ExportError, match=r"in float16, .*; export it with float32 weights"):
        parts(net.model(), tmp_path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    net = networks.Builder(("batch", 1, 8, 8), 18)
    net.add("Flatten")
    net.add("Gemm", np.full((64, 10), np.nan, np.float32), np.zeros(10, np.float32))
    with pytest.raises(ExportError, match="numbers that are not finite"):
        parts(net.model(), tmp_path)


def test_operator_set_of_the_future_is_refused_with_what_to_do(tmp_path: Path) -> None:
    model = networks.vgg_like()
    model.opset_import[0].version = 99
    with pytest.raises(
        ExportError, match=r"know .* yet \(ai.onnx 99\); export it again with a lower opset"
    ):
        parts(model, tmp_path)


def test_random_operators_are_refused(tmp_path: Path) -> None:
    model = network("Relu")
    model.graph.node[0].CopyFrom(helper.make_node("RandomNormalLike", ["input"], ["flatten_0"]))
    with pytest.raises(ExportError, match="draws random numbers in RandomNormalLike"):
        parts(model, tmp_path)


def test_weights_in_another_file_are_taken_in_or_refused(tmp_path: Path) -> None:
    model = networks.vgg_like()
    external_data_helper.convert_model_to_external_data(model, location="w", size_threshold=0)
    path = tmp_path / "network.onnx"
    onnx.save(model, path)
    read = read_network(path)
    assert not any(each.HasField("data_location") for each in read.graph.initializer)
    linked = (tmp_path / "w").rename(tmp_path / "blob")
    (tmp_path / "w").symlink_to(linked)  # as the cache of a hub has it
    assert read_network(path).SerializeToString() == read.SerializeToString()
    linked.write_bytes(linked.read_bytes()[:-1])
    with pytest.raises(ExportError, match="in 'w', which is cut short; put that file"):
        read_network(path)
    (tmp_path / "w").unlink()
    with pytest.raises(ExportError, match=r"another file, 'w', .* \(No such file or directory\)"):
        read_network(path)
    path.write_bytes(path.read_bytes().replace(b"location\x12\x01w", b"location\x12\x01/"))
    with pytest.raises(ExportError, match=r"outside its folder, in '/'; export it with"):
        read_network(path)


def test_answers_that_depend_on_the_number_of_images_are_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A network for one image whose second reshaping mixes the images of a larger batch."""
    net = networks.Builder((1, 1, 8, 8), 18)
    net.add("Reshape", np.array([64], np.int64))
    net.add("Reshape", np.array([-1, 64], np.int64))
    net.add("ReduceMean", np.array([0], np.int64), keepdims=1)
    net.random_dense(64, 10)
    with pytest.raises(ExportError, match=r"several images at once .* with a dynamic number"):
        parts(net.model((1, 10)), tmp_path)
    assert not capfd.readouterr().err  # ONNX Runtime says nothing beside the sentence
