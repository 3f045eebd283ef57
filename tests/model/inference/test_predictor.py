import io
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.bundle.architecture_description import Architecture, DropoutLayer
from model.bundle.golden_outputs import Golden
from model.bundle.store import GOLDEN_FILE, MODEL_FILE, open_bundle
from model.dropout import masks
from model.dropout.sampling_methods import AdaptiveSamples, Analytic, FixedSamples, Sampling
from model.errors import BundleError, MethodError
from model.images.preprocessing import InputSpec, to_float
from model.inference.predictor import Predictor
from model.inference.predictor_loading import GOLDEN_TOLERANCE, golden_tolerance, load_predictor
from model.npz_arrays import ArchiveError
from model.uncertainty.uncertainty_measures import count_votes, softmax
from tests.exported import DIGIT, Export, Exported
from tests.sample_summaries import summarise
from training.data.dataset import Split
from training.export.to_onnx import write_golden


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("preset", ["cnn", "mlp"])
def test_predictor_gives_rows_the_same_bytes_in_any_batch_and_with_any_threads(
    export: Export, preset: str, threads: int
) -> None:
    exported = export(Architecture(preset=preset, classes=10, input=DIGIT))
    images = exported.images
    whole = exported.predictor.predict(images)
    sampled = exported.predictor.sample(whole.features, FixedSamples(3, 20))
    other = Predictor.open(exported.folder, exported.network.head.dropout_layers, threads)
    for size in (1, 2, 3, 7, 16, 31, 48):
        for start in range(0, len(images), size):
            rows = slice(start, start + size)
            part = other.predict(images[rows])
            np.testing.assert_array_equal(part.logits, whole.logits[rows])
            np.testing.assert_array_equal(part.features, whole.features[rows])
            part_sampled = other.sample(part.features, FixedSamples(3, 20))
            np.testing.assert_array_equal(part_sampled, sampled[rows])


def test_ood_scores_and_typicality_belong_to_their_rows(
    bundle_folder: Path, held_out: Split
) -> None:
    predictor = load_predictor(open_bundle(bundle_folder))
    images = to_float(held_out.images[:150])  # more than one run of the trunk
    whole = predictor.predict(images)
    assert whole.ood_scores is not None
    for rows in (slice(3, 140), np.array([100, 2, 149])):
        for part in (whole.take(rows), predictor.predict(images[rows])):
            np.testing.assert_array_equal(part.ood_scores, whole.ood_scores[rows])
            np.testing.assert_array_equal(part.typicality, whole.typicality[rows])
            uncertainty = predictor.uncertainty(part, FixedSamples(0, 8))
            np.testing.assert_array_equal(uncertainty.typicality, part.typicality)


def test_uncalibrated_graph_has_no_ood_scores_and_no_typicality(cnn: Exported) -> None:
    prediction = cnn.predictor.predict(cnn.images)
    assert not cnn.predictor.computes_ood_scores
    assert prediction.ood_scores is None
    assert np.isnan(prediction.typicality).all()


def test_sample_equals_the_arithmetic_of_the_head(cnn: Exported) -> None:
    features = cnn.predictor.predict(cnn.images).features
    layer = cnn.network.head.layers[0]
    assert isinstance(layer, torch.nn.Linear)
    weights, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    (mask,) = masks.draw(5, 12, (DropoutLayer(p=0.5, width=96),))
    by_hand = (features[:, None] * mask[None]) @ weights.T + bias
    np.testing.assert_allclose(
        cnn.predictor.sample(features, FixedSamples(5, 12)), by_hand, atol=1e-5
    )


