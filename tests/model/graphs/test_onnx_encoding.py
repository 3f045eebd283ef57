import numpy as np
import onnx
from onnx import numpy_helper

from model.graphs.mc_statistics import LOGITS, encode_model, encode_nodes
from model.graphs.onnx_encoding import Graph
from model.graphs.sessions import create_session


def test_encoded_graph_is_read_by_onnx() -> None:
    graph = Graph("g/")
    x = graph.input("x", ["batch", 3])
    weights = graph.constant(np.array([[1, -2, 0.5]], np.float32))
    axes = graph.constant([-1])
    product = graph.node("Mul", x, weights)
    graph.node("ReduceSum", product, axes, keepdims=0, name="y")
    graph.output("y", ["batch"])
    loaded = onnx.load_from_string(graph.encode_model())
    onnx.checker.check_model(loaded, full_check=True)
    assert [node.op_type for node in loaded.graph.node] == ["Mul", "ReduceSum"]
    constants = [numpy_helper.to_array(tensor).tolist() for tensor in loaded.graph.initializer]
    assert constants == [[[1, -2, 0.5]], [-1]]
    (sums,) = create_session(graph.encode_model(), threads=1).run(
        ["g/y"], {"g/x": np.array([[1, 2, 4], [0, 0, 300]], np.float32)}
    )
    assert sums.tolist() == [-1, 150]


def test_nodes_appended_to_a_model_become_part_of_it() -> None:
    first = Graph("first/")
    first.node("Neg", first.input("x", ["batch"]), name="y")
    first.output("y", ["batch"])
    second = Graph("second/")
    second.node("Exp", "first/y", name="z")
    second.output("z", ["batch"])
    both = first.encode_model() + second.encode_nodes()
    onnx.checker.check_model(onnx.load_from_string(both), full_check=True)
    y, z = create_session(both, threads=1).run(
        ["first/y", "second/z"], {"first/x": np.zeros(2, np.float32)}
    )
    assert y.tolist() == [0, 0]
    assert z.tolist() == [1, 1]


def test_mc_statistics_model_is_valid_and_draws_nothing() -> None:
    loaded = onnx.load_from_string(encode_model(7))
    onnx.checker.check_model(loaded, full_check=True)
    operators = {node.op_type for node in loaded.graph.node}
    assert not {name for name in operators if "Random" in name or name == "Dropout"}
    assert loaded.graph.input[0].name == LOGITS
    assert encode_nodes("logits", 7)
