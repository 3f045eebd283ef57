"""Writes the report: the plots as PNG files, the card, and one HTML file that contains both.

Measures nothing.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from model.bundle.store import CARD_FILE, REPORT_FOLDER
from training.data.dataset import Split
from training.evaluation.corruptions import CorruptionCurve
from training.evaluation.metrics import Evaluation
from training.evaluation.metrics_schema import EvaluationMetrics
from training.evaluation.selective_prediction import MIN_PREDICTION_SET_IMAGES, OodAnswers
from training.fitting.training_loop import TrainResult
from training.report import plots, selective_plots
from training.report.model_card import adopted_model_card, evaluation_card, model_card

HTML_FILE = "report.html"
FILES_FILE = "files.html"
"""The page in a bundle that names image files; no service shows it."""

_TEMPLATE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class ReportData:
    """What the plots of a report show: test images, predictions and corruption curves."""

    split: Split
    """The test images."""
    class_names: Sequence[str]
    evaluation: Evaluation
    corruption_curves: Sequence[CorruptionCurve]
    ood: OodAnswers | None = None
    """The predictions for out-of-distribution images, if there are any."""
    shows_images: bool = True
    """Whether the plots may show test images, as those of a bundle are shown to its clients."""


def write_plots(
    folder: Path, data: ReportData, fitted: TrainResult | None = None
) -> dict[str, str]:
    """Make `report/` in a bundle's folder and write its plots; return their titles by file name.

    Args:
        folder: of the bundle.
        data: what was measured.
        fitted: the course of the training; None for a network that was not trained here.
    """
    report = folder / REPORT_FOLDER
    report.mkdir()
    by_title: dict[str, Figure] = {}
    if fitted is not None:
        by_title["Learning curves"] = plots.learning_curves(fitted.history)
        if fitted.before:
            by_title["Hidden layers, epoch by epoch"] = plots.hidden_layers(
                fitted.before, fitted.epochs
            )
    return save_plots(by_title | draw_plots(data), report)


def write_card(
    folder: Path,
    manifest: dict[str, Any],
    version: int,
    titles: Mapping[str, str],
    files: str = "",
) -> None:
    """Write the model card and the HTML pages into `report/`, over those of another version.

    The service shows the card and the report to its clients; the names of files, which may tell
    them more than they should know, are on a page of their own, which it shows to nobody.

    Args:
        folder: of the bundle.
        manifest: of the bundle.
        version: of the bundle.
        titles: of the plots in `report/`, by file name.
        files: a section of names of image files; empty for none.
    """
    report = folder / REPORT_FOLDER
    adopted = manifest["architecture"]["preset"] == "adopted"
    text = (adopted_model_card if adopted else model_card)(manifest, version, titles)
    (folder / CARD_FILE).write_text(text, encoding="utf-8")
    title = f"{manifest['name']}, version {version}"
    if files:
        page = render_page(f"{title}: files", files, report)
        (report / FILES_FILE).write_text(page, encoding="utf-8")
        text += (
            f"\nThe files are named in `{FILES_FILE}` beside this page, which no service shows.\n"
        )
    (report / HTML_FILE).write_text(render_page(title, text, report), encoding="utf-8")


def write_evaluation_report(
    folder: Path,
    manifest: dict[str, Any],
    dataset_name: str,
    same: bool,
    metrics: EvaluationMetrics,
    data: ReportData,
    files: str = "",
) -> None:
    """Write the plots and the HTML page of an evaluation into `folder`.

    Args:
        folder: an existing folder.
        manifest: of the bundle.
        dataset_name: name of the data set whose test images were measured.
        same: whether these are the test images of the bundle's own training.
        metrics: what was measured.
        data: what the plots show.
        files: a section of names of image files.
    """
    titles = save_plots(draw_plots(data), folder)
    text = evaluation_card(manifest, dataset_name, same, metrics, titles)
    title = f"{manifest['name']}, version {manifest['version']}, on {dataset_name}"
    (folder / HTML_FILE).write_text(render_page(title, text + files, folder), encoding="utf-8")


def draw_plots(data: ReportData) -> dict[str, Figure]:
    """Draw the plots of the predictions: matplotlib's Figure by title."""
    evaluation = data.evaluation
    counts = np.array(evaluation.metrics["confusion_matrix"])
    gallery = (evaluation, data.split, data.class_names)
    by_title = {
        "Confusion matrix": plots.confusion_matrix(counts, data.class_names),
        "Reliability": plots.reliability(evaluation),
        "Risk and coverage": selective_plots.risk_coverage(evaluation),
    }
    if len(evaluation.labels) >= MIN_PREDICTION_SET_IMAGES:
        by_title["Prediction sets"] = selective_plots.prediction_sets(evaluation)
    by_title |= {
        "Uncertainties": selective_plots.uncertainty_histograms(evaluation, data.ood),
        "Noise, rotation, blur": selective_plots.corruptions(data.corruption_curves),
    }
    if not data.shows_images:
        return by_title
    return by_title | {
        "Most and least certain images": selective_plots.certainty_gallery(*gallery),
        "Most confident mistakes": plots.mistakes(*gallery),
    }


def save_plots(by_title: Mapping[str, Figure], folder: Path) -> dict[str, str]:
    """Write plots, by title, into `folder` as PNG; return titles by file name."""
    titles = {re.sub(r"\W+", "_", title.lower()) + ".png": title for title in by_title}
    for name, title in titles.items():
        by_title[title].savefig(folder / name, dpi=110)
    return titles


def render_page(title: str, markdown: str, folder: Path) -> str:
    """Render a card as one HTML page with the PNG files of `folder` inside.

    HTML in the title or the card is shown as text.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    body = parser.render(markdown)
    for picture in folder.glob("*.png"):
        encoded = base64.b64encode(picture.read_bytes()).decode()
        body = body.replace(f'src="{picture.name}"', f'src="data:image/png;base64,{encoded}"')
    template = Template(_TEMPLATE.read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), body=body)
