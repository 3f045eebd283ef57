"""Writes the model card of a bundle, and of an evaluation, as Markdown (Mitchell et al. 2019).

Measures nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from training.evaluation.accuracy_against_chance import RightAnswers
from training.evaluation.metrics import ECE_BINS
from training.evaluation.metrics_schema import (
    AbstentionMetrics,
    AdoptedMetrics,
    BundleMetrics,
    ClassCoverageMetrics,
    ClassificationMetrics,
    ClassMetrics,
    DiagnosisMetrics,
    DropoutChoiceMetrics,
    EvaluationMetrics,
    HeldOutMetrics,
    OodMetrics,
    QuantizationMetrics,
    SelectiveMetrics,
)
from training.export.to_onnx import PARITY_TOLERANCE
from training.fitting.unit_diagnostics import NEARLY_DEAD, firing_rate_bound
from training.report.class_name_fonts import drawable_names
from training.report.data_section import data_section, escaped
from training.report.earlier_section import earlier_section
from training.report.plot_captions import plot_sections

_MetricName = Literal["accuracy", "top5_accuracy", "nll", "brier", "ece"]
_METRIC_FORMATS: dict[_MetricName, str] = {
    "accuracy": ".2%",
    "top5_accuracy": ".2%",
    "nll": ".4f",
    "brier": ".4f",
    "ece": ".4f",
}

_OWN_DROPOUT = "The dropout of the head is the network's own: the file has it."
_HEURISTIC_DROPOUT = (
    "**The dropout of the head is a heuristic:** the network was not trained with it. It is no "
    "posterior of a training, and its uncertainty is as good as is measured below, not more."
)


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
    file = architecture.get("backbone_file")
    network = (
        f"{architecture.get('backbone') or architecture['preset']}, {architecture['activation']}"
    )
    network = network if file is None else f"features of {escaped(file['file'])}"
    colour = "grey" if spec["channels"] == 1 else "RGB"
    return f"""# {manifest["name"]}, version {version}

Sorts {spec["height"]} x {spec["width"]} {colour} images into {len(manifest["class_names"])} \
classes. Network: {network}, \
{manifest["parameters"]:,} parameters, dropout \
{", ".join(f"{each['p']:g}" for each in manifest["dropout_layers"])} in the head.

Trained on {escaped(data["name"])}: {data["train"]:,} training, {data["validation"]:,} \
validation and {data["test"]:,} test images. Seed {training["seed"]}. \
{_kept(training, data, file)}; nothing was chosen by the test images.
{data_section(data, metrics)}{earlier_section(data, metrics)}
{_measurements(metrics["test"], manifest.get("calibration"), data.get("images_per_class"))}

{_hidden_layers(metrics["diagnosis"], data.get("cross_fitted", False))}
{_precision(metrics.get("quantization"))}
{plot_sections(plots)}

## Limits

The network answers with one of its classes whatever it is shown. Only the dropout of the head is \
treated as uncertain, so the mutual information says little of images unlike the training images. \
What calibration promises, it promises of images drawn as the validation images were.
"""


def adopted_model_card(manifest: Mapping[str, Any], version: int, plots: Mapping[str, str]) -> str:
    """Return the model card of a network that was not trained here; arguments as `model_card`."""
    metrics: AdoptedMetrics = manifest["metrics"]
    spec, architecture, data = manifest["input"], manifest["architecture"], manifest["data"]
    colour = "grey" if spec["channels"] == 1 else "RGB"
    layers = ", ".join(f"{each['p']:g} of {each['width']:,}" for each in manifest["dropout_layers"])
    trained = architecture["dropout_origin"] == "network"
    origin = _OWN_DROPOUT if trained else _HEURISTIC_DROPOUT
    return f"""# {manifest["name"]}, version {version}

