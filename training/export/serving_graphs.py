"""Finishes the exported graphs of a bundle: adds what the service computes behind the logits.

Every export ends with `finish_graphs`. The quantiser and the out-of-distribution score change
finished graphs. Knows no network and no training.
"""

from pathlib import Path

import onnx

from model.bundle.store import HEAD_FILE, MC_STATISTICS_FILE, MODEL_FILE
from training.export.mc_statistics_graph import add_mc_statistics, mc_statistics_model
from training.export.softmax_nodes import add_calibrated_softmax


def finish_graphs(folder: Path) -> None:
    """Add outputs behind the logits of both graphs, and write `mc_statistics.onnx`.

    folder: has the files MODEL_FILE and HEAD_FILE with an output `logits`, each the first.
    """
    model, head = (onnx.load(folder / file) for file in (MODEL_FILE, HEAD_FILE))
    classes = int(head.graph.output[0].type.tensor_type.shape.dim[-1].dim_value)
    add_calibrated_softmax(model.graph, "logits")
    add_mc_statistics(head.graph, "logits", classes)
    finished = {
        MODEL_FILE: model,
        HEAD_FILE: head,
        MC_STATISTICS_FILE: mc_statistics_model(classes),
    }
    for file, graph in finished.items():
        onnx.checker.check_model(graph, full_check=True)
        onnx.save(graph, folder / file)
