"""Networks of ONNX files as frozen backbones, from the file to a bundle."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime import InferenceSession

from model.bundle.architecture_description import Architecture
from model.bundle.store import open_bundle
from model.errors import ExportError
from model.images.preprocessing import InputSpec
from model.inference.predictor_loading import load_predictor
from tests.training.adoption import networks
from tests.training.transfer.test_cross_fitted_training import write_photographs
from training.__main__ import main
from training.adoption.preprocessing_choice import possible_rules
from training.config import TrainingConfig
from training.transfer.backbone_choice import choose_backbone
from training.transfer.onnx_backbone import OnnxBackbone
from training.transfer.onnx_preprocessing_choice import choose_pixel_rule
from training.transfer.random_crops import random_views

FEATURES = 32
SIZE = 64


def photograph_network(batch: int | str = "batch", classifier: bool = True) -> networks.Builder:
    """Return a random network on pixels of mean 0.5 and deviation 0.5, with five classes."""
    net = networks.Builder((batch, 3, SIZE, SIZE), 18)
    net.convolution(3, 16)
    net.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    net.convolution(16, FEATURES)
    net.add("GlobalAveragePool")
    rows = batch if isinstance(batch, int) else -1
    net.add("Reshape", np.array([rows, FEATURES], np.int64))
    if classifier:
        net.random_dense(FEATURES, 5)
    return net


def read(model: onnx.ModelProto, folder: Path, **options: object) -> OnnxBackbone:
    """Read a network as the command does."""
    given = {"data": f"folder:{folder}", "backbone": str(networks.save(model, folder))} | options
    return OnnxBackbone.read(choose_backbone(TrainingConfig.model_validate(given)))


def file_outputs(
    model: onnx.ModelProto, value: str, images: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return a value inside a network, as ONNX Runtime computes it without our code."""
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, None))
    outputs: NDArray[np.float32] = InferenceSession(model.SerializeToString()).run(
        None, {"input": images}
    )[0]
    return outputs


@pytest.mark.training
def test_bundle_of_an_onnx_file_has_its_features_and_a_trained_head(
    tmp_path: Path,
) -> None:
    net = photograph_network(batch=1)
    features = net.nodes[-1].input[0]
    model = net.model((1, 5))
    file = networks.save(model, tmp_path)
    options = {
        "data": f"folder:{write_photographs(tmp_path / 'photographs', 65)}",
        "backbone": file,
        "mean": 0.5,
        "std": 0.5,
        "augmentation": "none",
        "dropout": 0.1,
        "weight-decay": 0.01,
        "name": "own",
    }
    places = {each: tmp_path / each for each in ("output", "runs", "cache-dir")}
    assert main([f"--{key}={value}" for key, value in (options | places).items()]) == 0
    bundle = open_bundle(tmp_path / "output" / "own" / "1")
    manifest = bundle.manifest
    assert isinstance(manifest.architecture, Architecture)
    origin = manifest.architecture.backbone_file
    assert origin is not None
    assert (origin.file, origin.features) == ("network.onnx", FEATURES)
    assert origin.preprocessing == "((0..1) - (0.5)) / (0.5)"
    assert manifest.calibration is not None
    assert manifest.metrics["parity"] <= 1e-4
    assert manifest.metrics["validation"]["accuracy"] >= 0.9
    assert "Network: features of network.onnx" in bundle.card
    images = np.random.default_rng(0).random((8, 3, SIZE, SIZE), np.float32)
    own = [file_outputs(model, features, 2 * image[np.newaxis] - 1) for image in images]
    served = load_predictor(bundle).predict(images).features
    # The bundle's features are the file's, each unit shifted and scaled.
    for unit, mine in zip(np.concatenate(own).T, served.T, strict=True):
        if np.ptp(unit) > 1e-3:
            assert np.corrcoef(unit, mine)[0, 1] > 0.9999


def with_sigmoid() -> onnx.ModelProto:
    net = photograph_network()
    net.add("Sigmoid")
    return net.model()


