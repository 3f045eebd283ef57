"""Reads an ONNX classifier that somebody else exported, and brings it into one form.

Afterwards all weights are inside, constants are initializers, no dropout is drawn at random, and
the operator set is one that the score of `training.export.ood_graph` can be appended to.
"""

from pathlib import Path

import onnx
from onnx import compose, external_data_helper, helper, inliner, numpy_helper, version_converter

from model.errors import ExportError

PREFIX = "network/"
"""Begins the name of every value of the network, so that none is like one of ours."""
MIN_OPSET = 18
"""Reductions take their axes as an input from here on, as `training.export.ood_graph` writes them.
"""
_MAX_BYTES = 2**31 - 2**20
_RANDOM = ("RandomNormal", "RandomUniform", "Bernoulli", "Multinomial")


def read_network(path: Path) -> onnx.ModelProto:
    """Read and normalise a network.

    Raises:
        ExportError: it is no ONNX file, a file of its weights is missing, it draws random numbers,
            or its operators cannot be converted.
    """
    model = _load(path)
    if not model.graph.node:
        raise ExportError(f"{path} is not an ONNX network; name a file that holds one.")
    if model.functions:
        model = inliner.inline_local_functions(model)
    _remove_initializers_from_inputs(model)
    _require_evaluation_mode(model.graph, path)
    model = _with_min_opset(model, path)
    _turn_constants_into_initializers(model.graph)
    random = {node.op_type for node in model.graph.node if node.op_type.startswith(_RANDOM)}
    if random:
        raise ExportError(
            f"{path} draws random numbers in {', '.join(sorted(random))}, so its answers cannot be "
            "compared; export it in evaluation mode."
        )
    for part in (model, model.graph, *model.graph.node, *model.graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    return compose.add_prefix(model, PREFIX)


def plain_name(name: str) -> str:
    """Return the name that a node or value has in the file."""
    return name.removeprefix(PREFIX)


def _load(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise ExportError(f"{path} cannot be read ({error.strerror}); name another file.") from None
    except Exception:  # protobuf's DecodeError and others
        raise ExportError(f"{path} is not an ONNX file, or is cut short; copy it again.") from None
    for tensor in external_data_helper._get_all_tensors(model):
        if external_data_helper.uses_external_data(tensor):
            tensor.raw_data = _read_external_data(path, tensor)
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
    if model.ByteSize() > _MAX_BYTES:
        raise ExportError(f"{path} has more than 2 GiB of weights, which no bundle can hold.")
    return model


def _read_external_data(path: Path, tensor: onnx.TensorProto) -> bytes:
    """Read the bytes of a tensor from the file beside the network, which may be a link."""
    info = external_data_helper.ExternalDataInfo(tensor)
    remedy = "put that file beside it, or export it with external_data=False."
    if Path(info.location).is_absolute() or ".." in Path(info.location).parts:
        raise ExportError(
            f"{path} keeps its weights outside its folder, in {info.location!r}; export it with "
            "external_data=False."
        )
    try:
        with (path.parent / info.location).open("rb") as file:
            file.seek(info.offset or 0)
            data = file.read(-1 if info.length is None else info.length)
    except OSError as error:
        raise ExportError(
            f"{path} keeps its weights in another file, {info.location!r}, which cannot be read "
            f"({error.strerror}); {remedy}"
        ) from None
    if info.length is not None and len(data) < info.length:
        raise ExportError(
            f"{path} keeps its weights in {info.location!r}, which is cut short; {remedy}"
        )
    return data


def _require_evaluation_mode(graph: onnx.GraphProto, path: Path) -> None:
    """Refuse batch normalisation over the images that are given together."""
    for node in graph.node:
        modes = [each.i for each in node.attribute if each.name == "training_mode"]
        if node.op_type == "BatchNormalization" and any(modes):
            raise ExportError(
                f"{path} has batch normalisation in training mode, so an answer depends on the "
                "other images; export it after eval(), with the dropout modules alone in train() "
                "and training=TrainingMode.PRESERVE."
            )


def _remove_initializers_from_inputs(model: onnx.ModelProto) -> None:
    """Make initializers constants; before version 4 of the format each was an input as well."""
    graph = model.graph
    constants = {each.name for each in graph.initializer}
    inputs = [each for each in graph.input if each.name not in constants]
    del graph.input[:]
    graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 4)


def _with_min_opset(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Convert to MIN_OPSET; a newer operator set is kept."""
    opset = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 0)
    if opset < MIN_OPSET:
        try:
            model = version_converter.convert_version(model, MIN_OPSET)
        except Exception as error:  # RuntimeError and others, from C++
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            raise ExportError(
                f"{path} has operators of set {opset} that cannot be converted ({reason}); export "
                f"it again with opset_version={MIN_OPSET} or higher."
            ) from None
    needed = helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    model.ir_version = max(model.ir_version, needed)
    return model


def _turn_constants_into_initializers(graph: onnx.GraphProto) -> None:
    kept = []
    for node in graph.node:
        value = {each.name: each for each in node.attribute}.get("value")
        if node.op_type == "Constant" and value is not None:
            array = numpy_helper.to_array(value.t)
            graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