Sorts {spec["height"]} x {spec["width"]} {colour} images into {len(manifest["class_names"]):,} \
classes. Adopted from {escaped(architecture["file"])}, {manifest["parameters"]:,} parameters; it \
was not trained here. Pixels become {escaped(architecture["preprocessing"])}\
{_guessed(architecture.get("preprocessing_origin"))}. The file answers \
{architecture["output"]}, and the bundle differs from them by at most {metrics["parity"]:.2g} \
(allowed: {PARITY_TOLERANCE:g}, times a tenth of the largest of them where that is above 10).

{origin} It begins at dense layer {escaped(architecture["cut"])} and zeroes units with \
probability {layers}.

{_dropout_choice(metrics["dropout_choice"])}

Measured on {escaped(data["name"])}: the out-of-distribution score is fitted on {data["train"]:,} \
images, everything else on {data["validation"]:,}; {data["test"]:,} are only measured. Whether the \
network was trained on any of them is not known here; if it was, all of this is too good.

{_measurements(metrics["test"], manifest.get("calibration"), None, only_measured=True)}

{plot_sections(plots)}

## Limits

The network answers with one of its classes whatever it is shown. Only the dropout of the head is \
treated as uncertain, so the mutual information says little of images unlike the training images. \
What calibration promises, it promises of images drawn as the validation images were, of the \
classes that these have.
"""


def _guessed(origin: str | None) -> str:
    if origin != "guessed":
        return ""
    return (
        ", which is **guessed**: of the usual rules it has the lowest loss, and if it is not the "
        "rule of the training, the network is better than all of this says (`--mean`, `--std`)"
    )


def _dropout_choice(choice: DropoutChoiceMetrics | None) -> str:
    if choice is None:
        return ""
    rows = "\n".join(f"| {p} | {nll:.4f} |" for p, nll in choice["nll"].items())
    worse = min(choice["nll"].values()) > choice["deterministic_nll"]
    verdict = (
        "\n\n**Every dropout makes the answers worse** than none, on these images. `/predict`, "
        "which has none, answers best, and the mutual information says little; typicality and "
        "prediction sets are what the bundle adds."
        if worse
        else ""
    )
    return f"""The probability with the lowest NLL on {choice["images"]:,} validation images was \
taken, each with its own temperature:

| probability of zeroing | NLL |
|---|---|
| without dropout | {choice["deterministic_nll"]:.4f} |
{rows}{verdict}"""


def _kept(
    training: Mapping[str, Any], data: Mapping[str, Any], file: Mapping[str, Any] | None
) -> str:
    if data.get("cross_fitted"):
        weights = "those that it was published with"
        if file is not None:
            weights = f"its file's, which takes pixels as {escaped(file['preprocessing'])}"
        return (
            f"The backbone's weights are {weights}; a head was trained on its features. Validation "
            "images are the training images, each seen by a head that was trained without it "
            "(cross-fitting)"
        )
    return _kept_weights(training["weight_averaging"])


def _kept_weights(averaged: float) -> str:
    """Return what the exported weights are; `averaged` is the share of the steps so far."""
    means = f", averaged over about the last {averaged:.0%} of the steps," if averaged > 0 else ""
    return f"The weights{means} of the epoch with the best validation loss were kept"


def _measurements(
    metrics: HeldOutMetrics,
    calibration: Mapping[str, Any] | None,
    images_per_class: Mapping[str, list[int]] | None,
    only_measured: bool = False,
) -> str:
    """Return the sections on the test images.

    Args:
        metrics: of the test images.
        calibration: of the manifest.
        images_per_class: of the manifest's `data`.
        only_measured: whether classes without test images are left out of the table.
    """
    classes = metrics["per_class"]
    if only_measured:
        classes = {name: each for name, each in classes.items() if each["images"]}
    answers = RightAnswers.of_counts(metrics["confusion_matrix"])
    low, high = answers.interval
    remark = "" if answers.remark is None else f"**{answers.remark}**\n\n"
    return f"""## Metrics on the test images

{remark}{_classification(metrics)}

{answers.right:,} of {answers.images:,} test images are right; the accuracy's 95 % interval is \
{low:.1%} to {high:.1%}.

