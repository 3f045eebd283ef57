import logging
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from model.bundle.architecture_description import ActivationName, Architecture
from model.bundle.store import GRAPH_FILES, HEAD_FILE, MODEL_FILE
from model.errors import ExportError
from model.graphs.mc_statistics import DETAIL_OUTPUTS, SUMMARY_OUTPUTS
from model.inference.predictor import Predictor
from tests.conftest import ROOT
from tests.exported import DIGIT, Export, Exported
from training.export.to_onnx import (
    PARITY_TOLERANCE,
    check_parity,
    export_graphs,
    quiet_exporter,
)
from training.network.classifier import Classifier, Head


def test_exported_graphs_have_parity_for_the_mlp(export: Export) -> None:
    exported = export(Architecture(preset="mlp", classes=10, input=DIGIT))
    assert check_parity(exported.network, exported.predictor, exported.images) <= PARITY_TOLERANCE


@pytest.mark.parametrize("activation", ["prelu", "rrelu"])
def test_exported_graphs_have_parity_with_an_activation_between_two_masks(
    tmp_path: Path, activation: ActivationName
) -> None:
    """The head is that of alexnet, with narrow layers and without convolutions before it."""
    architecture = Architecture(activation=activation, classes=10, input=DIGIT)
    torch.manual_seed(0)
    network = Classifier(torch.nn.Flatten(), Head([64, 24, 24, 10], architecture, dropout_count=2))
    export_graphs(network, (1, 8, 8), tmp_path)
    predictor = Predictor.open(tmp_path, network.head.dropout_layers)
    images = np.random.default_rng(0).random((48, 1, 8, 8), dtype=np.float32)
    assert check_parity(network, predictor, images) <= PARITY_TOLERANCE


@pytest.mark.parametrize("difference", [0.001, np.inf, np.nan])
def test_check_parity_refuses_a_network_that_differs(export: Export, difference: float) -> None:
    exported = export(Architecture(preset="mlp", classes=10, input=DIGIT, negative_slope=0.5))
    network = deepcopy(exported.network)
    layer = network.head.layers[0]
    assert isinstance(layer, torch.nn.Linear)
    with torch.no_grad():
        layer.bias.add_(difference)
    with pytest.raises(ExportError, match=f"differ from the network by {difference:.2g}"):
        check_parity(network, exported.predictor, exported.images)


def test_large_logits_may_differ_in_proportion(tmp_path: Path, export: Export) -> None:
    exported = export(Architecture(preset="mlp", classes=10, input=DIGIT))
    network = deepcopy(exported.network)
    layer = network.head.layers[-1]
    assert isinstance(layer, torch.nn.Linear)
    with torch.no_grad():
        layer.bias.fill_(3e3)
    export_graphs(network, (1, 8, 8), tmp_path)
    predictor = Predictor.open(tmp_path, network.head.dropout_layers)
    with torch.no_grad():
        layer.bias.mul_(1 + 1e-6)
    assert PARITY_TOLERANCE < check_parity(network, predictor, exported.images) < 0.01


@pytest.mark.parametrize("file", GRAPH_FILES)
def test_exported_graphs_contain_their_weights_and_no_random_operator(
    cnn: Exported, file: str
) -> None:
    graph = onnx.load(cnn.folder / file, load_external_data=False)
    onnx.checker.check_model(graph, full_check=True)
    assert not any(tensor.external_data for tensor in graph.graph.initializer)
    operators = {node.op_type for node in graph.graph.node}
    assert operators
    assert not {name for name in operators if "Dropout" in name or "Random" in name}


@pytest.mark.parametrize("file", GRAPH_FILES)
def test_exported_graphs_name_no_source_of_the_machine_that_trained_them(
    cnn: Exported, file: str
) -> None:
    content = (cnn.folder / file).read_bytes()
    for word in (str(ROOT), "site-packages", "stack_trace", "to_onnx", Classifier.__name__):
        assert word.encode() not in content


def test_exported_graphs_have_the_documented_inputs_and_outputs(cnn: Exported) -> None:
    def shapes(path: Path) -> tuple[dict[str, list[object]], dict[str, list[object]]]:
        session = onnxruntime.InferenceSession(path)
        inputs = {each.name: each.shape for each in session.get_inputs()}
        return inputs, {each.name: each.shape for each in session.get_outputs()}

    inputs, outputs = shapes(cnn.folder / MODEL_FILE)
    assert inputs == {"images": ["batch", 1, 8, 8]}
    assert outputs == {
        "logits": ["batch", 10],
        "features": ["batch", 96],
        "classification/probabilities": ["batch", 10],
        "classification/labels": ["batch"],
    }
    inputs, outputs = shapes(cnn.folder / HEAD_FILE)
    assert inputs == {"features": ["batch", 96], "mask_0": ["samples", 96]}
    assert outputs.pop("logits") == ["batch", "samples", 10]
    assert outputs.keys() == {*SUMMARY_OUTPUTS, *DETAIL_OUTPUTS}


def test_onnx_reference_evaluator_agrees_with_onnxruntime(cnn: Exported) -> None:
    from onnx.reference import ReferenceEvaluator

    answers: Any = ReferenceEvaluator(str(cnn.folder / MODEL_FILE)).run(
        None, {"images": cnn.images[:3]}
    )
    np.testing.assert_allclose(
        np.asarray(answers[0]), cnn.predictor.predict(cnn.images[:3]).logits, atol=1e-4
    )


@pytest.mark.parametrize("name", ["onnxscript", "torch.onnx"])
def test_exporter_is_quiet_for_as_long_as_it_runs(name: str) -> None:
    logger, filters = logging.getLogger(name), warnings.filters[:]
    level = logger.level
    with quiet_exporter():
        assert not logger.isEnabledFor(logging.WARNING)
        warnings.warn("of the exporter", stacklevel=1)
    with pytest.raises(ExportError), quiet_exporter():
        raise ExportError
    assert logger.level == level
    assert warnings.filters == filters
