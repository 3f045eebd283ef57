"""The classification behind a network: right, and the same bytes in any batch."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from model.graphs.calibrated_softmax import OUTPUTS, behind, scaling
from model.graphs.encoding import Graph
from model.graphs.sessions import Session, start
from model.uncertainty.summary import softmax

IMAGES = "network/images"
CLASSES = (2, 3, 10, 37, 1000)


def network(classes: int) -> bytes:
    """A network whose logits are its images."""
    graph = Graph("network/")
    images = graph.input("images", ["batch", classes])
    graph.node("Identity", images, name="logits")
    graph.output("logits", ["batch", classes])
    return graph.model() + behind("network/logits")


@pytest.fixture(scope="module")
def sessions() -> dict[int, Session]:
    return {classes: start(network(classes), threads=1) for classes in CLASSES}


@given(
    logits=hnp.arrays(np.float32, (4, 10), elements=st.floats(-80, 80, width=32)),
    temperature=st.floats(0.25, 8),
)
def test_it_is_the_softmax_and_the_first_of_the_highest(
    sessions: dict[int, Session], logits: np.ndarray, temperature: float
) -> None:
    probabilities, labels = sessions[10].run(OUTPUTS, {IMAGES: logits, **scaling(temperature)})
    np.testing.assert_allclose(probabilities, softmax(logits, temperature), rtol=1e-4, atol=1e-37)
    assert probabilities.dtype == np.float32
    assert (labels == probabilities.argmax(axis=1)).all()


@pytest.mark.parametrize("classes", CLASSES)
def test_an_image_has_the_same_bytes_in_any_batch(
    sessions: dict[int, Session], classes: int
) -> None:
    logits = np.random.default_rng(3).normal(0, 5, (67, classes)).astype(np.float32)
    run, feeds = sessions[classes].run, scaling(1.37)
    alone = [run(OUTPUTS, {IMAGES: row[None], **feeds}) for row in logits]
    for count in (2, 3, 7, 8, 33, 67):
        together = run(OUTPUTS, {IMAGES: logits[:count], **feeds})
        for many, ones in zip(together, zip(*alone[:count], strict=True), strict=True):
            assert many.tobytes() == np.concatenate(ones).tobytes()


def test_it_is_valid_onnx() -> None:
    onnx.checker.check_model(onnx.load_from_string(network(3)), full_check=True)
