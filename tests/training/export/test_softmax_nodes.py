"""The softmax behind the logits: correct, and with the same bytes in any batch."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from model.graphs.sessions import Session, create_session
from model.graphs.softmax_temperature import OUTPUTS, temperature_input
from model.uncertainty.uncertainty_measures import softmax
from training.export.softmax_nodes import add_calibrated_softmax

IMAGES = "images"
CLASSES = (2, 3, 10, 37, 1000)


def encode_identity_network(classes: int) -> bytes:
    """Encode a network whose logits are its images."""
    images, logits = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", classes])
        for name in (IMAGES, "logits")
    )
    identity = helper.make_node("Identity", [IMAGES], ["logits"])
    graph = helper.make_graph([identity], "network", [images], [logits])
    add_calibrated_softmax(graph, "logits")
    opset = helper.make_opsetid("", 20)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def sessions() -> dict[int, Session]:
    return {
        classes: create_session(encode_identity_network(classes), threads=1) for classes in CLASSES
    }


@given(
    logits=hnp.arrays(np.float32, (4, 10), elements=st.floats(-80, 80, width=32)),
    temperature=st.floats(0.25, 8),
)
def test_calibrated_softmax_gives_the_softmax_and_its_first_maximum(
    sessions: dict[int, Session], logits: np.ndarray, temperature: float
) -> None:
    probabilities, labels = sessions[10].run(
        OUTPUTS, {IMAGES: logits, **temperature_input(temperature)}
    )
    np.testing.assert_allclose(probabilities, softmax(logits, temperature), rtol=1e-4, atol=1e-37)
    assert probabilities.dtype == np.float32
    assert (labels == probabilities.argmax(axis=1)).all()


@pytest.mark.parametrize("classes", CLASSES)
def test_calibrated_softmax_gives_the_same_bytes_in_any_batch(
    sessions: dict[int, Session], classes: int
) -> None:
    logits = np.random.default_rng(3).normal(0, 5, (67, classes)).astype(np.float32)
    run, feeds = sessions[classes].run, temperature_input(1.37)
    alone = [run(OUTPUTS, {IMAGES: row[None], **feeds}) for row in logits]
    for count in (2, 3, 7, 8, 33, 67):
        together = run(OUTPUTS, {IMAGES: logits[:count], **feeds})
        for many, ones in zip(together, zip(*alone[:count], strict=True), strict=True):
            assert many.tobytes() == np.concatenate(ones).tobytes()


def test_calibrated_softmax_divides_by_1_where_no_temperature_is_fed(
    sessions: dict[int, Session],
) -> None:
    logits = np.random.default_rng(3).normal(0, 5, (4, 10)).astype(np.float32)
    alone = sessions[10].run(OUTPUTS, {IMAGES: logits})
    fed = sessions[10].run(OUTPUTS, {IMAGES: logits, **temperature_input(1.0)})
    for one, other in zip(alone, fed, strict=True):
        np.testing.assert_array_equal(one, other)
