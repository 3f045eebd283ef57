"""Writes the model card of a bundle, and of an evaluation, as Markdown (Mitchell et al. 2019).

Measures nothing.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal

from training.evaluation.metrics import ECE_BINS
from training.evaluation.metrics_schema import (
    BundleMetrics,
    ClassCoverageMetrics,
    ClassificationMetrics,
    ClassMetrics,
    DiagnosisMetrics,
    EvaluationMetrics,
    HeldOutMetrics,
    OodMetrics,
    QuantizationMetrics,
    SelectiveMetrics,
)
from training.fitting.unit_diagnostics import NEARLY_DEAD, firing_rate_bound

_MetricName = Literal["accuracy", "top5_accuracy", "nll", "brier", "ece"]
_METRIC_FORMATS: dict[_MetricName, str] = {
    "accuracy": ".2%",
    "top5_accuracy": ".2%",
    "nll": ".4f",
    "brier": ".4f",
    "ece": ".4f",
}


def model_card(manifest: Mapping[str, Any], version: int, plots: Mapping[str, str]) -> str:
    """Return the model card of a bundle.

    Args:
        manifest: of the bundle; its own version, if any, is not used.
        version: of the bundle.
        plots: titles by the name of the file beside the card.
    """
    metrics: BundleMetrics = manifest["metrics"]
    training, data = manifest["training"], manifest["data"]
    spec, architecture = manifest["input"], manifest["architecture"]
    colour = "grey" if spec["channels"] == 1 else "RGB"
    return f"""# {manifest["name"]}, version {version}

Sorts {spec["height"]} x {spec["width"]} {colour} images into {len(manifest["class_names"])} \
classes. Network: {architecture["preset"]}, {architecture["activation"]}, \
{manifest["parameters"]:,} parameters, dropout {architecture["dropout"]:g} in the head.

Trained on {_escaped(data["name"])}: {data["train"]:,} training, {data["validation"]:,} \
validation and {data["test"]:,} test images. Seed {training["seed"]}. \
{_kept_weights(training["weight_averaging"])}; nothing was chosen by the test images.

{_measurements(metrics["test"], manifest.get("calibration"))}

{_hidden_layers(metrics["diagnosis"])}
{_precision(metrics.get("quantization"))}
{_plots(plots)}

## Limits

The network answers with one of its classes whatever it is shown. Only the dropout of the head is \
treated as uncertain, so the mutual information says little of images unlike the training images. \
What calibration promises, it promises of images drawn as the validation images were.
"""


def _kept_weights(averaged: float) -> str:
    """Return what the exported weights are; `averaged` is the share of the steps so far."""
    means = f", averaged over about the last {averaged:.0%} of the steps," if averaged > 0 else ""
    return f"The weights{means} of the epoch with the best validation loss were kept"


def _measurements(metrics: HeldOutMetrics, calibration: Mapping[str, Any] | None) -> str:
    """Return the sections on the test images; calibration is the manifest's."""
    return f"""## Metrics on the test images

{_classification(metrics)}

Accuracy in percent; NLL (negative log-likelihood) in nats; Brier score 0..2; ECE (expected \
calibration error) over {ECE_BINS} equal-width bins, 0..1. {_calibrated(calibration)}

## How far to trust an answer

{_selective(metrics["trust"])}

## Classes

{_classes(metrics["per_class"], metrics["trust"]["class_coverage"])}"""


def _plots(plots: Mapping[str, str]) -> str:
    return "\n\n".join(f"![{title}]({name})" for name, title in plots.items())


def evaluation_card(
    manifest: Mapping[str, Any],
    data: str,
    same: bool,
    metrics: EvaluationMetrics,
    plots: Mapping[str, str],
) -> str:
    """Return the card of an evaluation.

    Args:
        manifest: of the bundle.
        data: name of the data set whose test images were measured.
        same: whether these are the test images of the bundle's own training.
        metrics: what was measured.
        plots: titles by the name of the file beside the card.
    """
    origin = (
        "from the data set that the bundle was trained on, and none of them was seen in training"
        if same
        else "not the very images and draw that the bundle was trained and tested with"
    )
    ood = metrics.get("strangers")
    return f"""# {manifest["name"]}, version {manifest["version"]}, on {_escaped(data)}

{metrics["images"]:,} test images, {origin}.

{_measurements(metrics, manifest["calibration"])}

{"" if ood is None else _ood_detection(ood)}

{_plots(plots)}
"""


def _ood_detection(ood: OodMetrics) -> str:
    rows = "\n".join(
        f"| {score} | {metrics['auroc']:.4f} | {metrics['fpr95']:.1%} |"
        for score, metrics in ood["scores"].items()
    )
    return f"""## Out-of-distribution images: {_escaped(ood["name"])}

| score | AUROC | FPR95 |
|---|---|---|
{rows}

How well each score separates {ood["images"]:,} images of {_escaped(ood["name"])} from the test \
images. AUROC: the chance that such an image scores higher than a test image. FPR95: the share of \
these images that are accepted by the threshold that accepts 95 % of the test images."""


