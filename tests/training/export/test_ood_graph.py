"""The score as nodes of the trunk's graph, run by ONNX Runtime."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.bundle.architecture_description import Architecture
from model.bundle.store import MODEL_FILE
from model.graphs.softmax_temperature import OUTPUTS
from model.images.preprocessing import InputSpec, to_float
from model.inference.predictor import OOD_SCORES, Predictor
from tests.exported import DIGIT
from training.export.ood_graph import add_score, read_statistics
from training.export.ood_score import OodScore, fit_ood_score
from training.export.ood_statistics import PIXELS_PER_CHANNEL, STATISTICS
from training.export.quantize import quantize
from training.export.to_onnx import export_graphs
from training.network.classifier import Classifier, build_classifier

Images = NDArray[np.float32]

COLOUR = InputSpec(channels=3, height=16, width=12, resize="pad")
CLASSES = 4
TOLERANCE = 2e-3
"""Of a score of up to 50: the graph computes with float32, and the distances are differences of
large numbers far from the training images. Below .0008 was seen. A rank among validation images
needs no more."""
ROUNDING_OPERATORS = {"Log", "Exp", "Reciprocal", "MatMul", "Softmax", "ReduceLogSumExp"}
"""Operators that were seen to round by the size of the batch, or whose results were not tested."""


@dataclass(frozen=True)
class Scored:
    """A graph with a score, the score itself, and a copy of the graph that has its statistics."""

    folder: Path
    statistics: Path
    network: Classifier
    score: OodScore
    images: Images

    def predictor(self, threads: int = 1) -> Predictor:
        return Predictor.open(self.folder, self.network.head.dropout_layers, threads)


def random_images(spec: InputSpec, count: int, seed: int) -> Images:
    """Return images of a few large blots, float32 [N, C, H, W], of the values of bytes."""
    generator = np.random.default_rng(seed)
    shape = (count, spec.channels, spec.height, spec.width)
    levels = generator.integers(0, 256, (count, spec.channels, 1, 1))
    noise = generator.integers(-60, 60, shape)
    return to_float(np.clip(levels + noise, 0, 255).astype(np.uint8))


def make_scored(
    architecture: Architecture, parent: Callable[[str], Path], *, int8: bool, count: int = 300
) -> Scored:
    """Export a network with random weights, and add a score that is fitted to random images."""
    torch.manual_seed(0)
    spec = architecture.input
    network = build_classifier(architecture)
    images = random_images(spec, count, 0)
    network.train()(torch.from_numpy(images[:32]))
    folder, copy = parent("scored"), parent("statistics") / MODEL_FILE
    export_graphs(network, (spec.channels, spec.height, spec.width), folder, with_statistics=True)
    file = folder / MODEL_FILE
    if int8:
        quantize(file, images, file)
    copy.write_bytes(file.read_bytes())
    values, logits = read_statistics(file, [images])
    labels = np.arange(count) % CLASSES
    score = fit_ood_score(values, logits, labels, PIXELS_PER_CHANNEL * spec.channels)
    add_score(file, score)
    return Scored(folder, copy, network, score, images)


KINDS = {
    "cnn": (Architecture(classes=CLASSES, input=DIGIT), False),
    "int8": (Architecture(classes=CLASSES, input=DIGIT), True),
    "mlp": (Architecture(preset="mlp", classes=CLASSES, input=DIGIT), False),
    "colour": (Architecture(classes=CLASSES, input=COLOUR), False),
    "tanh": (Architecture(activation="tanh", classes=CLASSES, input=DIGIT), False),
}


@pytest.fixture(scope="module", params=KINDS)
def scored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scored:
    architecture, int8 = KINDS[request.param]
    return make_scored(architecture, tmp_path_factory.mktemp, int8=int8)


def scores_of(predictor: Predictor, images: Images) -> NDArray[np.float32]:
    scores = predictor.predict(images).ood_scores
    assert scores is not None
    return scores


def test_graph_computes_the_fitted_score(scored: Scored) -> None:
    generator = np.random.default_rng(1)
    spread = generator.random((50, *scored.images.shape[1:]), dtype=np.float32)
    levels = np.linspace(0, 1, 11, dtype=np.float32).reshape(-1, 1, 1, 1)
    blanks = np.broadcast_to(levels, (11, *spread.shape[1:]))
    images = np.concatenate([scored.images, spread, blanks])
    found = scores_of(scored.predictor(), images)
    expected = scored.score.score(*read_statistics(scored.statistics, [images]))
    assert found.dtype == np.float32
    assert found.shape == (len(images),)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_score_leaves_the_other_outputs_as_they_were(scored: Scored) -> None:
    names = ["logits", "features"]
    before, after = (
        onnxruntime.InferenceSession(file).run(names, {"images": scored.images})
        for file in (scored.statistics, scored.folder / MODEL_FILE)
    )
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_graph_gives_scores_instead_of_statistics(scored: Scored) -> None:
    model = onnx.load(scored.folder / MODEL_FILE)
    onnx.checker.check_model(model, full_check=True)
    kept = ["logits", "features", *OUTPUTS]
    assert {each.name for each in model.graph.output} == {*kept, OOD_SCORES}
    before = onnx.load(scored.statistics)
    assert {each.name for each in before.graph.output} == {*kept, STATISTICS}
    names = [node.name for node in model.graph.node]
    assert len(names) == len(set(names))


def test_score_has_no_operator_that_may_round_by_the_size_of_the_batch(scored: Scored) -> None:
    before = {node.name for node in onnx.load(scored.statistics).graph.node}
    graph = onnx.load(scored.folder / MODEL_FILE).graph
    added = [node for node in graph.node if node.name not in before]
    arrays = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    assert len(added) > 15
    assert not {node.op_type for node in added} & ROUNDING_OPERATORS
    for node in added:
        if node.op_type.startswith("Reduce"):
            assert arrays[node.input[1]].tolist() == [-1], "a sum over another axis than the last"
        if node.op_type == "Gemm":
            assert arrays[node.input[1]].shape[1] > 1, "a product with a single column"


@given(start=st.integers(0, 249), count=st.integers(1, 50), threads=st.sampled_from([1, 2]))
def test_score_of_an_image_is_the_same_in_any_batch_with_any_threads(
    scored: Scored, start: int, count: int, threads: int
) -> None:
    predictor = predictors(scored, threads)
    batch = scored.images[start : start + count]
    together = scores_of(predictor, batch)
    for row in (0, count // 2, count - 1):
        alone = scores_of(predictors(scored, 1), batch[row : row + 1])
        assert together[row].tobytes() == alone.tobytes()


def predictors(scored: Scored, threads: int) -> Predictor:
    """Return a predictor, loaded once for each number of threads."""
    key = (scored.folder, threads)
    if key not in _PREDICTORS:
        _PREDICTORS[key] = scored.predictor(threads)
    return _PREDICTORS[key]


_PREDICTORS: dict[tuple[Path, int], Predictor] = {}


@pytest.mark.parametrize("pixel", [np.nan, np.inf, -np.inf, 1e30, -1e30, 1e6])
def test_pixels_that_no_image_has_do_not_stop_the_graph_nor_reach_other_rows(
    scored: Scored, pixel: float
) -> None:
    images = scored.images[:4].copy()
    expected = scores_of(scored.predictor(), images)
    images[1, 0, 2, 3] = pixel
    scores = scores_of(scored.predictor(), images)
    others = [0, 2, 3]
    assert scores[others].tobytes() == expected[others].tobytes()
    assert not scores[1] >= expected[1], "NaN, or less typical"


def test_score_of_wide_statistics_is_computed_from_their_principal_components(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    wide = Architecture(preset="mlp", classes=CLASSES, input=COLOUR)
    scored = make_scored(wide, tmp_path_factory.mktemp, int8=False, count=40)
    assert scored.score.projection.shape[0] > 512
    assert scored.score.sizes[0] < 40
    images = scored.images[:6]
    found = scores_of(scored.predictor(), images)
    expected = scored.score.score(*read_statistics(scored.statistics, [images]))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    assert found[2].tobytes() == scores_of(scored.predictor(), images[2:3]).tobytes()
