"""The gate of `--quantize`, and a quantised bundle from training to a response over HTTP."""

import math
from pathlib import Path

import pytest

from model.bundle.store import open_bundle
from model.inference.predictor_loading import load_predictor
from tests.service.serving import serving_models
from training import pipeline
from training.config import TrainingConfig
from training.data.dataset import Split
from training.evaluation.metrics_schema import PrecisionMetric, PrecisionMetrics
from training.export import quantization_gate
from training.export.quantization_gate import refusal_reasons

FP32: PrecisionMetrics = {
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
def test_refusal_reasons_apply_the_tolerance_of_each_metric(
    name: PrecisionMetric, allowed: float, too_much: float
) -> None:
    assert refusal_reasons(FP32, FP32 | {name: allowed}, 5000) == []
    (phrase,) = refusal_reasons(FP32, FP32 | {name: too_much}, 5000)
    assert phrase == f"{name} {FP32[name]:.4f} became {too_much:.4f}"


def test_refusal_reasons_compare_only_metrics_of_both_graphs() -> None:
    int8: PrecisionMetrics = {name: FP32[name] for name in FP32 if "mistakes" not in name}
    assert refusal_reasons(FP32, int8, 5000) == []


def test_refusal_reasons_include_too_few_images() -> None:
    assert refusal_reasons(FP32, FP32, 99) == [
        "99 validation images are too few to tell; 100 are needed"
    ]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainingConfig:
    folder = tmp_path_factory.mktemp("quantised")
    return TrainingConfig(
        data="digits", epochs=8, quantize=True, output=folder / "models", runs=folder / "runs"
    )


@pytest.fixture(scope="module")
def quantised(config: TrainingConfig) -> Path:
    """Train a bundle with infinite tolerances, so that int8 is accepted after only eight epochs."""
    limits = (
        "MAX_ACCURACY_DROP",
        "MAX_LOSS_INCREASE",
        "MAX_DETECTION_DROP",
        "MAX_INFORMATION_SHIFT",
    )
    with pytest.MonkeyPatch.context() as patch:
        for limit in limits:
            patch.setattr(quantization_gate, limit, math.inf)
        return pipeline.train(config)


@pytest.mark.training
def test_quantised_bundle_records_its_precision(quantised: Path) -> None:
    bundle = open_bundle(quantised)
    assert bundle.manifest.precision == "int8"
    metrics = bundle.manifest.metrics["quantization"]
    assert metrics["refusals"] == []
    assert metrics["int8"]["accuracy"] >= metrics["fp32"]["accuracy"] - 0.1
    assert metrics["int8"] != metrics["fp32"]
    assert "The convolutions compute with 8-bit integers" in bundle.card
    assert "| accuracy | " in bundle.card
    assert bundle.manifest.metrics["test"]["accuracy"] > 0.8
    load_predictor(bundle)


@pytest.mark.training
def test_service_serves_a_quantised_bundle(quantised: Path, held_out: Split) -> None:
    """Its predictions are the same alone and in a batch, over HTTP."""
    pixels = (held_out.images[:8, 0] / 255).tolist()
    with serving_models(quantised.parent.parent) as service:
        (model,) = service.get("/models").json()["models"]
        together, alone = (
            service.post("/uncertainty", json={"instances": rows}).json()["predictions"]
            for rows in (pixels, pixels[5:6])
        )
    assert model["precision"] == "int8"
    assert together[5] == alone[0]


@pytest.mark.training
def test_training_keeps_float32_when_int8_is_refused(
    config: TrainingConfig,
    quantised: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Resume the run, so with the same weights, with a tolerance that no graph meets.

    Without example images, since a run makes no second bundle of the same options.
    """
    monkeypatch.setattr(quantization_gate, "MAX_LOSS_INCREASE", -1.0)
    again = open_bundle(pipeline.train(config.model_copy(update={"resume": True, "examples": 0})))
    assert again.path != quantised
    assert again.manifest.precision == "fp32"
    (line,) = [each.getMessage() for each in caplog.records if "int8" in each.getMessage()]
    assert line.startswith(
        "Warning: int8 was refused on the validation images, and float32 kept: ece "
    )
    refusals = again.manifest.metrics["quantization"]["refusals"]
    named = {each.partition(" ")[0] for each in refusals}
    assert named >= {"ece", "nll", "sampled_ece", "sampled_nll"}
    assert "8-bit integers were tried and refused; float32 is served." in again.card
    load_predictor(again)
