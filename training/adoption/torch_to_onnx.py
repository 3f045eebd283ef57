"""Exports a torch module to ONNX with its dropout modules kept, as `training.adoption` reads it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from model.errors import ExportError
from training.adoption.network_file import read_network
from training.export.to_onnx import quiet_exporter

_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class _KeptDropout(nn.Module):
    """Stands for a dropout module, which the exporter would leave out in evaluation mode."""

    p: Tensor
    in_training: Tensor

    def __init__(self, p: float) -> None:
        super().__init__()
        self.register_buffer("p", torch.tensor(p), persistent=False)
        # In training mode, since the exporter removes dropout that does nothing.
        self.register_buffer("in_training", torch.tensor(True), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """Return values of the same shape; in the exported graph, of a Dropout node."""
        kept: Tensor = torch.onnx.ops.symbolic(
            "Dropout",
            (values, self.p, self.in_training),
            dtype=values.dtype,
            shape=values.shape,
            version=18,
        )
        return kept


def export_module(module: nn.Module, example: Tensor) -> onnx.ModelProto:
    """Export a module in evaluation mode, for any number of images, with its dropout modules.

    Raises:
        ExportError: torch cannot export it.
    """
    training = module.training
    batch = torch.export.Dim("batch")
    images = example.detach().cpu().float()
    if len(images) < 2:  # torch.export would specialise on a batch of 1
        images = images.repeat(2, 1, 1, 1)
    with tempfile.TemporaryDirectory() as folder, _dropout_kept(module.eval()):
        path = Path(folder) / "module.onnx"
        try:
            _export(module, images, path, batch)
        except Exception as error:  # torch raises many kinds, with pages of text
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            raise ExportError(
                f"torch cannot export {type(module).__name__} ({reason}); export it to a file "
                "yourself, and adopt that."
            ) from None
        finally:
            module.train(training)
        return read_network(path)


def _export(module: nn.Module, images: Tensor, path: Path, batch: object) -> None:
    with quiet_exporter():
        torch.onnx.export(
            module,
            (images,),
            path,
            dynamic_shapes=({0: batch},),
            external_data=False,
            verbose=False,
            dynamo=True,
        )


@contextmanager
def _dropout_kept(module: nn.Module) -> Iterator[None]:
    """Replace the dropout modules for as long as the block runs."""
    replaced = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if isinstance(child, _DROPOUT)
    ]
    for parent, name, child in replaced:
        setattr(parent, name, _KeptDropout(child.p))
    try:
        yield
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)
