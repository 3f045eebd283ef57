from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from model.bundle.architecture import Architecture, DropoutLayer
from model.bundle.golden import Golden
from model.bundle.store import GOLDEN_FILE, MODEL_FILE
from model.dropout import masks
from model.dropout.sampling import AdaptiveSamples, Analytic, FixedSamples, Sampling
from model.errors import BundleError, MethodError
from model.images.preprocessing import InputSpec
from model.inference.predictor import GOLDEN_TOLERANCE, Predictor
from model.npz import ArchiveError
from model.uncertainty.summary import softmax, summarise
from tests.exported import DIGIT, Export, Exported
from training.export.to_onnx import write_golden


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("preset", ["cnn", "mlp"])
def test_rows_have_the_same_bytes_alone_in_any_batch_and_with_any_threads(
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


def test_sampling_equals_the_heads_arithmetic(cnn: Exported) -> None:
    features = cnn.predictor.predict(cnn.images).features
    layer = cnn.network.head.layers[0]
    assert isinstance(layer, torch.nn.Linear)
    weights, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    (mask,) = masks.draw(5, 12, (DropoutLayer(p=0.5, width=96),))
    by_hand = (features[:, None] * mask[None]) @ weights.T + bias
    np.testing.assert_allclose(
        cnn.predictor.sample(features, FixedSamples(5, 12)), by_hand, atol=1e-5
    )


def test_a_head_run_in_pieces_gives_the_same_bytes(
    cnn: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    prediction, how = cnn.predictor.predict(cnn.images), FixedSamples(0, 64)
    whole = cnn.predictor.sample(prediction.features, how)
    monkeypatch.setattr("model.inference.predictor._HEAD_BYTES", 4 * 96 * 64 * 5)  # five rows a run
    pieces = Predictor.open(cnn.folder, cnn.network.head.dropout_layers)
    np.testing.assert_array_equal(pieces.sample(prediction.features, how), whole)
    together = cnn.predictor.uncertainty(prediction, how)
    apart = pieces.uncertainty(prediction, how)
    np.testing.assert_array_equal(apart.mean_probabilities, together.mean_probabilities)
    np.testing.assert_array_equal(apart.mutual_information, together.mutual_information)


@pytest.mark.parametrize(
    "how", [FixedSamples(3, 20, "independent"), AdaptiveSamples(3, 200), Analytic()]
)
def test_however_it_is_asked_a_row_has_the_same_bytes_alone_and_in_a_batch(
    cnn: Exported, how: Sampling
) -> None:
    prediction = cnn.predictor.predict(cnn.images)
    whole = cnn.predictor.uncertainty(prediction, how)
    for size in (1, 5, 48):
        for start in range(0, len(cnn.images), size):
            rows = slice(start, start + size)
            part = cnn.predictor.uncertainty(prediction.take(rows), how)
            for field in fields(part):
                expected = getattr(whole, field.name)[rows]
                np.testing.assert_array_equal(getattr(part, field.name), expected)


@pytest.mark.parametrize("classes", [3, 10])
@pytest.mark.parametrize("preset", ["cnn", "mlp"])
def test_with_any_number_of_samples_and_threads_a_row_has_the_same_bytes(
    export: Export, preset: str, classes: int
) -> None:
    exported = export(Architecture(preset=preset, classes=classes, input=DIGIT))
    layers = exported.network.head.dropout_layers
    other = Predictor.open(exported.folder, layers, threads=2)
    prediction = exported.predictor.predict(exported.images)
    for samples in (1, 2, 8, 63, 64, 100, 128, 256):
        how = FixedSamples(5, samples, brief=True)
        whole = exported.predictor.summary(prediction, how)
        for size in (1, 2, 3, 7, 16, 31, 40):
            rows = slice(48 - size, 48)
            part = other.summary(prediction.take(rows), how)
            np.testing.assert_array_equal(part.values, whole.values[rows])
            np.testing.assert_array_equal(part.labels, whole.labels[rows])


def test_a_brief_answer_says_the_same_but_less(cnn: Exported) -> None:
    prediction = cnn.predictor.predict(cnn.images)
    brief = cnn.predictor.summary(prediction, FixedSamples(2, 64, brief=True))
    whole = cnn.predictor.uncertainty(prediction, FixedSamples(2, 64))
    assert (whole.mutual_information_error > 0).all()
    np.testing.assert_array_equal(brief.labels, whole.labels)
    assert brief.columns().keys() == whole.columns().keys()
    for name, found in brief.columns().items():
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, whole.columns()[name], rtol=2e-7, atol=3e-7)


def test_figures_with_the_head_are_those_of_its_logits(cnn: Exported) -> None:
    prediction, how = cnn.predictor.predict(cnn.images), FixedSamples(2, 64)
    together = cnn.predictor.uncertainty(prediction, how)
    apart = summarise(cnn.predictor.sample(prediction.features, how))
    for field in fields(together):
        found, expected = getattr(together, field.name), getattr(apart, field.name)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_sampling_stops_where_the_label_is_settled(cnn: Exported) -> None:
    """The wider a network's answers lie apart, the fewer samples settle them."""
    prediction = cnn.predictor.predict(cnn.images)
    unsure = cnn.predictor.uncertainty(prediction, AdaptiveSamples(0, 100))
    used = set(unsure.samples_used.tolist())
    assert used <= {16, 32, 64, 100}
    assert (unsure.settled | (unsure.samples_used == 100)).all()
    assert not unsure.settled.all(), "fresh weights must leave some image open"
    alone = cnn.predictor.uncertainty(prediction, AdaptiveSamples(0, 9))
    assert (alone.samples_used == 9).all()


def test_an_image_is_settled_as_soon_as_its_samples_say_so(cnn: Exported) -> None:
    """What Auto returns is what its pairs give, cut where they settle."""
    prediction = cnn.predictor.predict(cnn.images)
    result = cnn.predictor.uncertainty(prediction, AdaptiveSamples(4, 64))
    pairs = cnn.predictor.sample(prediction.features, FixedSamples(4, 64, "paired"))
    for row, count in enumerate(result.samples_used):
        by_hand = softmax(pairs[row, :count]).mean(axis=0)
        np.testing.assert_allclose(result.mean_probabilities[row], by_hand, atol=1e-6)


def test_the_analytic_method_is_nearer_the_truth_than_64_independent_samples(
    cnn: Exported,
) -> None:
    prediction = cnn.predictor.predict(cnn.images)
    independent = [FixedSamples(seed, 64, "independent") for seed in range(5)]
    asked: list[Sampling] = [FixedSamples(0, 8_192), Analytic(), *independent]
    truth, integrated, *sampled = (
        cnn.predictor.uncertainty(prediction, how).mean_probabilities for how in asked
    )
    error = np.square(integrated - truth).mean()
    assert error < np.mean([np.square(each - truth).mean() for each in sampled]) / 4


def test_the_analytic_method_is_for_one_dropout_layer(cnn: Exported) -> None:
    layers = cnn.network.head.dropout_layers * 2
    predictor = Predictor.open(cnn.folder, layers)
    with pytest.raises(MethodError, match="this one has 2; use mc_dropout"):
        predictor.uncertainty(cnn.predictor.predict(cnn.images), Analytic())


def test_no_dropout_makes_every_sample_the_plain_answer(export: Export) -> None:
    exported = export(Architecture(preset="mlp", classes=10, input=DIGIT, dropout=0.0))
    prediction = exported.predictor.predict(exported.images)
    result = exported.predictor.uncertainty(prediction, FixedSamples(1, 9))
    np.testing.assert_allclose(result.mean_probabilities, prediction.probabilities, atol=1e-6)
    assert (result.mutual_information == 0).all()


def test_the_self_test_passes_and_sees_damage(cnn: Exported) -> None:
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


def test_a_folder_without_graphs_says_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(BundleError, match="cannot be loaded by ONNX Runtime"):
        Predictor.open(tmp_path_factory.mktemp("empty"), [DropoutLayer(p=0.5, width=3)])
