import numpy as np
import pytest
from hypothesis import given, settings

from tests.training.selection.brute_force import information, pools, random_pool
from training.selection.batchbald import bald, choose_batch
from training.selection.joint_label_configurations import Probabilities

TOLERANCE = 1e-5
"""The products are summed in float32."""


def choose(
    pool: Probabilities, count: int, *, threads: int = 1, block_share: float = np.inf
) -> tuple[list[int], list[float]]:
    rows, gains = zip(*choose_batch(pool, count, 0, threads, block_share), strict=True)
    return list(rows), list(gains)


@settings(max_examples=25)
@given(pools)
def test_bald_is_the_information_of_one_label(pool: Probabilities) -> None:
    values = bald(pool)
    np.testing.assert_allclose(values, [information([image]) for image in pool], atol=TOLERANCE)
    assert (values >= -TOLERANCE).all()
    assert (values <= np.log(pool.shape[1]) + TOLERANCE).all()


@settings(max_examples=25)
@given(pools)
def test_each_choice_is_the_best_one_by_enumeration(pool: Probabilities) -> None:
    rows, gains = choose(pool, 3)
    for place, (row, gain) in enumerate(zip(rows, gains, strict=True)):
        before = [pool[each] for each in rows[:place]]
        known = information(before) if before else 0.0
        rest = [each for each in range(len(pool)) if each not in rows[:place]]
        by_enumeration = {each: information([*before, pool[each]]) - known for each in rest}
        assert gain == pytest.approx(by_enumeration[row], abs=TOLERANCE)
        assert gain == pytest.approx(max(by_enumeration.values()), abs=TOLERANCE)


@pytest.mark.parametrize("block_share", [0.5, np.inf])
def test_first_choice_is_that_of_bald_and_no_gain_rises(block_share: float) -> None:
    pool = random_pool(seed=3, images=200, classes=5, samples=32, sharpness=5)
    rows, gains = choose(pool, 60, block_share=block_share)
    assert rows[0] == bald(pool).argmax()
    assert gains[0] == pytest.approx(bald(pool).max())
    assert len(set(rows)) == 60
    assert gains == sorted(gains, reverse=True)
    assert min(gains) >= 0


def test_single_block_learns_nothing_more_once_its_samples_are_told_apart() -> None:
    """But blocks go on: ln 16 nats are used up by a few of these labels."""
    pool = random_pool(seed=4, images=100, classes=10, samples=16, sharpness=20)
    _, single = choose(pool, 50)
    _, blocks = choose(pool, 50, block_share=0.5)
    assert sum(single) == pytest.approx(np.log(16), abs=0.1)
    assert single[-1] < 0.01
    assert blocks[-1] > 0.2


@pytest.mark.parametrize("block_share", [0.5, np.inf])
def test_pool_of_ten_copies_gives_no_copy_but_bald_gives_them(block_share: float) -> None:
    """Networks that are sure and disagree: a label tells what the network says of its copies."""
    different = random_pool(seed=5, images=60, classes=10, samples=256, sharpness=50)
    pool = np.repeat(different, 10, axis=0)
    rows, _ = choose(pool, 6, block_share=block_share)
    assert len({row // 10 for row in rows}) == 6
    by_bald = np.argsort(-bald(pool), kind="stable")[:6]
    assert len({row // 10 for row in by_bald.tolist()}) == 1


def test_copies_are_avoided_beyond_the_block_of_their_original() -> None:
    different = random_pool(seed=6, images=60, classes=10, samples=64, sharpness=50)
    rows, _ = choose(np.repeat(different, 10, axis=0), 40, block_share=0.5)
    assert len({row // 10 for row in rows}) == 40


def test_threads_change_no_bit() -> None:
    pool = random_pool(seed=7, images=300, classes=7, samples=96, sharpness=5)
    assert choose(pool, 40, threads=1, block_share=0.5) == choose(
        pool, 40, threads=2, block_share=0.5
    )