Accuracy in percent; NLL (negative log-likelihood) in nats; Brier score 0..2; ECE (expected \
calibration error) over {ECE_BINS} equal-width bins, 0..1. {_calibrated(calibration)}

## How far to trust an answer

{_selective(metrics["trust"])}

## Classes

{_classes(classes, metrics["trust"]["class_coverage"], images_per_class)}

{_numbered_classes(list(metrics["per_class"]))}"""


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
    return f"""# {manifest["name"]}, version {manifest["version"]}, on {escaped(data)}

{metrics["images"]:,} test images, {origin}.

{_measurements(metrics, manifest["calibration"], None)}

{"" if ood is None else _ood_detection(ood)}

{plot_sections(plots)}
"""


def _numbered_classes(class_names: Sequence[str]) -> str:
    """Return which class each number in the plots stands for, where a font lacks its name."""
    shown = zip(drawable_names(class_names), class_names, strict=True)
    pairs = [f"{number} is {escaped(name)}" for number, name in shown if number != name]
    return f"In the plots, {'; '.join(pairs)}." if pairs else ""


def _ood_detection(ood: OodMetrics) -> str:
    rows = "\n".join(
        f"| {score} | {metrics['auroc']:.4f} | {metrics['fpr95']:.1%} |"
        for score, metrics in ood["scores"].items()
    )
    return f"""## Out-of-distribution images: {escaped(ood["name"])}

| score | AUROC | FPR95 |
|---|---|---|
{rows}

How well each score separates {ood["images"]:,} images of {escaped(ood["name"])} from the test \
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
    ranked = f"- Answering the surest images first: {areas}. The lower the better: both grow "
    lines = [ranked + "with the number of mistakes, and with mistakes among the surest answers."]
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
            f"{_answered(abstention)}; {abstention['unusual']:.1%} are unusual."
        )
    for kind, sets_by_class in (metrics["class_coverage"] or {}).items():
        worst = sets_by_class["worst_class"]
        lines.append(
            f"- Prediction sets for {sets_by_class['coverage']:.0%} of the kind {kind}, with the "
            f"bundle's own calibration: {sets_by_class['covered']:.1%} hold the true class, with "
            f"{sets_by_class['size']:.2f} classes on average; of the worst class, "
            f"{escaped(worst)}, {sets_by_class['by_class'][worst]:.1%}."
        )
    return "\n".join(lines)


def _answered(abstention: AbstentionMetrics) -> str:
    error = abstention["error"]
    if error is None:
        return "none of the images is answered"
    return f"{abstention['answered']:.1%} of the images are answered, {error:.2%} of them wrong"


def _classes(
    classes: Mapping[str, ClassMetrics],
    coverage: Mapping[str, ClassCoverageMetrics] | None,
    images_per_class: Mapping[str, list[int]] | None,
) -> str:
    """Return the table of the classes, with the coverage of each kind of prediction sets."""
    kinds = coverage or {}
    titles = ["class", "precision", "recall", "test images", *(f"in {kind} sets" for kind in kinds)]
    if images_per_class is not None:
        titles.insert(1, "training images")
    rows = [
        [
            escaped(name),
            *([] if images_per_class is None else [str(images_per_class[name][0])]),
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


def _hidden_layers(diagnosis: DiagnosisMetrics, is_frozen: bool) -> str:
    layers = diagnosis["layers"]
    if is_frozen:
        return "The hidden layers were not diagnosed: those of the backbone are not trained here."
    if not layers:
        return ""
    rows = "\n".join(
        "| {name} | {units} | {dead} | {nearly_dead} | {always_on} | {sparsity:.1%} | {shown} "
        "| {deaths} / {revivals} |".format(
            shown="-" if layer["saturated"] is None else f"{layer['saturated']:.1%}", **layer
        )
        for layer in layers
    )
    images = layers[0]["images"]
    rate_bound = firing_rate_bound(images)
    advice = "\n".join(f"- {escaped(sentence)}" for sentence in diagnosis["advice"])
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

{advice or "None of them is beyond the limits of a warning."}"""


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
