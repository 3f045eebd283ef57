import torch
from hypothesis import given
from hypothesis import strategies as st

from training.data.shard import WHOLE, Shard


@given(total=st.integers(0, 200), count=st.integers(1, 9))
def test_shards_divide_the_rows_without_overlap_and_almost_equally(total: int, count: int) -> None:
    parts = [list(range(total))[Shard(index, count).rows(total)] for index in range(count)]
    assert [row for part in parts for row in part] == list(range(total))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_shards_draw_together_what_one_process_draws() -> None:
    def draw(shard: Shard, images: int) -> torch.Tensor:
        torch.manual_seed(0)
        return shard.draw(lambda count: torch.rand(4, count, 2), images, dim=1)

    parts = [draw(Shard(index, 3), 5) for index in range(3)]
    assert torch.equal(torch.cat(parts, dim=1), draw(WHOLE, 15))