def test_head_runs_in_chunks_give_the_same_bytes(
    cnn: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    prediction, sampling = cnn.predictor.predict(cnn.images), FixedSamples(0, 64)
    whole = cnn.predictor.sample(prediction.features, sampling)
    five_rows = 4 * 96 * 64 * 5
    monkeypatch.setattr("model.inference.head_sampler._RUN_BYTES", five_rows)
    chunked = Predictor.open(cnn.folder, cnn.network.head.dropout_layers)
    np.testing.assert_array_equal(chunked.sample(prediction.features, sampling), whole)
    together = cnn.predictor.uncertainty(prediction, sampling)
    apart = chunked.uncertainty(prediction, sampling)
    np.testing.assert_array_equal(apart.mean_probabilities, together.mean_probabilities)
    np.testing.assert_array_equal(apart.mutual_information, together.mutual_information)


@pytest.mark.parametrize(
    "sampling", [FixedSamples(3, 20, "independent"), AdaptiveSamples(3, 200), Analytic()]
)
def test_uncertainty_gives_rows_the_same_bytes_in_any_batch_with_every_method(
    cnn: Exported, sampling: Sampling
) -> None:
    prediction = cnn.predictor.predict(cnn.images)
    whole = cnn.predictor.uncertainty(prediction, sampling)
    for size in (1, 5, 48):
        for start in range(0, len(cnn.images), size):
            rows = slice(start, start + size)
            part = cnn.predictor.uncertainty(prediction.take(rows), sampling)
            for field in fields(part):
                expected = getattr(whole, field.name)[rows]
                np.testing.assert_array_equal(getattr(part, field.name), expected)


@pytest.mark.parametrize("classes", [3, 10])
@pytest.mark.parametrize("preset", ["cnn", "mlp"])
def test_summary_gives_rows_the_same_bytes_with_any_samples_and_threads(
    export: Export, preset: str, classes: int
) -> None:
    exported = export(Architecture(preset=preset, classes=classes, input=DIGIT))
    layers = exported.network.head.dropout_layers
    other = Predictor.open(exported.folder, layers, threads=2)
    prediction = exported.predictor.predict(exported.images)
    for samples in (1, 2, 8, 63, 64, 100, 128, 256):
        sampling = FixedSamples(5, samples, summary_only=True)
        whole = exported.predictor.summary(prediction, sampling)
        for size in (1, 2, 3, 7, 16, 31, 40):
            rows = slice(48 - size, 48)
            part = other.summary(prediction.take(rows), sampling)
            np.testing.assert_array_equal(part.values, whole.values[rows])
            np.testing.assert_array_equal(part.labels, whole.labels[rows])


def test_summary_agrees_with_uncertainty(cnn: Exported) -> None:
    prediction = cnn.predictor.predict(cnn.images)
    summary = cnn.predictor.summary(prediction, FixedSamples(2, 64, summary_only=True))
    whole = cnn.predictor.uncertainty(prediction, FixedSamples(2, 64))
    assert (whole.mutual_information_error > 0).all()
    np.testing.assert_array_equal(summary.labels, whole.labels)
    assert summary.columns().keys() == whole.columns().keys()
    for name, found in summary.columns().items():
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, whole.columns()[name], rtol=2e-7, atol=3e-7)


def test_uncertainty_agrees_with_the_summary_of_sampled_logits(cnn: Exported) -> None:
    prediction, sampling = cnn.predictor.predict(cnn.images), FixedSamples(2, 64)
    together = cnn.predictor.uncertainty(prediction, sampling)
    apart = summarise(cnn.predictor.sample(prediction.features, sampling))
    for field in fields(together):
        found, expected = getattr(together, field.name), getattr(apart, field.name)
        if field.name != "sample_probabilities":  # None, since nobody asked for them
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "sampling",
    [FixedSamples(3, 20), FixedSamples(3, 7), FixedSamples(3, 1), AdaptiveSamples(3, 200)],
)
def test_kept_samples_are_those_of_the_statistics(cnn: Exported, sampling: Sampling) -> None:
    """Everything else is the same whether or not the samples are kept."""
    prediction = cnn.predictor.predict(cnn.images)
    without = cnn.predictor.uncertainty(prediction, sampling)
    kept = cnn.predictor.uncertainty(prediction, _replace(sampling, keep_samples=True))
    assert not any(without.sample_probabilities)
    for row, samples in enumerate(kept.sample_probabilities):
        assert samples.shape == (10, kept.samples_used[row])
        np.testing.assert_allclose(samples.sum(axis=0), 1, atol=1e-6)
        np.testing.assert_allclose(samples.mean(axis=1), kept.mean_probabilities[row], atol=1e-6)
        np.testing.assert_allclose(samples.std(axis=1), kept.probability_std[row], atol=1e-6)
        votes = count_votes(samples)
        assert votes.sum() == kept.samples_used[row]
        share = 1 - votes[kept.labels[row]] / votes.sum()
        assert share == pytest.approx(kept.variation_ratio[row], abs=1e-6)
    for field in fields(kept):
        if field.name != "sample_probabilities":
            np.testing.assert_array_equal(getattr(kept, field.name), getattr(without, field.name))


@pytest.mark.parametrize("sampling", [FixedSamples(3, 64), AdaptiveSamples(3, 200)])
def test_kept_samples_have_the_same_bytes_in_any_batch(cnn: Exported, sampling: Sampling) -> None:
    prediction = cnn.predictor.predict(cnn.images)
    kept = _replace(sampling, keep_samples=True)
    whole = cnn.predictor.uncertainty(prediction, kept).sample_probabilities
    for start in range(0, len(cnn.images), 5):
        rows = slice(start, start + 5)
        part = cnn.predictor.uncertainty(prediction.take(rows), kept).sample_probabilities
        for found, expected in zip(part, whole[rows], strict=True):
            np.testing.assert_array_equal(found, expected)


def _replace(sampling: Sampling, *, keep_samples: bool) -> Sampling:
    if isinstance(sampling, FixedSamples):
        return sampling._replace(keep_samples=keep_samples)
    assert isinstance(sampling, AdaptiveSamples)
    return replace(sampling, keep_samples=keep_samples)


