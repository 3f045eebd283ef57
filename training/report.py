"""The model card, and the report that a browser opens: one file with everything inside.

Measures nothing.
"""

import base64
import re
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from markdown_it import MarkdownIt

from model.bundle import CARD_FILE, REPORT_FOLDER
from training import plots
from training.data import DataSet
from training.diagnosis import NEARLY_DEAD, rate_bound
from training.evaluate import ECE_BINS, Evaluation
from training.fit import Fitted

HTML_FILE = f"{REPORT_FOLDER}/report.html"

PLOTS = {
    "learning_curves.png": "Learning curves",
    "hidden_layers.png": "Hidden layers, epoch by epoch",
    "confusion_matrix.png": "Confusion matrix",
    "reliability.png": "Reliability diagram",
    "mistakes.png": "Most confident mistakes",
}

_TEMPLATE = Path(__file__).with_name("report.html")


def write_report(
    folder: Path,
    manifest: dict[str, Any],
    version: int,
    data: DataSet,
    evaluation: Evaluation,
    fitted: Fitted,
) -> None:
    """Write `report/` into a bundle's folder: the plots, the card that shows them, and the page."""
    report = folder / REPORT_FOLDER
    report.mkdir()
    figures = (
        plots.learning_curves(fitted.history),
        plots.hidden_layers(fitted.before, fitted.epochs),
        plots.confusion_matrix(np.array(evaluation.metrics["confusion_matrix"]), data.class_names),
        plots.reliability(evaluation),
        plots.mistakes(evaluation, data),
    )
    for name, figure in zip(PLOTS, figures, strict=True):
        figure.savefig(report / name, dpi=110)
    text = card(manifest, version)
    (folder / CARD_FILE).write_text(text, encoding="utf-8")
    title = f"{manifest['name']}, version {version}"
    (folder / HTML_FILE).write_text(page(title, text, report), encoding="utf-8")


def page(title: str, markdown: str, pictures: Path) -> str:
    """Turn the card into one HTML page that holds its PNG files, and whose text is only text."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    body = parser.render(markdown)
    for picture in pictures.glob("*.png"):
        encoded = base64.b64encode(picture.read_bytes()).decode()
        body = body.replace(f'src="{picture.name}"', f'src="data:image/png;base64,{encoded}"')
    template = Template(_TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), body=body)


def card(manifest: dict[str, Any], version: int) -> str:
    """Write the model card, Markdown (after Mitchell et al. 2019)."""
    metrics, training, data = manifest["metrics"], manifest["training"], manifest["data"]
    sampled = metrics["test"]["mc_dropout"]
    spec, architecture = manifest["input"], manifest["architecture"]
    colour = "grey" if spec["channels"] == 1 else "RGB"
    pictures = "\n\n".join(f"![{title}]({name})" for name, title in PLOTS.items())
    return f"""# {manifest["name"]}, version {version}

Sorts {spec["height"]} x {spec["width"]} {colour} images into {len(manifest["class_names"])} \
classes. Network: {architecture["preset"]}, {architecture["activation"]}, \
{manifest["parameters"]:,} parameters, dropout {architecture["dropout"]:g} in the head.

Trained on {_escaped(data["name"])}: {data["train"]:,} training, {data["validation"]:,} \
validation and {data["test"]:,} test images. Seed {training["seed"]}. The weights with the best \
validation loss were kept; nothing was chosen by the test images.

## Figures on the test images

| | plain | dropout alive ({sampled["samples"]} samples) |
|---|---|---|
{_figure_rows(metrics["test"], sampled)}

Accuracy in percent; NLL (negative log-likelihood) in nats; Brier score 0..2; ECE (expected \
calibration error) over {ECE_BINS} equal-width bins, 0..1. Calibration: none was fitted.

## Classes

| class | precision | recall | test images |
|---|---|---|---|
{_class_rows(metrics["test"]["per_class"])}

{_hidden_layers(metrics["diagnosis"])}

{pictures}

## Limits

The network answers with one of its classes whatever it is shown. Only the dropout of the head is \
treated as uncertain, so its uncertainty says little of images unlike the training images.
"""


def _figure_rows(plain: dict[str, Any], sampled: dict[str, Any]) -> str:
    rows = [("accuracy", "{:.2%}"), ("top5_accuracy", "{:.2%}")]
    rows += [("nll", "{:.4f}"), ("brier", "{:.4f}"), ("ece", "{:.4f}")]
    return "\n".join(
        f"| {name.replace('_', ' ')} | {form.format(plain[name])} | {form.format(sampled[name])} |"
        for name, form in rows
        if name in plain
    )


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


def _escaped(name: str) -> str:
    """Write any text so that Markdown, and a cell of its tables, shows it as it is."""
    return re.sub(r"([\\`*_\[\]<>|!&#~])", r"\\\1", " ".join(name.split()))
