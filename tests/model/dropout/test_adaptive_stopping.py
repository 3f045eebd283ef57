import numpy as np
from numpy.typing import NDArray

from model.dropout.adaptive_stopping import CONFIDENCE, label_is_decided

Probabilities = NDArray[np.float64]


def test_sequential_test_decides_clear_leads_in_sixteen_samples() -> None:
    clear = np.tile([0.99, 0.005, 0.005], (5, 16, 1))
    assert label_is_decided(clear, np.zeros(5, np.int64)).all()


def test_sequential_test_never_decides_equal_classes() -> None:
    even = np.tile([0.4, 0.4, 0.2], (3, 1024, 1))
    assert not label_is_decided(even, np.zeros(3, np.int64)).any()


def test_sequential_test_needs_more_samples_for_an_unexpected_label() -> None:
    clear = np.tile([0.99, 0.005, 0.005], (1, 16, 1))
    assert not label_is_decided(clear, np.ones(1, np.int64)).any()
    assert label_is_decided(np.tile(clear, (1, 2, 1)), np.ones(1, np.int64)).all()


def test_sequential_test_leaves_out_the_odd_sample() -> None:
    clear = np.tile([0.99, 0.005, 0.005], (1, 16, 1))
    with_odd_sample = np.concatenate([clear, [[[0.0, 1.0, 0.0]]]], axis=1)
    assert label_is_decided(with_odd_sample, np.zeros(1, np.int64)).all()
    assert not label_is_decided(clear[:, :1], np.zeros(1, np.int64)).any()


def test_sequential_test_keeps_its_error_rate_under_repeated_checks() -> None:
    """Two classes have the same mean, so every decided label is wrong.

    Each sample gives probability 1 to one of them. The test runs after every second sample, up to
    200.
    """
    generator = np.random.default_rng(4)
    runs = 4_000
    first = generator.integers(0, 2, size=(runs, 200)).astype(np.float64)
    samples: Probabilities = np.stack([first, 1 - first], axis=-1)
    decided = np.zeros(runs, dtype=np.bool_)
    for count in range(2, 201, 2):
        decided |= label_is_decided(samples[:, :count], np.zeros(runs, np.int64))
    allowed = 1 - CONFIDENCE
    deviation = np.sqrt(allowed * CONFIDENCE / runs)
    assert decided.mean() <= allowed + 3 * deviation
    assert decided.any(), "the test must be able to see a wrong label"
