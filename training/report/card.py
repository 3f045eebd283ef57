"""The model card: what a bundle is and how good, Markdown (after Mitchell et al. 2019).

Measures nothing.
"""

import re
from collections.abc import Mapping
from typing import Any

from training.evaluation.metrics import ECE_BINS
from training.fitting.diagnostics import NEARLY_DEAD, rate_bound


def card(manifest: dict[str, Any], version: int, pictures: Mapping[str, str]) -> str:
    """Write the card of a bundle.

    Args:
        manifest: of the bundle.
        version: of the bundle.
        pictures: file beside the card -> title.
    """
    metrics, training, data = manifest["metrics"], manifest["training"], manifest["data"]
    spec, architecture = manifest["input"], manifest["architecture"]
    colour = "grey" if spec["channels"] == 1 else "RGB"
    return f"""# {manifest["name"]}, version {version}

Sorts {spec["height"]} x {spec["width"]} {colour} images into {len(manifest["class_names"])} \
classes. Network: {architecture["preset"]}, {architecture["activation"]}, \
{manifest["parameters"]:,} parameters, dropout {architecture["dropout"]:g} in the head.

Trained on {_escaped(data["name"])}: {data["train"]:,} training, {data["validation"]:,} \
validation and {data["test"]:,} test images. Seed {training["seed"]}. The weights with the best \
validation loss were kept; nothing was chosen by the test images.

{measured(metrics["test"], manifest.get("calibration"))}

{_hidden_layers(metrics["diagnosis"])}
{_precision(metrics.get("quantization"))}
{shown(pictures)}

## Limits

The network answers with one of its classes whatever it is shown. Only the dropout of the head is \
treated as uncertain, so the mutual information says little of images unlike the training images. \
What calibration promises, it promises of images drawn as the validation images were.
"""


def measured(figures: dict[str, Any], calibration: Mapping[str, Any] | None) -> str:
    """Write the sections of what was measured on a part: figures, trust, classes.

    Args:
        figures: of `training.evaluation.metrics`, with `trust` of `training.evaluation.selective`.
        calibration: of the manifest.
    """
    return f"""## Figures on the test images

{_figures(figures)}

Accuracy in percent; NLL (negative log-likelihood) in nats; Brier score 0..2; ECE (expected \
calibration error) over {ECE_BINS} equal-width bins, 0..1. {_calibrated(calibration)}

## How far to trust an answer

{_trust(figures["trust"])}

## Classes

| class | precision | recall | test images |
|---|---|---|---|
{_class_rows(figures["per_class"])}"""


def shown(pictures: Mapping[str, str]) -> str:
    """Show pictures, file -> title."""
    return "\n\n".join(f"![{title}]({name})" for name, title in pictures.items())


def evaluation_card(
    manifest: Mapping[str, Any],
    data: str,
    same: bool,
    figures: dict[str, Any],
    pictures: Mapping[str, str],
) -> str:
    """Write the card of an evaluation.

    Args:
        manifest: of the bundle.
        data: name of the data set.
        same: whether it is the very data set that the bundle comes from.
        figures: as `measured` takes them, with `strangers` of `training.evaluation.selective` where there are any.
        pictures: file beside the card -> title.
    """
    origin = (
        "from the data set that the bundle was trained on, and none of them was seen in training"
        if same
        else "not the very images and draw that the bundle was trained and tested with"
    )
    known = figures.get("strangers")
    return f"""# {manifest["name"]}, version {manifest["version"]}, on {_escaped(data)}

{figures["images"]:,} test images, {origin}.

{measured(figures, manifest["calibration"])}

{"" if known is None else _strangers(known)}

{shown(pictures)}
"""


def _strangers(known: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {score} | {told['auroc']:.4f} | {told['fpr95']:.1%} |"
        for score, told in known["scores"].items()
    )
    return f"""## Strangers: {_escaped(known["name"])}

| score | AUROC | FPR95 |
|---|---|---|
{rows}

How well each score tells {known["images"]:,} images of {_escaped(known["name"])} from the test \
images. AUROC: the chance that a stranger scores as stranger than a test image. FPR95: the share \
of strangers that pass where 95 % of the test images do."""


