import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.bundle.architecture_description import DropoutLayer
from model.dropout import masks

HALF = DropoutLayer(p=0.5, width=96)
seeds = st.integers(0, masks.MAX_SEED)


def kept(seed: int, samples: int, p: float, width: int) -> NDArray[np.bool_]:
    (mask,) = masks.draw(seed, samples, (DropoutLayer(p=p, width=width),))
    return mask > 0


@given(
    seed=seeds,
    samples=st.integers(1, 300),
    p=st.floats(0, 0.99),
    width=st.integers(1, 200),
)
def test_mask_values_are_zero_or_the_inverse_of_the_kept_share(
    seed: int, samples: int, p: float, width: int
) -> None:
    (mask,) = masks.draw(seed, samples, (DropoutLayer(p=p, width=width),))
    assert mask.shape == (samples, width)
    assert mask.dtype == np.float32
    assert ((mask == 0) | (mask == np.float32(1 / (1 - p)))).all()


@given(
    seed=seeds, order=st.integers(0, 9), p=st.sampled_from([0.1, 0.25, 0.5, 0.8]), width=st.just(40)
)
def test_orthogonal_masks_keep_each_unit_equally_often_to_within_one(
    seed: int, order: int, p: float, width: int
) -> None:
    counts = kept(seed, 2**order, p, width).sum(axis=0)
    exact = (1 - p) * 2**order
    assert (counts >= math.floor(exact)).all()
    assert (counts <= math.ceil(exact)).all()


@given(seed=seeds, samples=st.integers(1, 100))
def test_orthogonal_masks_are_balanced_for_any_even_number_of_samples(
    seed: int, samples: int
) -> None:
    assert (kept(seed, 2 * samples, 0.5, 30).sum(axis=0) == samples).all()