def test_adaptive_sampling_stops_where_the_label_is_decided(cnn: Exported) -> None:
    """The number of samples used is the end of a block, or the maximum."""
    prediction = cnn.predictor.predict(cnn.images)
    unsure = cnn.predictor.uncertainty(prediction, AdaptiveSamples(0, 100))
    used = set(unsure.samples_used.tolist())
    assert used <= {16, 32, 64, 100}
    assert (unsure.label_decided | (unsure.samples_used == 100)).all()
    assert not unsure.label_decided.all(), "fresh weights must leave some label undecided"
    alone = cnn.predictor.uncertainty(prediction, AdaptiveSamples(0, 9))
    assert (alone.samples_used == 9).all()


def test_adaptive_sampling_uses_a_prefix_of_the_paired_samples(cnn: Exported) -> None:
    prediction = cnn.predictor.predict(cnn.images)
    result = cnn.predictor.uncertainty(prediction, AdaptiveSamples(4, 64))
    pairs = cnn.predictor.sample(prediction.features, FixedSamples(4, 64, "paired"))
    for row, count in enumerate(result.samples_used):
        by_hand = softmax(pairs[row, :count]).mean(axis=0)
        np.testing.assert_allclose(result.mean_probabilities[row], by_hand, atol=1e-6)


def test_analytic_method_is_more_accurate_than_64_independent_samples(
    cnn: Exported,
) -> None:
    prediction = cnn.predictor.predict(cnn.images)
    independent = [FixedSamples(seed, 64, "independent") for seed in range(5)]
    samplings: list[Sampling] = [FixedSamples(0, 8_192), Analytic(), *independent]
    truth, integrated, *sampled = (
        cnn.predictor.uncertainty(prediction, sampling).mean_probabilities for sampling in samplings
    )
    error = np.square(integrated - truth).mean()
    assert error < np.mean([np.square(each - truth).mean() for each in sampled]) / 4


def test_analytic_method_refuses_several_dropout_layers(cnn: Exported) -> None:
    layers = cnn.network.head.dropout_layers * 2
    predictor = Predictor.open(cnn.folder, layers)
    with pytest.raises(MethodError, match="this one has 2; use mc_dropout"):
        predictor.uncertainty(cnn.predictor.predict(cnn.images), Analytic())


def test_samples_without_dropout_equal_the_prediction(export: Export) -> None:
    exported = export(Architecture(preset="mlp", classes=10, input=DIGIT, dropout=0.0))
    prediction = exported.predictor.predict(exported.images)
    result = exported.predictor.uncertainty(prediction, FixedSamples(1, 9))
    np.testing.assert_allclose(result.mean_probabilities, prediction.probabilities, atol=1e-6)
    assert (result.mutual_information == 0).all()


def test_self_test_passes_and_detects_damage(cnn: Exported) -> None:
    write_golden(cnn.predictor, cnn.images, cnn.folder)
    content = (cnn.folder / GOLDEN_FILE).read_bytes()
    _, channels, height, width = cnn.images.shape
    spec = InputSpec(channels=channels, height=height, width=width, resize="pad")
    golden = Golden.read(content, spec, cnn.predictor.classes)
    assert max(cnn.predictor.self_test(golden).values()) <= GOLDEN_TOLERANCE
    damaged = replace(golden, sampled_logits=golden.sampled_logits + np.float32(0.01))
    differences = cnn.predictor.self_test(damaged)
    assert differences["logits"] <= GOLDEN_TOLERANCE
    assert abs(differences["sampled logits"] - 0.01) < 1e-4
    with pytest.raises(ArchiveError):
        Golden.read((cnn.folder / MODEL_FILE).read_bytes(), spec, cnn.predictor.classes)


@pytest.mark.parametrize("name", ["logits", "sampled_logits"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_golden_outputs_that_are_not_finite_are_refused(name: str, value: float) -> None:
    """Any outputs would be within the tolerance, which grows with the largest one."""
    arrays: dict[str, Any] = {
        "images": np.zeros((1, 1, 8, 8), np.float32),
        "logits": np.zeros((1, 10), np.float32),
        "seed": np.array(0),
        "samples": np.array(2),
        "sampled_logits": np.zeros((1, 2, 10), np.float32),
    }
    arrays[name][0, ..., 3] = value
    file = io.BytesIO()
    np.savez(file, **arrays)
    with pytest.raises(ArchiveError, match="not all of its logits are finite numbers"):
        Golden.read(file.getvalue(), DIGIT, 10)


@pytest.mark.parametrize(("largest", "tolerance"), [(0.5, 1e-3), (10.0, 1e-3), (1_000.0, 0.1)])
def test_tolerance_of_the_self_test_grows_with_large_logits(
    largest: float, tolerance: float
) -> None:
    logits = np.array([[0.0, -largest]], np.float32)
    golden = Golden(np.zeros((1, 1, 8, 8), np.float32), logits, 0, 1, logits[:, np.newaxis])
    assert golden_tolerance(golden) == pytest.approx(tolerance)


def test_predictor_refuses_a_folder_without_graphs(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with pytest.raises(BundleError, match="cannot be loaded by ONNX Runtime"):
        Predictor.open(tmp_path_factory.mktemp("empty"), [DropoutLayer(p=0.5, width=3)])
