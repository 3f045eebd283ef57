import numpy as np
import pytest
import torch

from model import masks
from model.architecture import Architecture, DropoutLayer
from model.bundle import GOLDEN_FILE, MODEL_FILE
from model.errors import BundleError
from model.export import write_golden
from model.predictor import Predictor
from tests.model.conftest import DIGIT, Export, Exported


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("preset", ["cnn", "mlp"])
def test_rows_have_the_same_bytes_alone_in_any_batch_and_with_any_threads(
    export: Export, preset: str, threads: int
) -> None:
    exported = export(Architecture(preset=preset, classes=10, input=DIGIT))
    images = exported.images
    whole = exported.predictor.predict(images)
    sampled = exported.predictor.sample(whole.features, seed=3, samples=20)
    other = Predictor.open(exported.folder, exported.network.head.dropout_layers, threads)
    for size in (1, 2, 3, 7, 16, 31, 48):
        for start in range(0, len(images), size):
            rows = slice(start, start + size)
            part = other.predict(images[rows])
            np.testing.assert_array_equal(part.logits, whole.logits[rows])
            np.testing.assert_array_equal(part.features, whole.features[rows])
            part_sampled = other.sample(part.features, seed=3, samples=20)
            np.testing.assert_array_equal(part_sampled, sampled[rows])


def test_sampling_equals_the_heads_arithmetic(cnn: Exported) -> None:
    features = cnn.predictor.predict(cnn.images).features
    layer = cnn.network.head.layers[0]
    assert isinstance(layer, torch.nn.Linear)
    weights, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    (mask,) = masks.draw(5, 12, (DropoutLayer(p=0.5, width=96),))
    by_hand = (features[:, None] * mask[None]) @ weights.T + bias
    np.testing.assert_allclose(cnn.predictor.sample(features, 5, 12), by_hand, atol=1e-5)


def test_a_head_run_in_pieces_gives_the_same_bytes(
    cnn: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = cnn.predictor.predict(cnn.images).features
    whole = cnn.predictor.sample(features, 0, 64)
    monkeypatch.setattr("model.predictor._HEAD_BYTES", 4 * 96 * 64 * 5)  # five rows a run
    pieces = Predictor.open(cnn.folder, cnn.network.head.dropout_layers)
    np.testing.assert_array_equal(pieces.sample(features, 0, 64), whole)
    together = cnn.predictor.uncertainty(features, 0, 64)
    apart = pieces.uncertainty(features, 0, 64)
    np.testing.assert_array_equal(apart.mean_probabilities, together.mean_probabilities)
    np.testing.assert_array_equal(apart.mutual_information, together.mutual_information)


def test_no_dropout_makes_every_sample_the_plain_answer(export: Export) -> None:
    exported = export(Architecture(preset="mlp", classes=10, input=DIGIT, dropout=0.0))
    prediction = exported.predictor.predict(exported.images)
    result = exported.predictor.uncertainty(prediction.features, 1, 9)
    np.testing.assert_allclose(result.mean_probabilities, prediction.probabilities, atol=1e-6)
    assert (result.mutual_information == 0).all()


def test_the_self_test_passes_and_sees_damage(cnn: Exported) -> None:
    golden = cnn.folder / GOLDEN_FILE
    write_golden(cnn.predictor, cnn.images, cnn.folder)
    cnn.predictor.self_test(golden)
    with np.load(golden) as archive:
        content = dict(archive)
    content["sampled_logits"] = content["sampled_logits"] + 0.01
    damaged = cnn.folder / "damaged.npz"
    np.savez(damaged, **content)
    with pytest.raises(BundleError, match=r"sampled logits differ by 0\.01"):
        cnn.predictor.self_test(damaged)
    with pytest.raises(BundleError, match="self-test cannot run"):
        cnn.predictor.self_test(cnn.folder / MODEL_FILE)


def test_a_folder_without_graphs_says_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(BundleError, match="cannot be loaded by ONNX Runtime"):
        Predictor.open(tmp_path_factory.mktemp("empty"), [DropoutLayer(p=0.5, width=3)])