def feature_map() -> onnx.ModelProto:
    net = networks.Builder(("batch", 3, SIZE, SIZE), 18)
    net.convolution(3, 16)
    return net.model(("batch", 16, SIZE, SIZE))


def feature_map_of_keras() -> onnx.ModelProto:
    net = networks.Builder(("batch", SIZE, SIZE, 3), 18)
    net.add("Transpose", perm=[0, 3, 1, 2])
    net.convolution(3, 16)
    net.add("Transpose", perm=[0, 2, 3, 1])
    return net.model(("batch", SIZE, SIZE, 16))


def embedding() -> onnx.ModelProto:
    net = photograph_network(classifier=False)
    net.random_dense(FEATURES, 24)
    net.add("Relu")
    return net.model(("batch", 24))


@pytest.mark.parametrize(
    ("model", "width", "is_cut"),
    [
        (photograph_network().model(("batch", 5)), FEATURES, True),
        (with_sigmoid(), FEATURES, True),
        (networks.vgg_like(), 64, True),
        (networks.vgg_like(opset=11, batch=2), 64, True),
        (networks.keras_like(), 256, True),
        (networks.convolution_as_dense_layer(pool_first=False), 64, True),
        (photograph_network(classifier=False).model(("batch", FEATURES)), FEATURES, False),
        (embedding(), 24, False),
        (feature_map(), 16, False),
        (feature_map_of_keras(), 16, False),
    ],
)
def test_last_dense_layer_is_cut_off_where_there_is_one(
    tmp_path: Path, model: onnx.ModelProto, width: int, is_cut: bool
) -> None:
    backbone = read(model, tmp_path, pixel_maximum=1)
    assert (backbone.cut.width, backbone.cut.classifier is not None) == (width, is_cut)
    spec = backbone.spec
    images = np.random.default_rng(0).random(
        (3, spec.channels, spec.height, spec.width), np.float32
    )
    features = backbone.features(images)
    assert features.shape == (3, width)
    assert features.std(axis=0).max() > 0


def tokens() -> onnx.ModelProto:
    net = networks.Builder(("batch", 3, SIZE, SIZE), 18)
    net.convolution(3, 16)
    net.add("Reshape", np.array([0, 16, -1], np.int64))
    return net.model(("batch", 16, SIZE * SIZE))


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        (tokens(), {}, "is neither one vector an image nor a feature map"),
        (feature_map(), {"image_size": 96}, "of 64 pixels, not of 96; leave --image-size out"),
        (feature_map(), {"colour": "grey"}, "takes images of 3 channels"),
        (
            networks.keras_like(),
            {"mean": ".1,.2,.3", "std": 1},
            "takes images of 1 channel, but --mean has 3 numbers; give one",
        ),
        (
            networks.of_bytes(feature_map()),
            {"pixel_maximum": 1},
            "whole numbers 0..255; leave --mean, --std and --pixel-maximum out",
        ),
    ],
)
def test_network_that_gives_no_features_is_refused_in_one_sentence(
    tmp_path: Path, model: onnx.ModelProto, options: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ExportError, match=sentence):
        read(model, tmp_path, **options)


def test_order_of_colours_alone_states_no_rule(tmp_path: Path) -> None:
    backbone = read(feature_map(), tmp_path, colour="bgr")
    assert backbone.rule is None
    assert all(rule.bgr for rule in possible_rules(backbone.image, bgr=True).values())


def test_features_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    net = photograph_network(classifier=False)
    net.add("Mul", np.zeros(1, np.float32))
    net.add("Log")
    backbone = read(net.model(("batch", FEATURES)), tmp_path, pixel_maximum=1)
    with pytest.raises(ExportError, match="no finite numbers; name its preprocessing"):
        backbone.features(np.zeros((1, 3, SIZE, SIZE), np.float32))
    unstated = read(net.model(("batch", FEATURES)), tmp_path)
    black = np.zeros((4, 3, SIZE, SIZE), np.uint8)
    rules = possible_rules(unstated.image, bgr=False)
    with pytest.raises(ExportError, match="for any usual rule of pixels"):
        choose_pixel_rule(unstated, rules, black, lambda features, rows: np.zeros(len(rows)))


