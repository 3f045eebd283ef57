from collections.abc import Iterator

import pytest
import torch
from torch import distributed, nn
from torch._C._distributed_c10d import HashStore

from training.data.shard import WHOLE, Shard
from training.distributed.synchronised_layers import SynchronisedLayers


@pytest.fixture
def group_of_one() -> Iterator[None]:
    distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def normalised(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Return the output, the gradients and the buffers of two steps."""
    x = x.clone().requires_grad_()
    for step in (1, 2):
        y = layer(x * step)
        (y**3).mean().backward()
    assert x.grad is not None
    gradients = [each.grad for each in layer.parameters() if each.grad is not None]
    return [y.detach(), x.grad, *gradients, *layer.buffers()]


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("images", [torch.randn(6, 4), 1e3 + torch.randn(5, 4, 3, 2)])
def test_synchronised_batch_norm_computes_what_torchs_does(images: torch.Tensor) -> None:
    kind = nn.BatchNorm1d if images.ndim == 2 else nn.BatchNorm2d
    expected = normalised(kind(4).double(), images.double())
    layer = kind(4).double()
    layers = SynchronisedLayers(WHOLE)
    layers.apply(layer)
    for own, torchs in zip(normalised(layer, images.double()), expected, strict=True):
        torch.testing.assert_close(own, torchs, rtol=1e-6, atol=1e-7)
    layer.eval()
    evaluated = layer(images.double())
    layers.revert(layer)
    assert torch.equal(evaluated, layer(images.double()))


def test_processes_drop_the_units_that_one_process_would() -> None:
    images = torch.rand(6, 3, 5)
    # A head receives features that are expanded over its samples.
    expanded = images[:, :1].expand(-1, 3, -1)
    for x in (images, expanded):
        torch.manual_seed(1)
        whole = nn.Dropout(0.4)(x)
        parts = []
        for shard in (Shard(0, 2), Shard(1, 2)):
            layer = nn.Dropout(0.4)
            SynchronisedLayers(shard).apply(layer)
            torch.manual_seed(1)
            parts.append(layer(x[shard.rows(len(x))]))
        torch.testing.assert_close(torch.cat(parts), whole)
    assert torch.equal(layer.eval()(images), images)