@pytest.mark.parametrize(("samples", "width"), [(8, 7), (32, 31), (128, 96)])
def test_orthogonal_masks_have_strength_2_if_the_layer_is_narrower_than_the_block(
    samples: int, width: int
) -> None:
    bits = kept(3, samples, 0.5, width).astype(np.int64)
    together = bits.T @ bits
    off_diagonal = together[~np.eye(width, dtype=bool)]
    assert (off_diagonal == samples // 4).all()


def test_orthogonal_masks_have_strength_3_if_the_layer_is_half_as_wide_as_the_block() -> None:
    bits = kept(5, 32, 0.5, 16)
    for triple in itertools.combinations(range(16), 3):
        assert bits[:, triple].all(axis=1).sum() == 32 // 8


def test_orthogonal_masks_give_logits_the_exact_mean_and_covariance_of_dropout() -> None:
    generator = np.random.default_rng(0)
    features, weights = generator.random(96), generator.normal(size=(96, 10))
    (mask,) = masks.draw(11, 128, (HALF,))
    logits = (mask * features) @ weights
    exact = (weights * features[:, None] ** 2).T @ weights  # p / (1 - p) is 1 here
    np.testing.assert_allclose(logits.mean(axis=0), features @ weights, rtol=1e-4)
    np.testing.assert_allclose(np.cov(logits.T, bias=True), exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("p", [0.2, 0.5])
@pytest.mark.parametrize("sample", [0, 13, 63])
def test_single_mask_is_a_bernoulli_draw_over_seeds(p: float, sample: int) -> None:
    draws = np.array([kept(seed, 64, p, 100)[sample] for seed in range(1_000)])
    share, count = draws.mean(), draws.size
    assert abs(share - (1 - p)) < 5 * math.sqrt(p * (1 - p) / count)
    pairs = (draws[:, :-1] & draws[:, 1:]).mean()
    assert abs(pairs - (1 - p) ** 2) < 5 * math.sqrt((1 - p) ** 2 * (1 - (1 - p) ** 2) / count)


@given(seed=seeds, samples=st.integers(1, 60), p=st.sampled_from([0.1, 0.5, 0.8]))
def test_fewer_paired_masks_are_a_prefix_of_more(seed: int, samples: int, p: float) -> None:
    layer = DropoutLayer(p=p, width=20)
    (fewer,) = masks.draw(seed, samples, (layer,), "paired")
    (more,) = masks.draw(seed, 64, (layer,), "paired")
    np.testing.assert_array_equal(more[:samples], fewer)


@given(seed=seeds)
def test_paired_masks_are_complements(seed: int) -> None:
    (mask,) = masks.draw(seed, 32, (HALF,), "paired")
    assert (mask[::2] + mask[1::2] == 2).all()


@pytest.mark.parametrize("design", ["paired", "independent"])
@pytest.mark.parametrize("p", [0.2, 0.5])
def test_paired_and_independent_masks_are_bernoulli_and_independent_of_earlier_pairs(
    design: masks.Design, p: float
) -> None:
    (mask,) = masks.draw(7, 20_000, (DropoutLayer(p=p, width=30),), design)
    drawn = mask > 0
    deviation = math.sqrt(p * (1 - p) / drawn.size)
    assert abs(drawn.mean() - (1 - p)) < 5 * deviation
    later = (drawn[:-2] & drawn[2:]).mean()
    neighbours = (drawn[:, :-1] & drawn[:, 1:]).mean()
    assert later == pytest.approx((1 - p) ** 2, abs=0.01)
    assert neighbours == pytest.approx((1 - p) ** 2, abs=0.01)


def test_masks_of_layers_blocks_and_seeds_are_independent() -> None:
    first, second = masks.draw(0, 96, (HALF, HALF))
    assert (first != second).mean() == pytest.approx(0.5, abs=0.05)
    assert (first[:32] != first[64:]).mean() == pytest.approx(0.5, abs=0.05)
    (other,) = masks.draw(1, 96, (HALF,))
    assert (first != other).mean() == pytest.approx(0.5, abs=0.05)


def test_mask_bits_never_change() -> None:
    """Recorded vectors: the same seed must give the same predictions after any upgrade."""
    rows = ["".join(str(int(bit)) for bit in row) for row in kept(0, 4, 0.5, 12)]
    assert rows == VECTORS_HALF
    rows = ["".join(str(int(bit)) for bit in row) for row in kept(2**63 - 1, 5, 0.3, 12)]
    assert rows == VECTORS_OTHER
    for design, vectors in VECTORS_DESIGN.items():
        (mask,) = masks.draw(5, 3, (DropoutLayer(p=0.5, width=12),), design)
        assert ["".join(str(int(kept > 0)) for kept in row) for row in mask] == vectors


VECTORS_HALF = ["101011111001", "011101001111", "000000100010", "110110010100"]
VECTORS_OTHER = ["000111101111", "111101011111", "011111111110", "111010010001", "111111101111"]

VECTORS_DESIGN: dict[masks.Design, list[str]] = {
    "paired": ["100011010100", "011100101011", "101011000001"],
    "independent": ["001010100110", "011101101110", "011001011001"],
}


def test_masks_without_dropout_keep_everything() -> None:
    (mask,) = masks.draw(0, 7, (DropoutLayer(p=0, width=5),))
    assert (mask == 1).all()


@pytest.mark.parametrize(("seed", "samples"), [(-1, 1), (2**63, 1), (0, 0), (0, 65_537)])
def test_draw_refuses_seeds_and_samples_out_of_range(seed: int, samples: int) -> None:
    with pytest.raises(ValueError, match="seed must be"):
        masks.draw(seed, samples, (HALF,))


def test_cached_masks_are_read_only() -> None:
    (mask,) = masks.draw(0, 8, (HALF,))
    assert masks.draw(0, 8, (HALF,))[0] is mask
    with pytest.raises(ValueError, match="read-only"):
        mask[0, 0] = 1


@pytest.mark.parametrize("order", range(1, 17))
def test_primitive_polynomials_generate_all_nonzero_elements(order: int) -> None:
    powers, logarithms = masks._field(order)
    assert sorted(powers) == list(range(1, 2**order))
    assert (logarithms[powers] == np.arange(2**order - 1)).all()


@pytest.mark.parametrize("p", [0.5, 0.3])
def test_orthogonal_masks_give_a_more_accurate_mean_than_independent_masks(p: float) -> None:
    """A head as served: 96 features, 10 classes; compared over 40 seeds with 64 samples."""
    generator = np.random.default_rng(1)
    features = np.maximum(generator.normal(size=(20, 96)), 0)
    weights = generator.normal(size=(96, 10)) * 0.3
    layer = DropoutLayer(p=p, width=96)

    def mean(mask: NDArray[np.float64]) -> NDArray[np.float64]:
        logits = np.einsum("nf,tf,fk->ntk", features, mask, weights, optimize=True)
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        shares: NDArray[np.float64] = exponentials / exponentials.sum(axis=-1, keepdims=True)
        return np.asarray(shares.mean(axis=1))

    def independent(samples: int) -> NDArray[np.float64]:
        return (generator.random((samples, 96)) >= p) / (1 - p)

    truth = mean(independent(40_000))
    errors = {"ours": 0.0, "independent": 0.0}
    for seed in range(40):
        (mask,) = masks.draw(seed, 64, (layer,))
        errors["ours"] += float(np.square(mean(mask.astype(np.float64)) - truth).mean())
        errors["independent"] += float(np.square(mean(independent(64)) - truth).mean())
    assert errors["ours"] < errors["independent"] / 3


def test_random_words_of_several_chunks_have_a_common_prefix_and_do_not_repeat() -> None:
    chunk = masks._CHUNK_WORDS
    few, many = masks._words("0/0/paired", chunk), masks._words("0/0/paired", 2 * chunk + 3)
    assert len(many) == 2 * chunk + 3
    assert (many[:chunk] == few).all()
    assert len(np.unique(many)) > 2 * chunk
