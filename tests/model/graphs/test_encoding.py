import numpy as np
import onnx
from onnx import numpy_helper

from model.graphs.encoding import Graph
from model.graphs.mc_statistics import LOGITS, alone, behind
from model.graphs.sessions import start


def test_what_is_encoded_is_what_onnx_reads() -> None:
    graph = Graph("g/")
    taken = graph.input("x", ["batch", 3])
    weights = graph.constant(np.array([[1, -2, 0.5]], np.float32))
    axes = graph.constant([-1])
    product = graph.node("Mul", taken, weights)
    graph.node("ReduceSum", product, axes, keepdims=0, name="y")
    graph.output("y", ["batch"])
    read = onnx.load_from_string(graph.model())
    onnx.checker.check_model(read, full_check=True)
    assert [node.op_type for node in read.graph.node] == ["Mul", "ReduceSum"]
    held = [numpy_helper.to_array(each).tolist() for each in read.graph.initializer]
    assert held == [[[1, -2, 0.5]], [-1]]
    (sums,) = start(graph.model(), threads=1).run(
        ["g/y"], {"g/x": np.array([[1, 2, 4], [0, 0, 300]], np.float32)}
    )
    assert sums.tolist() == [-1, 150]


def test_nodes_put_behind_a_model_are_part_of_it() -> None:
    first = Graph("first/")
    first.node("Neg", first.input("x", ["batch"]), name="y")
    first.output("y", ["batch"])
    second = Graph("second/")
    second.node("Exp", "first/y", name="z")
    second.output("z", ["batch"])
    both = first.model() + second.appended()
    onnx.checker.check_model(onnx.load_from_string(both), full_check=True)
    y, z = start(both, threads=1).run(["first/y", "second/z"], {"first/x": np.zeros(2, np.float32)})
    assert y.tolist() == [0, 0]
    assert z.tolist() == [1, 1]


def test_the_figures_are_valid_alone_and_draw_nothing() -> None:
    read = onnx.load_from_string(alone(7))
    onnx.checker.check_model(read, full_check=True)
    operators = {node.op_type for node in read.graph.node}
    assert not {name for name in operators if "Random" in name or name == "Dropout"}
    assert read.graph.input[0].name == LOGITS
    assert behind("logits", 7)
