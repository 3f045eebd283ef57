"""The gate of `--quantize`, and a run with it from training to an answer over HTTP."""

import math
from pathlib import Path

import pytest

from model.bundle.store import open_bundle
from model.inference.predictor import open_tested
from tests.service.serving import serving_models
from training import pipeline as run
from training.config import TrainingConfig
from training.data.dataset import Split
from training.export import quantization_gate as precision
from training.export.quantization_gate import refused

GOOD = {
    "accuracy": 0.93,
    "nll": 0.2,
    "ece": 0.01,
    "mutual_information": 0.04,
    "mistakes_by_entropy": 0.9,
}


@pytest.mark.parametrize(
    ("name", "allowed", "too_much"),
    [
        ("accuracy", 0.929, 0.9289),
        ("nll", 0.205, 0.2051),
        ("ece", 0.015, 0.0151),
        ("mutual_information", 0.038, 0.0379),
        ("mutual_information", 0.042, 0.0421),
        ("mistakes_by_entropy", 0.895, 0.8949),
        ("nll", 0.1, float("nan")),
    ],
)
def test_each_figure_has_its_tolerance(name: str, allowed: float, too_much: float) -> None:
    assert refused(GOOD, GOOD | {name: allowed}, 5000) == []
    (phrase,) = refused(GOOD, GOOD | {name: too_much}, 5000)
    assert phrase == f"{name} {GOOD[name]:.4f} became {too_much:.4f}"


def test_figures_that_only_one_of_them_has_are_not_compared() -> None:
    assert refused(GOOD, {name: GOOD[name] for name in GOOD if "mistakes" not in name}, 5000) == []


def test_few_images_are_too_few_to_tell() -> None:
    assert refused(GOOD, GOOD, 99) == ["99 validation images are too few to tell; 100 are needed"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainingConfig:
    folder = tmp_path_factory.mktemp("quantised")
    return TrainingConfig(
        data="digits", epochs=8, quantize=True, output=folder / "models", runs=folder / "runs"
    )


@pytest.fixture(scope="module")
def quantised(config: TrainingConfig) -> Path:
    """A bundle that passed a gate which everything passes, whatever eight epochs have taught it."""
    limits = ("ACCURACY_FALL", "LOSS_RISE", "DETECTION_FALL", "INFORMATION_SHIFT")
    with pytest.MonkeyPatch.context() as patch:
        for limit in limits:
            patch.setattr(precision, limit, math.inf)
        return run.train(config)


def test_a_quantised_bundle_says_so(quantised: Path) -> None:
    bundle = open_bundle(quantised)
    assert bundle.manifest.precision == "int8"
    figures = bundle.manifest.metrics["quantization"]
    assert figures["refusals"] == []
    assert figures["int8"]["accuracy"] >= figures["fp32"]["accuracy"] - 0.1
    assert figures["int8"] != figures["fp32"]
    assert "The convolutions compute with 8-bit integers" in bundle.card
    assert "| accuracy | " in bundle.card
    assert bundle.manifest.metrics["test"]["accuracy"] > 0.8
    open_tested(bundle)


def test_the_service_serves_it_and_says_so(quantised: Path, held_out: Split) -> None:
    """The same bytes alone and in a batch, through HTTP."""
    pixels = (held_out.images[:8, 0] / 255).tolist()
    with serving_models(quantised.parent.parent) as service:
        (model,) = service.get("/models").json()["models"]
        together, alone = (
            service.post("/uncertainty", json={"instances": rows}).json()["predictions"]
            for rows in (pixels, pixels[5:6])
        )
    assert model["precision"] == "int8"
    assert together[5] == alone[0]


def test_a_refused_graph_leaves_float32_and_a_reason(
    config: TrainingConfig,
    quantised: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The same weights, resumed, with a gate that nothing passes."""
    monkeypatch.setattr(precision, "LOSS_RISE", -1.0)
    again = open_bundle(run.train(config.model_copy(update={"resume": True})))
    assert again.path != quantised
    assert again.manifest.precision == "fp32"
    (line,) = [each.getMessage() for each in caplog.records if "int8" in each.getMessage()]
    assert line.startswith("Warning: int8 was refused and float32 kept, because of ")
    refusals = again.manifest.metrics["quantization"]["refusals"]
    named = {each.partition(" ")[0] for each in refusals}
    assert named >= {"ece", "nll", "sampled_ece", "sampled_nll"}
    assert "8-bit integers were tried and refused; float32 is served." in again.card
    open_tested(again)
