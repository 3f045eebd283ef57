"""Termination of an ONNX Runtime run from another thread."""

import threading

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from model.graphs.sessions import create_session, run_options

_OPSET, _IR_VERSION = 17, 8


def endless_graph() -> bytes:
    """Encode a graph that adds an input `step`, int64 [1], to `count` in an endless loop."""
    true = helper.make_tensor("true", TensorProto.BOOL, [], [True])
    resume = helper.make_node("Identity", ["go_on_in"], ["go_on_out"])
    add = helper.make_node("Add", ["count_in", "step"], ["count_out"])
    body = helper.make_graph(
        [resume, add],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("count_in", TensorProto.INT64, [1]),
        ],
        [
            helper.make_tensor_value_info("go_on_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("count_out", TensorProto.INT64, [1]),
        ],
    )
    loop = helper.make_node("Loop", ["", "true", "step"], ["count"], body=body)
    graph = helper.make_graph(
        [loop],
        "endless",
        [helper.make_tensor_value_info("step", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("count", TensorProto.INT64, [1])],
        [true],
    )
    opset = helper.make_opsetid("", _OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def test_run_options_terminate_an_endless_run_from_another_thread() -> None:
    session, options = create_session(endless_graph(), threads=1), run_options()
    ending = threading.Timer(0, setattr, (options, "terminate", True))
    ending.start()
    with pytest.raises(Exception, match="terminate flag"):
        session.run(["count"], {"step": np.ones(1, np.int64)}, options)
    ending.join()


def test_run_options_terminate_every_new_run_until_reset() -> None:
    session, options = create_session(_identity(), threads=1), run_options()
    options.terminate = True
    with pytest.raises(Exception, match="terminate flag"):
        session.run(["y"], {"x": np.ones(1, np.float32)}, options)
    options.terminate = False
    assert session.run(["y"], {"x": np.ones(1, np.float32)}, options)[0] == [1]


def _identity() -> bytes:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y"))
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "identity", [x], [y])
    opset = helper.make_opsetid("", _OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)
    return bytes(model.SerializeToString())
