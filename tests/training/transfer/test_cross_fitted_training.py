"""Training on a frozen backbone, from a folder of photographs to a bundle."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from model.bundle.architecture_description import Architecture
from model.bundle.store import open_bundle
from model.errors import SettingsError
from model.images.preprocessing import InputSpec
from training.config import TrainingConfig
from training.data.dataset import load_dataset
from training.fitting.lightning_module import prepare_backbone
from training.network.classifier import build_classifier
from training.network.pretrained_backbone import load_backbone, weights_file
from training.pipeline import train
from training.transfer.backbone_choice import choose_backbone, reason_for_scratch
from training.transfer.heads_by_fold import held_out_logits
from training.transfer.random_crops import random_views
from training.transfer.training_one_head import HeadOptions, fit_head

SPEC = InputSpec(channels=3, height=96, width=96, resize="crop")


def write_photographs(folder: Path, per_class: int) -> Path:
    """Write images of stripes and of spots, of several sizes; return the folder."""
    generator = np.random.default_rng(0)
    for name in ("stripes", "spots"):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            height, width = generator.integers(100, 140, 2)
            rows = np.arange(height)[:, None] / generator.uniform(2, 4)
            columns = np.arange(width)[None, :] / generator.uniform(2, 4)
            wave = (
                np.sin(rows + 0 * columns) if name == "stripes" else np.sin(rows) * np.sin(columns)
            )
            noise = generator.normal(0, 20, (height, width, 3))
            pixels = (128 + 100 * wave)[..., None] * generator.uniform(0.4, 1, 3) + noise
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / name / f"{number}.png")
    return folder


def config(folder: Path, path: Path, **options: object) -> TrainingConfig:
    return TrainingConfig.model_validate(
        {
            "data": f"folder:{folder}",
            "image_size": 96,
            "output": path / "models",
            "runs": path / "runs",
            "cache_dir": path / "cache",
            "backbone": "efficientnet-lite0",
            "learn": "frozen",
            **options,
        }
    )


@pytest.mark.training
def test_photographs_become_a_bundle_calibrated_by_cross_fitting(tmp_path: Path) -> None:
    options = config(write_photographs(tmp_path / "photographs", 65), tmp_path)
    bundle = open_bundle(train(options))
    manifest = bundle.manifest
    assert manifest.metrics["test"]["accuracy"] >= 0.9
    assert manifest.calibration is not None
    assert manifest.calibration.images == manifest.data["train"] == 104
    assert manifest.data["cross_fitted"]
    assert manifest.training["backbone"] == "efficientnet-lite0"
    assert manifest.training["learn"] == "frozen"
    assert manifest.metrics["validation"]["images"] == 104
    (layer,) = manifest.dropout_layers
    assert isinstance(manifest.architecture, Architecture)
    assert manifest.architecture.dropout == manifest.training["dropout"] == layer.p
    assert f"dropout {layer.p:g} in the head" in bundle.card
    assert manifest.architecture.preset is None
    assert manifest.metrics["epochs"] is manifest.training["epochs"] is None
    assert "hidden layers were not diagnosed" in bundle.card


def test_validation_folder_without_test_folder_is_the_test(tmp_path: Path) -> None:
    write_photographs(tmp_path / "photographs" / "train", 6)
    write_photographs(tmp_path / "photographs" / "val", 4)
    # Both folders draw the same first images: as duplicates those would be left out.
    options = config(tmp_path / "photographs", tmp_path, duplicates="keep")
    data = load_dataset(options)
    assert (len(data.train), len(data.test)) == (12, 8)
    assert data.validation is data.train


def test_views_depend_on_the_file_alone_and_differ(tmp_path: Path) -> None:
    file = write_photographs(tmp_path, 1) / "spots" / "0.png"
    first, second = (random_views(file, 3, SPEC, 10**6) for _ in range(2))
    assert first.shape == (3, 3, 96, 96)
    assert (first == second).all()
    assert (first[0] != first[1]).any()


@pytest.mark.parametrize("layers", [1, 2])
def test_head_learns_features_that_separate_the_classes(layers: int) -> None:
    architecture = Architecture.model_validate(
        {"classes": 2, "input": SPEC, "backbone": "efficientnet-lite0", "head_layers": layers}
    )
    head = build_classifier(architecture).head
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2
    features = torch.rand(40, 2, 1280, generator=generator)
    features[:, :, :20] += 2 * labels[:, None, None]
    losses = fit_head(head, features, labels, HeadOptions(0.5, 0.01, 3e-3), seed=0)
    assert losses[-1] < 0.2 < losses[0]
    assert len(head.dropout_layers) == layers
    logits = held_out_logits([head], features[:, 0].numpy(), np.zeros(40, np.int64))
    assert (logits.argmax(axis=1) == labels.numpy()).all()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"preset": "mlp"}, "--preset asks for it"),
        ({"colour": "grey"}, "the images are grey"),
        ({"image_size": 32}, "images of 32 pixels are too small"),
        ({"quantize": True}, "--quantize asks for it"),
    ],
)
def test_option_of_networks_from_scratch_asks_for_one(
    options: dict[str, object], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    folder = TrainingConfig.model_validate({"data": f"folder:{tmp_path}", **options})
    assert reason in (reason_for_scratch(folder) or "")
    assert choose_backbone(folder).backbone == "none"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"learn": "fine-tuned"}, "--learn fine-tuned: this training has no backbone, as the data"),
        ({"head_layers": 2}, "--head-layers 2: this training has no backbone, as the data set is"),
        (
            {"learn": "frozen", "backbone": "none"},
            "--learn frozen without a --backbone has no effect; leave one of them out",
        ),
        ({"head_layers": 2, "backbone": "none"}, "--head-layers 2 without a --backbone has no"),
    ],
)
def test_option_of_a_backbone_is_refused_without_one(
    options: dict[str, object], sentence: str
) -> None:
    with pytest.raises((SettingsError, ValueError), match=sentence):
        choose_backbone(TrainingConfig.model_validate({"data": "digits", **options}))


def test_folder_gets_the_backbone_by_default(tmp_path: Path) -> None:
    chosen = choose_backbone(TrainingConfig(data=f"folder:{tmp_path}"))
    assert chosen.backbone == "efficientnet-lite0"
    assert chosen.learn == ("fine-tuned" if torch.cuda.is_available() else "frozen")


def test_missing_weights_file_is_named(tmp_path: Path) -> None:
    options = TrainingConfig(data=f"folder:{tmp_path}", backbone=str(tmp_path / "no.pth"))
    with pytest.raises(SettingsError, match="there is no file"):
        choose_backbone(options)


@pytest.mark.parametrize(
    ("options", "need"),
    [
        ({"quantize": True}, "no --quantize"),
        ({"colour": "grey"}, "--colour rgb"),
        ({"image_size": 32}, "--image-size of 96"),
        ({"activation": "tanh"}, "--activation relu"),
        ({"preset": "mlp"}, "no --preset"),
        ({"data": "digits"}, "--data folder:PATH"),
    ],
)
def test_backbone_refuses_what_it_cannot_do(
    options: dict[str, object], need: str, tmp_path: Path
) -> None:
    given = {"data": f"folder:{tmp_path}", "backbone": "efficientnet-lite0"} | options
    with pytest.raises(ValueError, match=need):
        TrainingConfig.model_validate(given)


def test_options_without_meaning_for_a_frozen_backbone_are_refused(tmp_path: Path) -> None:
    options = config(tmp_path, tmp_path, epochs=3, max_norm=2.0)
    with pytest.raises(SettingsError, match="--epochs, --max-norm: a head on a frozen backbone"):
        choose_backbone(options)
    with pytest.raises(SettingsError, match=r"--resume: .* has no checkpoint; start without"):
        choose_backbone(config(tmp_path, tmp_path, resume=True))
    assert choose_backbone(config(tmp_path, tmp_path, class_weights="balanced")).is_frozen


def test_class_weights_move_a_head_towards_the_rare_class() -> None:
    architecture = Architecture.model_validate(
        {"classes": 2, "input": SPEC, "backbone": "efficientnet-lite0"}
    )
    labels = (torch.arange(40) >= 36).long()
    features = torch.ones(40, 1, 1280)  # alike, so that the head learns the shares of the classes
    rare = []
    for weights in (None, torch.tensor([40 / 72, 5.0])):
        torch.manual_seed(0)
        head = build_classifier(architecture).head
        fit_head(head, features, labels, HeadOptions(0.0, 0.0, 3e-3), 0, weights)
        rare.append(torch.softmax(head(features[:1, 0]), -1)[0, 1].item())
    unweighted, balanced = rare
    assert unweighted < 0.2
    assert balanced > 0.35


def test_backbone_is_read_from_safetensors(tmp_path: Path) -> None:
    loaded = torch.load(weights_file("efficientnet-lite0"), weights_only=True)
    weights = {key: value.contiguous() for key, value in loaded.items()}
    file = tmp_path / "own.safetensors"
    save_file(weights, file)
    images = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    own, published = (load_backbone(name)[0] for name in (str(file), "efficientnet-lite0"))
    with torch.no_grad():
        assert torch.equal(own(images), published(images))
    save_file({key: value for key, value in weights.items() if key != "_bn0.bias"}, file)
    with pytest.raises(SettingsError, match=r"stem\.norm\.bias"):
        load_backbone(str(file))
    file.write_bytes(b"no tensors")
    with pytest.raises(SettingsError, match="cannot be read as weights"):
        load_backbone(str(file))


def test_backbone_is_fine_tuned_after_the_head_with_its_own_statistics() -> None:
    trunk = load_backbone("efficientnet-lite0")[0].train()
    before = trunk.state_dict()["stem.norm.running_mean"].clone()
    for is_trained in (False, True):
        prepare_backbone(trunk, is_trained)
        trunk(torch.rand(2, 3, 96, 96))
        assert all(each.requires_grad == is_trained for each in trunk.parameters())
    assert torch.equal(trunk.state_dict()["stem.norm.running_mean"], before)