def _figures(plain: dict[str, Any]) -> str:
    columns = [("plain", plain), ("dropout alive", plain["mc_dropout"])]
    before = plain["uncalibrated"]
    if before is not None:
        columns += [
            ("plain, before calibration", before),
            ("dropout alive, before calibration", before["mc_dropout"]),
        ]
    forms = {"accuracy": ".2%", "top5_accuracy": ".2%", "nll": ".4f", "brier": ".4f", "ece": ".4f"}
    lines = [["", *(title for title, _ in columns)], ["---"] * (len(columns) + 1)]
    lines += [
        [name.replace("_", " "), *(format(values[name], form) for _, values in columns)]
        for name, form in forms.items()
        if name in plain
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _calibrated(calibration: Mapping[str, Any] | None) -> str:
    if calibration is None:
        return "Uncalibrated: there were too few validation images."
    return (
        f"Calibrated on {calibration['images']:,} validation images: temperature "
        f"{calibration['temperature']:.3f} plain, {calibration['sampled_temperature']:.3f} with "
        "dropout alive."
    )


def _trust(trust: dict[str, Any]) -> str:
    sets, selection = trust["prediction_sets"], trust["selection"]
    areas = f"AURC {trust['aurc']:.5f}, AUGRC {trust['augrc']:.5f}"
    lines = [f"- Answering the surest images first: {areas}."]
    if sets is not None:
        lines.append(
            f"- Prediction sets for {sets['coverage']:.0%}, fitted on one half of the test images "
            f"and measured on the other, {sets['splits']} times: {sets['covered']:.1%} hold the "
            f"true class ({sets['covered_least']:.1%} to {sets['covered_most']:.1%}), with "
            f"{sets['size']:.2f} classes on average."
        )
    if selection is not None:
        lines.append(
            f"- Abstention that keeps to an error rate of {selection['max_risk']:.0%}: "
            f"{selection['answered']:.1%} of the images are answered, {selection['error']:.2%} of "
            "them wrong."
        )
    return "\n".join(lines)


def _class_rows(classes: dict[str, dict[str, float]]) -> str:
    return "\n".join(
        f"| {_escaped(name)} | {row['precision']:.2%} | {row['recall']:.2%} | {row['images']} |"
        for name, row in classes.items()
    )


def _hidden_layers(diagnosis: dict[str, Any]) -> str:
    layers = diagnosis["layers"]
    rows = "\n".join(
        "| {name} | {units} | {dead} | {nearly_dead} | {always_on} | {sparsity:.1%} | {shown} "
        "| {deaths} / {revivals} |".format(
            shown="-" if layer["saturated"] is None else f"{layer['saturated']:.1%}", **layer
        )
        for layer in layers
    )
    images = layers[0]["images"]
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
{rate_bound(images):.2%} (95 %); nearly dead: on fewer than {NEARLY_DEAD:.1%} of the images; \
always on: at every place of every image. Sparsity: share of inputs not above 0. Saturated: share \
of tanh or sigmoid outputs within 1 % of an end of their range. Deaths and revivals: from one \
epoch to the next.{removed}

{advice or "Nothing is wrong with them."}"""


def _precision(quantization: Mapping[str, Any] | None) -> str:
    """Write the section of `--quantize`, figures of `training.export.quantization_gate`; nothing without it."""
    if quantization is None:
        return ""
    before, after = quantization["fp32"], quantization["int8"]
    rows = "\n".join(
        f"| {name.replace('_', ' ')} | {value:.4f} | {after[name]:.4f} |"
        for name, value in before.items()
        if name in after
    )
    refusals = quantization["refusals"]
    verdict = (
        f"8-bit integers were tried and refused; float32 is served. {'; '.join(refusals)}."
        if refusals
        else "The convolutions compute with 8-bit integers; every other figure here is of them. "
        "The head, and so dropout, is float32."
    )
    return f"""
## Precision

{verdict}

| on the validation images, before calibration | float32 | int8 |
|---|---|---|
{rows}

Sampled: with dropout alive. Mistakes by entropy, by information: the chance that a wrong answer \
has more of it than a right one (AUROC).
"""


def _escaped(name: str) -> str:
    """Write any text so that Markdown, and a cell of its tables, shows it as it is."""
    return re.sub(r"([\\`*_\[\]<>|!&#~])", r"\\\1", " ".join(name.split()))
