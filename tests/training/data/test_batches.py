import numpy as np
import pytest
import torch

from training.data.batches import Batches, pixel_mean_and_std
from training.data.dataset import Split
from training.data.shard import Shard


def split(count: int) -> Split:
    images = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    return Split(images, np.arange(count))


def test_batches_follow_the_order_and_drop_an_incomplete_shuffled_batch() -> None:
    order = torch.tensor([3, 1, 4, 0, 2])
    batches = Batches(split(5), 2, lambda _count: order)
    assert len(batches) == 2
    assert [labels.tolist() for _, labels in batches] == [[3, 1], [4, 0]]
    assert [images.flatten().tolist() for images, _ in Batches(split(5), 2)] == [
        [0, 1],
        [2, 3],
        [4],
    ]
    assert len(Batches(split(5), 2)) == 3
    assert len(Batches(split(3), 128, torch.arange)) == 1


@pytest.mark.parametrize("count", [2, 3])
def test_shards_of_a_batch_are_together_the_batch_of_one_process(count: int) -> None:
    def order(images: int) -> torch.Tensor:
        return torch.randperm(images, generator=torch.Generator().manual_seed(7))

    whole = [labels for _, labels in Batches(split(40), 12, order)]
    shards = [Batches(split(40), 12, order, Shard(index, count)) for index in range(count)]
    assert {len(shard) for shard in shards} == {len(whole)}
    for together, *parts in zip(whole, *shards, strict=True):
        assert torch.equal(torch.cat([labels for _, labels in parts]), together)


def test_shards_of_the_stored_order_hold_each_image_once() -> None:
    shards = [Batches(split(11), 4, shard=Shard(index, 3)) for index in range(3)]
    assert [labels.tolist() for shard in shards for _, labels in shard] == [
        *([0, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10])
    ]


def test_pixel_mean_and_std_match_numpy() -> None:
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 5, 7), dtype=np.uint8)
    means, deviations = pixel_mean_and_std(Split(images, np.zeros(9, np.int64)))
    np.testing.assert_allclose(means, (images / 255).mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(deviations, (images / 255).std(axis=(0, 2, 3)))
    black = Split(np.zeros((2, 1, 4, 4), np.uint8), np.zeros(2, np.int64))
    assert pixel_mean_and_std(black)[1][0] > 0