@pytest.mark.parametrize(
    ("offset", "sentence"),
    [
        (np.ones((2, FEATURES), np.float32), "does not run on 3 images at once"),
        (None, "gives other features for 3 images at once than for 2"),
    ],
)
def test_network_that_depends_on_the_number_of_its_images_is_refused(
    tmp_path: Path, offset: NDArray[np.float32] | None, sentence: str
) -> None:
    net = photograph_network(batch=2, classifier=False)
    if offset is not None:
        net.add("Add", offset)
    else:
        net.add("LpNormalization", axis=0)
    backbone = read(net.model((2, FEATURES)), tmp_path, pixel_maximum=1)
    images = np.random.default_rng(0).random((3, 3, SIZE, SIZE), np.float32)
    with pytest.raises(ExportError, match=sentence):
        backbone.check_batches(images)


def test_file_that_is_no_network_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "broken.onnx"
    file.write_bytes(b"no network")
    places = [f"--{each}={tmp_path / each}" for each in ("output", "runs")]
    assert main([f"--data=folder:{tmp_path}", f"--backbone={file}", *places]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"--backbone: {file} is not an ONNX file")
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"backbone": "a.onnx", "learn": "fine-tuned"}, "an ONNX file is not trained"),
        (
            {"backbone": "efficientnet-lite0", "mean": [0.5], "std": [1.0]},
            "--mean, --std: only a --backbone",
        ),
        ({"colour": "bgr"}, "--colour bgr: only a --backbone that is an .onnx file"),
        ({"backbone": "a.onnx", "std": [0.0]}, "a deviation must be above 0"),
        ({"backbone": "a.onnx", "mean": "nan", "std": 1}, "should be a finite number"),
    ],
)
def test_option_that_does_not_suit_the_backbone_is_refused(
    tmp_path: Path, options: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        TrainingConfig.model_validate({"data": f"folder:{tmp_path}"} | options)


def test_onnx_file_is_frozen_also_where_there_is_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    file = networks.save(feature_map(), tmp_path)
    config = TrainingConfig(data=f"folder:{tmp_path}", backbone=str(file))
    assert choose_backbone(config).is_frozen


def test_rule_is_the_one_of_which_the_own_classifier_is_surest_among_equals(
    tmp_path: Path,
) -> None:
    """The fake losses let the heads refuse the rules up to 255, and call the others equal."""
    net = networks.Builder(("batch", 3, SIZE, SIZE), 18)
    net.add("GlobalAveragePool")
    net.add("Flatten")
    net.add("Gemm", np.array([[40, 0], [0, 0], [0, 0]], np.float32), np.array([24, 0], np.float32))
    backbone = read(net.model(("batch", 2)), tmp_path)

    def losses(features: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float64]:
        noise = np.random.default_rng(abs(int(features.sum()))).normal(0, 0.01, len(rows))
        return noise + (9.0 if np.abs(features).max() > 3 else 0.1)

    grey = np.full((40, 3, SIZE, SIZE), 0.5 * 255, np.uint8)
    # Of grey, 0..1 gives logits of 44 and 0; -1..1 24 and 0; ImageNet's about 27 and 0.
    chosen = choose_pixel_rule(
        backbone, possible_rules(backbone.image, bgr=False), grey, losses
    ).rule
    assert chosen is not None
    assert chosen.describe() == "0..1"


def test_views_of_a_grey_backbone_are_grey(tmp_path: Path) -> None:
    file = write_photographs(tmp_path, 1) / "spots" / "0.png"
    spec = InputSpec(channels=1, height=24, width=32, resize="crop")
    assert random_views(file, 2, spec, 10**6).shape == (2, 1, 24, 32)
