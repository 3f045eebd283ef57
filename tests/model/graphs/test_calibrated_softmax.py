"""The appended softmax nodes: correct, and with the same bytes in any batch."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from model.graphs.calibrated_softmax import OUTPUTS, encode_nodes, temperature_input
from model.graphs.onnx_encoding import Graph
from model.graphs.sessions import Session, create_session
from model.uncertainty.uncertainty_measures import softmax

IMAGES = "network/images"
CLASSES = (2, 3, 10, 37, 1000)


def encode_identity_network(classes: int) -> bytes:
    """Encode a network whose logits are its images."""
    graph = Graph("network/")
    images = graph.input("images", ["batch", classes])
    graph.node("Identity", images, name="logits")
    graph.output("logits", ["batch", classes])
    return graph.encode_model() + encode_nodes("network/logits")


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


def test_calibrated_softmax_nodes_are_valid_onnx() -> None:
    onnx.checker.check_model(onnx.load_from_string(encode_identity_network(3)), full_check=True)