def _classification(metrics: HeldOutMetrics) -> str:
    """Return the table of the classification metrics, with and without dropout and calibration."""
    columns: list[tuple[str, ClassificationMetrics]] = [
        ("plain", metrics),
        ("MC dropout", metrics["mc_dropout"]),
    ]
    before = metrics["uncalibrated"]
    if before is not None:
        columns += [
            ("plain, before calibration", before),
            ("MC dropout, before calibration", before["mc_dropout"]),
        ]
    lines = [["", *(title for title, _ in columns)], ["---"] * (len(columns) + 1)]
    lines += [
        [name.replace("_", " "), *(format(values[name], form) for _, values in columns)]
        for name, form in _METRIC_FORMATS.items()
        if name in metrics
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _calibrated(calibration: Mapping[str, Any] | None) -> str:
    if calibration is None:
        return "Uncalibrated: there were too few validation images."
    return (
        f"Calibrated on {calibration['images']:,} validation images: temperature "
        f"{calibration['temperature']:.3f} plain, {calibration['sampled_temperature']:.3f} with "
        "MC dropout."
    )


def _selective(metrics: SelectiveMetrics) -> str:
    sets, abstention = metrics["prediction_sets"], metrics["selection"]
    areas = f"AURC {metrics['aurc']:.5f}, AUGRC {metrics['augrc']:.5f}"
    lines = [f"- Answering the surest images first: {areas}."]
    if sets is not None:
        lines.append(
            f"- Prediction sets for {sets['coverage']:.0%}, fitted on one half of the test images "
            f"and measured on the other, {sets['splits']} times: {sets['covered']:.1%} hold the "
            f"true class ({sets['covered_least']:.1%} to {sets['covered_most']:.1%}), with "
            f"{sets['size']:.2f} classes on average."
        )
    if abstention is not None:
        lines.append(
            f"- Abstention that keeps to an error rate of {abstention['max_risk']:.0%} and calls "
            f"{abstention['max_false_alarm']:.0%} of ordinary images unusual: "
            f"{abstention['answered']:.1%} of the images are answered, {abstention['error']:.2%} "
            f"of them wrong; {abstention['unusual']:.1%} are unusual."
        )
    for kind, sets_by_class in (metrics["class_coverage"] or {}).items():
        worst = sets_by_class["worst_class"]
        lines.append(
            f"- Prediction sets for {sets_by_class['coverage']:.0%} of the kind {kind}, with the "
            f"bundle's own calibration: {sets_by_class['covered']:.1%} hold the true class, with "
            f"{sets_by_class['size']:.2f} classes on average; of the worst class, "
            f"{_escaped(worst)}, {sets_by_class['by_class'][worst]:.1%}."
        )
    return "\n".join(lines)


def _classes(
    classes: Mapping[str, ClassMetrics], coverage: Mapping[str, ClassCoverageMetrics] | None
) -> str:
    """Return the table of the classes, with the coverage of each kind of prediction sets."""
    kinds = coverage or {}
    titles = ["class", "precision", "recall", "test images", *(f"in {kind} sets" for kind in kinds)]
    rows = [
        [
            _escaped(name),
            f"{row['precision']:.2%}",
            f"{row['recall']:.2%}",
            str(row["images"]),
            *(_share(each["by_class"].get(name)) for each in kinds.values()),
        ]
        for name, row in classes.items()
    ]
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _share(value: float | None) -> str:
    """Format a share; - where there is no image of which to measure it."""
    return "-" if value is None else f"{value:.2%}"


def _hidden_layers(diagnosis: DiagnosisMetrics) -> str:
    layers = diagnosis["layers"]
    rows = "\n".join(
        "| {name} | {units} | {dead} | {nearly_dead} | {always_on} | {sparsity:.1%} | {shown} "
        "| {deaths} / {revivals} |".format(
            shown="-" if layer["saturated"] is None else f"{layer['saturated']:.1%}", **layer
        )
        for layer in layers
    )
    images = layers[0]["images"]
    rate_bound = firing_rate_bound(images)
    advice = "\n".join(f"- {_escaped(sentence)}" for sentence in diagnosis["advice"])
    pruned = diagnosis["pruned_units"]
    removed = (
        f" {pruned} dead units were pruned; no answer on the test images moved." if pruned else ""
    )
    return f"""## Hidden layers

| layer | units | dead | nearly dead | always on | sparsity | saturated | deaths / revivals |
|---|---|---|---|---|---|---|---|
{rows}

Over the {images:,} validation images. A unit (a convolution's is a channel) fires where its \
activation's input is above 0. Dead: on no image, so its firing rate is below \
{rate_bound:.2%} (95 %); nearly dead: on fewer than {NEARLY_DEAD:.1%} of the images; \
always on: at every place of every image. Sparsity: share of inputs not above 0. Saturated: share \
of tanh or sigmoid outputs within 1 % of an end of their range. Deaths and revivals: from one \
epoch to the next.{removed}

{advice or "Nothing is wrong with them."}"""


def _precision(quantization: QuantizationMetrics | None) -> str:
    """Return the section on `--quantize`, empty without it."""
    if quantization is None:
        return ""
    fp32, int8 = quantization["fp32"], quantization["int8"]
    rows = "\n".join(
        f"| {name.replace('_', ' ')} | {value:.4f} | {int8[name]:.4f} |"
        for name, value in fp32.items()
        if name in int8
    )
    refusals = quantization["refusals"]
    verdict = (
        f"8-bit integers were tried and refused; float32 is served. {'; '.join(refusals)}."
        if refusals
        else "The convolutions compute with 8-bit integers; every other number here is of them. "
        "The head, and so dropout, is float32."
    )
    return f"""
## Precision

{verdict}

| on the validation images, before calibration | float32 | int8 |
|---|---|---|
{rows}

Sampled: with MC dropout. Mistakes by entropy, by information: the chance that a wrong answer \
has more of it than a right one (AUROC).
"""


def _escaped(name: str) -> str:
    """Escape a text so that Markdown shows it unchanged, also in the cell of a table."""
    return re.sub(r"([\\`*_\[\]<>|!&#~])", r"\\\1", " ".join(name.split()))
