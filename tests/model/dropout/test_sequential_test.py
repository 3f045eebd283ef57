import numpy as np
from numpy.typing import NDArray

from model.dropout.sequential_test import CONFIDENCE, settled

Probabilities = NDArray[np.float64]


def test_clear_leads_settle_in_sixteen_samples() -> None:
    clear = np.tile([0.99, 0.005, 0.005], (5, 16, 1))
    assert settled(clear, np.zeros(5, np.int64)).all()


def test_equal_classes_never_settle() -> None:
    even = np.tile([0.4, 0.4, 0.2], (3, 1024, 1))
    assert not settled(even, np.zeros(3, np.int64)).any()


def test_a_label_that_nobody_expected_needs_more() -> None:
    clear = np.tile([0.99, 0.005, 0.005], (1, 16, 1))
    assert not settled(clear, np.ones(1, np.int64)).any()
    assert settled(np.tile(clear, (1, 2, 1)), np.ones(1, np.int64)).all()


def test_the_odd_sample_is_left_out() -> None:
    clear = np.tile([0.99, 0.005, 0.005], (1, 16, 1))
    without = np.concatenate([clear, [[[0.0, 1.0, 0.0]]]], axis=1)
    assert settled(without, np.zeros(1, np.int64)).all()
    assert not settled(clear[:, :1], np.zeros(1, np.int64)).any()


def test_looking_again_and_again_is_wrong_no_more_often_than_stated() -> None:
    """Two classes with one mean, so that every label that is settled is settled wrongly.

    Each sample gives all to one of them; a look after every second sample, up to 200.
    """
    generator = np.random.default_rng(4)
    runs = 4_000
    first = generator.integers(0, 2, size=(runs, 200)).astype(np.float64)
    samples: Probabilities = np.stack([first, 1 - first], axis=-1)
    stopped = np.zeros(runs, dtype=np.bool_)
    for count in range(2, 201, 2):
        stopped |= settled(samples[:, :count], np.zeros(runs, np.int64))
    allowed = 1 - CONFIDENCE
    deviation = np.sqrt(allowed * CONFIDENCE / runs)
    assert stopped.mean() <= allowed + 3 * deviation
    assert stopped.any(), "the test must be able to see a wrong label"
